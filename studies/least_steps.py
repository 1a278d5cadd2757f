"""How many optimizer steps do few labels need?"""

from functools import partial
from itertools import pairwise

from noisy_student import Recipe, Run, figures

RECIPE = Recipe(epochs=1, batch_size=20, n=1, m=5, dropout=0.2, flip=False, crop=2)
STEPS = (100, 200, 500, 1000, 2000)
PLACES = (("Convnet5", 20), ("Convnet5", 100), ("Resnet9", 100))

RUNS, PLACE, LINE = {}, {}, {}
for model, labels in PLACES:
    for steps in STEPS:
        name = f"{model}, {labels} labels, {steps:,} steps"
        # Of five times as many labels a fifth trains, and the others validate.
        RUNS[name] = Run(model, 5 * labels, RECIPE.replace(min_steps=steps), holdout=0.8)
        PLACE[name], LINE[name] = steps, f"{model}, {labels} labels"

DATA = "digits"
SEEDS = (0, 1, 2)
BASELINE = {
    f"{model}, {labels} labels, {more:,} steps": f"{model}, {labels} labels, {steps:,} steps"
    for model, labels in PLACES
    for steps, more in pairwise(STEPS)
}
FIGURE = partial(figures.line, x=PLACE, series=LINE, xlabel="optimizer steps", log=True)
ANSWER = """About a thousand. From 1,000 to 2,000
steps of 20 images Convnet5 on 20 labels changes by
{Convnet5, 20 labels, 2,000 steps minus Convnet5, 20 labels, 1,000 steps} points, on 100 labels by
{Convnet5, 100 labels, 2,000 steps minus Convnet5, 100 labels, 1,000 steps}, and Resnet9 by
{Resnet9, 100 labels, 2,000 steps minus Resnet9, 100 labels, 1,000 steps}. With 100 steps Convnet5
has {Convnet5, 20 labels, 100 steps}% on 20 labels, with 2,000
{Convnet5, 20 labels, 2,000 steps}%. A gain of students over labels alone means little before that.
Held-out labels, three seeds, one easy set of images; harder ones may want more."""
