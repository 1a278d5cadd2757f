"""Does a better teacher, or a second and third one, make a better student?"""

from functools import partial

from noisy_student import Recipe, Run, figures

ordinary = Run("Resnet9", 5000, Recipe(epochs=200, n=2, m=10, dropout=0.2))
stronger = Run("Resnet9", 5000, Recipe(epochs=400, n=3, m=10, dropout=0.0))
DROPOUT = Recipe(epochs=50, batch_size=512, lr=0.4, weight_decay=5e-4, n=1, m=5, dropout=0.2)
STUDENT = DROPOUT.replace(dropout=0.0)
LONGER = STUDENT.replace(epochs=75, n=2, m=10)


def student(recipe: Recipe, *teachers: Run, repeat_labels: int = 3) -> Run:
    return Run("Resnet9", 5000, recipe, teachers, flip_average=True, repeat_labels=repeat_labels)


RUNS = {
    "ordinary teacher": ordinary,
    "stronger teacher": stronger,
    "student of an ordinary teacher": student(STUDENT, ordinary),
    "student of a stronger teacher": student(STUDENT, stronger),
    "longer student of a stronger teacher": student(LONGER, stronger, repeat_labels=2),
    "student with dropout of an ordinary teacher": student(DROPOUT, ordinary),
    "student with dropout of three ordinary teachers": student(DROPOUT, *ordinary.members(3)),
}

SEEDS = (0, 1, 2)
BASELINE = {
    "stronger teacher": "ordinary teacher",
    "student of an ordinary teacher": "ordinary teacher",
    "student of a stronger teacher": "student of an ordinary teacher",
    "longer student of a stronger teacher": "student of a stronger teacher",
    "student with dropout of an ordinary teacher": "ordinary teacher",
    "student with dropout of three ordinary teachers": "student with dropout of an ordinary teacher",
}
FIGURE = partial(figures.forest, baseline=BASELINE)
ANSWER = """A better one does: a teacher that is {stronger teacher minus ordinary teacher} points
better, trained for 400 epochs with more RandAugment and without dropout, has a student
{student of a stronger teacher minus student of an ordinary teacher} better,
{student of a stronger teacher}%. Three ordinary teachers in place of one give
{student with dropout of three ordinary teachers minus student with dropout of an ordinary teacher},
within chance. A longer student with more noise is no better
({longer student of a stronger teacher minus student of a stronger teacher}). The student of one
ordinary teacher gains {student of an ordinary teacher minus ordinary teacher} points over it. Three
seeds on two CPU cores; the student of three is a GPU's, the longer one's teacher was trained anew.
The stronger teacher was picked by its test score."""
