"""How strong should RandAugment be on labels alone?"""

import pandas as pd
from matplotlib.figure import Figure

from noisy_student import Recipe, Run, figures

NETWORKS, OPS, MAGNITUDES = ("Convnet5", "Resnet9"), (1, 2, 3, 5, 8, 11, 14), (1, 3, 5, 7, 9, 10)
RECIPES = {
    200: Recipe(epochs=200, batch_size=128, dropout=0.2),
    25: Recipe(epochs=25, batch_size=64, dropout=0.2),
}
CELLS = {
    (network, epochs, n, m): f"{network}, {epochs} epochs, ({n}, {m})"
    for network in NETWORKS
    for epochs in RECIPES
    for n in OPS
    for m in MAGNITUDES
}
RUNS = {
    name: Run(network, 5000, RECIPES[epochs].replace(n=n, m=m), holdout=0.2)
    for (network, epochs, n, m), name in CELLS.items()
}


def FIGURE(rows: pd.DataFrame) -> Figure:
    """A quarter for each network and length: number of ops across, magnitude down."""
    found = rows.set_index("variant").validation_accuracy
    table: dict[str, dict[str, float]] = {}
    for (network, epochs, n, m), name in CELLS.items():
        table.setdefault(f"{network}, n = {n}", {})[f"{epochs} epochs, m = {m}"] = found[name]
    return figures.heatmap(
        pd.DataFrame(table), subtitle="1 seed, 4,000 labels alone, scored on the 1,000 others",
        unit="accuracy on held-out labels, %",
    )  # fmt: skip


SEEDS = (0,)
ANSWER = """Stronger for the larger network and in longer training, and never as strong as can be.
In 200 epochs Convnet5 is best with one op of magnitude up to 10
({Convnet5, 200 epochs, (1, 10)}%) and Resnet9 with three ({Resnet9, 200 epochs, (3, 10)}%); in 25
epochs Convnet5 with (1, 5) ({Convnet5, 25 epochs, (1, 5)}%) and Resnet9 with (1, 3)
({Resnet9, 25 epochs, (1, 3)}%). The original's choice, (5, 10), has
{Convnet5, 200 epochs, (5, 10)}%, {Resnet9, 200 epochs, (5, 10)}%, {Convnet5, 25 epochs, (5, 10)}%
and {Resnet9, 25 epochs, (5, 10)}%. All are scored on labels held out of the 5,000, not on the test
images. One seed and 1,000 held-out images: neighbouring cells differ by chance."""
