"""Does a better teacher, or more of them, make a better student?"""

from functools import partial

from noisy_student import Recipe, Run, figures

ordinary = Run("Resnet9", 5000, Recipe(epochs=200, n=2, m=10, dropout=0.2))
longer_trained = Run("Resnet9", 5000, Recipe(epochs=400, n=3, m=10, dropout=0.0))
DROPOUT = Recipe(epochs=50, batch_size=512, lr=0.4, weight_decay=5e-4, n=1, m=5, dropout=0.2)
STUDENT = DROPOUT.replace(dropout=0.0)
LONGER = STUDENT.replace(epochs=75, n=2, m=10)


def student(recipe: Recipe, *teachers: Run, repeat_labels: int = 3) -> Run:
    return Run("Resnet9", 5000, recipe, teachers, flip_average=True, repeat_labels=repeat_labels)


RUNS = {
    "ordinary teacher": ordinary,
    "longer-trained teacher": longer_trained,
    "student of an ordinary teacher": student(STUDENT, ordinary),
    "student of a longer-trained teacher": student(STUDENT, longer_trained),
    "longer student of a longer-trained teacher": student(LONGER, longer_trained, repeat_labels=2),
    "student with dropout of one teacher": student(DROPOUT, ordinary),
    "student with dropout of three teachers": student(DROPOUT, *ordinary.members(3)),
}

SEEDS = (0, 1, 2)
BASELINE = {
    "longer-trained teacher": "ordinary teacher",
    "student of an ordinary teacher": "ordinary teacher",
    "student of a longer-trained teacher": "student of an ordinary teacher",
    "longer student of a longer-trained teacher": "student of a longer-trained teacher",
    "student with dropout of one teacher": "ordinary teacher",
    "student with dropout of three teachers": "student with dropout of one teacher",
}
FIGURE = partial(figures.forest, baseline=BASELINE)
ANSWER = """A better one does; of two further ones three seeds cannot tell. A teacher that is
better by {longer-trained teacher minus ordinary teacher} points, trained twice as long with more
RandAugment and no dropout, has a student better by
{student of a longer-trained teacher minus student of an ordinary teacher}, at
{student of a longer-trained teacher}%. Three ordinary teachers in place of one give
{student with dropout of three teachers minus student with dropout of one teacher}.
A longer student with more noise differs by
{longer student of a longer-trained teacher minus student of a longer-trained teacher}. Three seeds
on two CPU cores, but the student of three teachers is a GPU's, and the longer student's teacher was
trained anew. The longer-trained teacher was chosen as the best on the test images."""
