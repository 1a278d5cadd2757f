"""Which parts of a student matter in short training?"""

from dataclasses import replace
from functools import partial

from noisy_student import Recipe, Run, figures

SUPERVISED = Recipe(epochs=25, batch_size=64, n=1, m=5, dropout=0.2)
teacher = Run("Resnet9", 5000, SUPERVISED)
student = Run(
    "Resnet9",
    5000,
    SUPERVISED.replace(epochs=9),
    teacher.members(3),
    threshold=0.8,
    flip_average=True,
    repeat_labels=3,
)


def noise(**changes: float) -> Run:
    return replace(student, recipe=student.recipe.replace(**changes))


RUNS = {
    "labels alone": teacher,
    "unchanged student": student,
    "without RandAugment": noise(n=0),
    "without dropout": noise(dropout=0.0),
    "without RandAugment and dropout": noise(n=0, dropout=0.0),
    "without any noise": noise(n=0, dropout=0.0, flip=False, crop=0),
    "with stochastic depth": noise(stochastic_depth=0.2),
    "hard pseudo-labels": replace(student, pseudo="hard"),
    "without the confidence filter": replace(student, threshold=0.0),
    "balanced classes": replace(student, balance=True),
    "teachers that do not average the mirror image": replace(student, flip_average=False),
    "one teacher in place of three": replace(student, teachers=teacher.members(1)),
    "each label once an epoch, not three times": replace(student, repeat_labels=1),
}

SEEDS = (0, 1, 2, 3, 4)
# Labels alone are trained for as short a time, too short for a fair comparison: they have none.
BASELINE = {name: "unchanged student" for name in list(RUNS)[2:]}
FIGURE = partial(figures.forest, baseline=BASELINE)
ANSWER = """Some noise, and the true labels seen often. Without any noise the student
changes by {without any noise minus unchanged student} points, with each label seen once an epoch in
place of three times by {each label once an epoch, not three times minus unchanged student}, with
stochastic depth by {with stochastic depth minus unchanged student}. Of the other changes only the
loss of dropout has an interval without zero ({without dropout minus unchanged student}). With flip
and crop RandAugment and dropout may both go
({without RandAugment and dropout minus unchanged student}), and so may two of the three teachers
({one teacher in place of three minus unchanged student}) or the filter
({without the confidence filter minus unchanged student}). Five seeds on CPUs, nine epochs, so fewer
steps where fewer images are kept; longer training may want other things."""
