"""How much noise does a student need in longer training?"""

from functools import partial

from noisy_student import Recipe, Run, figures

alone = Run("Resnet9", 5000, Recipe(epochs=200, n=2, m=10, dropout=0.2))
QUIET = Recipe(
    epochs=50, batch_size=512, lr=0.4, weight_decay=5e-4, n=0, m=5, dropout=0.0, flip=False, crop=0
)
NOISES = {
    "no noise": QUIET,
    "flip and crop": QUIET.replace(flip=True, crop=4),
    "flip, crop, RandAugment": QUIET.replace(flip=True, crop=4, n=1),
    "flip, crop, RandAugment, dropout": QUIET.replace(flip=True, crop=4, n=1, dropout=0.2),
}
RUNS = {"labels alone": alone} | {
    f"student, {noise}": Run("Resnet9", 5000, recipe, (alone,), flip_average=True, repeat_labels=3)
    for noise, recipe in NOISES.items()
}

SEEDS = (0, 1, 2)
BASELINE = "labels alone"
FIGURE = partial(figures.forest, baseline=BASELINE)
ANSWER = """Flip and crop, and a little RandAugment. A student of one teacher gains
{student, flip, crop, RandAugment minus labels alone} points over labels alone ({labels alone}%)
with these, {student, flip and crop minus labels alone} with flip and crop only, and without noise
{student, no noise minus labels alone}. RandAugment (1, 5) adds
{student, flip, crop, RandAugment minus student, flip and crop}, dropout on top of it
{student, flip, crop, RandAugment, dropout minus student, flip, crop, RandAugment}. In its last
epoch the student without noise agrees with {fit of student, no noise} of its labels, that with all
noise with {fit of student, flip, crop, RandAugment, dropout}. Three seeds, 50 epochs, two CPU
cores; more RandAugment was not tried here."""
