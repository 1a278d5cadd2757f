"""Which steps lead from the original's recipe to this one?"""

from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from noisy_student import RandAugment, Recipe, Run, figures


class WithoutEqualize(RandAugment):
    """RandAugment whose Equalize does nothing when drawn."""

    inert = RandAugment.inert | {"Equalize"}


@dataclass(frozen=True)
class Original(Recipe):
    """A recipe with the two faults of the original's code that matter most."""

    evaluation_mode: bool = False  # from the second epoch on: no dropout, batch norm stands still
    inert_equalize: bool = False

    def is_noisy(self, epoch: int) -> bool:
        return epoch == 0 or not self.evaluation_mode

    def augmentation(self) -> RandAugment:
        return WithoutEqualize(self.n, self.m) if self.inert_equalize else super().augmentation()


ORIGINAL = Original(
    batch_size=100,
    lr=0.001,
    schedule="constant",
    n=5,
    m=10,
    flip=False,
    crop=0,
    dropout=0.5,
    evaluation_mode=True,
    inert_equalize=True,
)
OURS = {  # by number of epochs: batch size, RandAugment
    25: (64, {"n": 1, "m": 5}),
    100: (128, {"n": 2, "m": 10}),
    1000: (128, {"n": 2, "m": 10}),
}
COLUMNS = [(network, epochs) for epochs in OURS for network in ("Convnet5", "Resnet9")]


def steps(epochs: int) -> dict[str, Recipe]:
    """Each recipe is that of the step before with one thing changed."""
    batch_size, less_noise = OURS[epochs]
    cycle = {"lr": 0.1, "schedule": "triangular", "batch_size": batch_size}
    changes: dict[str, dict[str, Any]] = {
        "the original's recipe": {},
        "training mode in every epoch": {"evaluation_mode": False},
        "Equalize does something": {"inert_equalize": False},
        "learning rate up to 0.1 and down": cycle,
        "flip and crop": {"flip": True, "crop": 4},
        "less RandAugment": less_noise,
        "less dropout": {"dropout": 0.2},
    }
    recipe, recipes = ORIGINAL.replace(epochs=epochs), {}
    for step, change in changes.items():
        recipe = recipe.replace(**change)
        recipes[step] = recipe if recipe.evaluation_mode or recipe.inert_equalize else plain(recipe)
    return recipes


def plain(recipe: Original) -> Recipe:
    """A recipe without faults is like any other."""
    return Recipe(**{field.name: getattr(recipe, field.name) for field in fields(Recipe)})


RUNS, BASELINE = {}, {}
for network, epochs in COLUMNS:
    before = None
    for step, recipe in steps(epochs).items():
        name = f"{network}, {epochs:,} epochs: {step}"
        RUNS[name] = Run(network, 5000, recipe)
        if before:
            BASELINE[name] = before
        before = name
SEEDS = {name: (0,) if "1,000 epochs" in name else (0, 1, 2) for name in RUNS}


def FIGURE(rows: pd.DataFrame) -> Figure:
    """Mean accuracy, step by network and length."""
    means = rows.groupby("variant").accuracy.mean()
    values = pd.DataFrame(
        {
            f"{network}, {epochs:,} epochs": {
                step: means[f"{network}, {epochs:,} epochs: {step}"] for step in steps(epochs)
            }
            for network, epochs in COLUMNS
        }
    )
    return figures.heatmap(
        values,
        subtitle="CIFAR-10 (JPEG copy), 3 seeds (1,000 epochs: 1); each step keeps those above it",
        unit="test accuracy, %",
    )


ANSWER = """The learning rate above all, then less RandAugment. In 100 epochs Resnet9
goes from {Resnet9, 100 epochs: the original's recipe}% to
{Resnet9, 100 epochs: less dropout}%. A rate that rises to 0.1 and falls, in place of a constant
0.001, brings
{Resnet9, 100 epochs: learning rate up to 0.1 and down
minus Resnet9, 100 epochs: Equalize does something}
points, (2, 10) in place of (5, 10)
{Resnet9, 100 epochs: less RandAugment minus Resnet9, 100 epochs: flip and crop}. Mending the
original's two faults costs points while the rate leaves training far from done: evaluation mode
after the first epoch had ended dropout. In its own 1,000 epochs the original's recipe comes to
{Resnet9, 1,000 epochs: the original's recipe}%, ours to
{Resnet9, 1,000 epochs: less dropout}%. Labels alone; three seeds on CPUs, of 1,000 epochs one
(Resnet9 on a GPU)."""
