"""What do RandAugment and dropout give on labels alone?"""

import pandas as pd
from matplotlib.figure import Figure

from noisy_student import Recipe, Run, figures

NETWORKS = ("Convnet5", "Convnet6", "Resnet6", "Resnet9")
BOTH = Recipe(epochs=200, n=2, m=10, dropout=0.2)
NOISES = {
    "flip and crop": BOTH.replace(n=0, dropout=0.0),
    "with dropout": BOTH.replace(n=0),
    "with RandAugment": BOTH.replace(dropout=0.0),
    "with both": BOTH,
}
RUNS = {
    f"{network}, {noise}": Run(network, 5000, recipe)
    for network in NETWORKS
    for noise, recipe in NOISES.items()
}

SEEDS = (0, 1, 2, 3, 4)
BASELINE = {
    name: f"{run.model}, flip and crop"
    for name, run in RUNS.items()
    if not name.endswith("flip and crop")
}


def FIGURE(rows: pd.DataFrame) -> Figure:
    """Mean accuracy, network by noise."""
    means = rows.groupby("variant").accuracy.mean()
    table = [[means[f"{network}, {noise}"] for noise in NOISES] for network in NETWORKS]
    seeds = f"CIFAR-10 (JPEG copy), mean of {rows.seed.nunique()} seeds, 5,000 labels alone"
    values = pd.DataFrame(table, NETWORKS, list(NOISES))
    return figures.heatmap(values, subtitle=seeds, unit="test accuracy, %")


ANSWER = """RandAugment gives all four networks some points, Resnet9 the most; dropout
beside it takes some from three. To flip and crop RandAugment adds
{Convnet5, with RandAugment minus Convnet5, flip and crop} (Convnet5),
{Convnet6, with RandAugment minus Convnet6, flip and crop} (Convnet6),
{Resnet6, with RandAugment minus Resnet6, flip and crop} (Resnet6) and
{Resnet9, with RandAugment minus Resnet9, flip and crop} points (Resnet9). Dropout on top of it
changes that by {Convnet5, with both minus Convnet5, with RandAugment},
{Convnet6, with both minus Convnet6, with RandAugment},
{Resnet6, with both minus Resnet6, with RandAugment} and
{Resnet9, with both minus Resnet9, with RandAugment}. One strength of each, (2, 10) and 0.2, in 200
epochs; five seeds, one GPU. Dropout stayed in the recipe: these are test scores, and it is part of
the method."""
