"""What do RandAugment and dropout give on labels alone?"""

import pandas as pd
from matplotlib.figure import Figure

from noisy_student import Recipe, Run, figures

NETWORKS = ("Convnet5", "Convnet6", "Resnet6", "Resnet9")
BOTH = Recipe(epochs=200, n=2, m=10, dropout=0.2)
NOISES = {
    "flip and crop": BOTH.replace(n=0, dropout=0.0),
    "and dropout": BOTH.replace(n=0),
    "and RandAugment": BOTH.replace(dropout=0.0),
    "and both": BOTH,
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
    seeds = f"mean of {rows.seed.nunique()} seeds, 5,000 labels alone"
    values = pd.DataFrame(table, NETWORKS, list(NOISES))
    return figures.heatmap(values, subtitle=seeds, unit="test accuracy, %")


ANSWER = """RandAugment gives two to four points, dropout beside it costs most networks some:
to flip and crop RandAugment adds {Convnet5, and RandAugment minus Convnet5, flip and crop}
(Convnet5), {Convnet6, and RandAugment minus Convnet6, flip and crop} (Convnet6),
{Resnet6, and RandAugment minus Resnet6, flip and crop} (Resnet6) and
{Resnet9, and RandAugment minus Resnet9, flip and crop} points (Resnet9). Dropout on top of it
changes that by {Convnet5, and both minus Convnet5, and RandAugment},
{Convnet6, and both minus Convnet6, and RandAugment},
{Resnet6, and both minus Resnet6, and RandAugment} and
{Resnet9, and both minus Resnet9, and RandAugment}, the last within chance. One strength of
each, (2, 10) and 0.2, 200 epochs, five seeds, one GPU; dropout stayed in the recipe all the
same, as part of the method."""
