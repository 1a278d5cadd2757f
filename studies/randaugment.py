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
        pd.DataFrame(table),
        subtitle="CIFAR-10 (JPEG copy), 1 seed, 4,000 labels alone, scored on the 1,000 others",
        unit="accuracy on held-out labels, %",
    )


SEEDS = (0,)
ANSWER = """Stronger in longer training, where the larger network stands more of it, and
never as strong as can be. In 200 epochs (1, 10) is best for Convnet5
({Convnet5, 200 epochs, (1, 10)}%) and (3, 10) for Resnet9 ({Resnet9, 200 epochs, (3, 10)}%); in 25
epochs (1, 5) for Convnet5 ({Convnet5, 25 epochs, (1, 5)}%) and (1, 3) for Resnet9
({Resnet9, 25 epochs, (1, 3)}%). (5, 10), which the original chose, gives
{Convnet5, 200 epochs, (5, 10)}% and {Resnet9, 200 epochs, (5, 10)}% in 200 epochs,
{Convnet5, 25 epochs, (5, 10)}% and {Resnet9, 25 epochs, (5, 10)}% in 25. (n, m) are the number of
ops and the bound of their magnitudes. One seed and 1,000 held-out images: neighbouring cells differ
by chance."""
