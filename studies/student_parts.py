"""Which parts of a student matter in short training?"""

from dataclasses import replace
from functools import partial

from noisy_student import Recipe, Run, figures

SUPERVISED = Recipe(epochs=25, batch_size=64, n=1, m=5, dropout=0.2)
teacher = Run("Resnet9", 5000, SUPERVISED)
student = Run(
    "Resnet9", 5000, SUPERVISED.replace(epochs=9), teacher.members(3), threshold=0.8,
    flip_average=True, repeat_labels=3,
)  # fmt: skip


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
ANSWER = """Some noise, and the true labels seen often: without any noise the student loses
{without any noise minus unchanged student} points of its {unchanged student}%, and with each label
seen once an epoch, not three times,
{each label once an epoch, not three times minus unchanged student}. Stochastic depth costs
{with stochastic depth minus unchanged student}. All other changes make half a point or less:
RandAugment and dropout may both go ({without RandAugment and dropout minus unchanged student})
where flip and crop stay, and so may two of the three teachers
({one teacher in place of three minus unchanged student}) and the confidence filter
({without the confidence filter minus unchanged student}). Five seeds of nine epochs, on CPUs, at
equal epochs, so at unequal steps where the filter, balancing or the repetition changes; longer
training may want other things."""
