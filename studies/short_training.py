"""Is the method a good use of short training?"""

from functools import partial

from noisy_student import Recipe, Run, figures

SHORT = Recipe(epochs=25, batch_size=64, n=1, m=5, dropout=0.2)
STUDENT = SHORT.replace(epochs=9)
CHAIN = ("Convnet5", "Convnet6", "Resnet6", "Resnet9")


def student(model: str, pseudo: str, *teachers: Run) -> Run:
    return Run(
        model,
        5000,
        STUDENT,
        teachers,
        pseudo=pseudo,
        threshold=0.8,
        flip_average=True,
        repeat_labels=3,
    )


LONGER = "Resnet9 on labels alone for 100 epochs"
RUNS = {LONGER: Run("Resnet9", 5000, Recipe(epochs=100, n=2, m=10, dropout=0.2))}
RUNS |= {f"{model} on labels alone for 25 epochs": Run(model, 5000, SHORT) for model in CHAIN}
for pseudo in ("soft", "hard"):
    teachers = RUNS["Convnet5 on labels alone for 25 epochs"].members(3)
    for model in CHAIN[1:]:
        run = RUNS[f"{model}, {pseudo} labels"] = student(model, pseudo, *teachers)
        teachers = (run,)
run = RUNS["Resnet9, soft labels"]
for generation in (4, 5, 6, 7, 8):
    run = RUNS[f"Resnet9, generation {generation}"] = student("Resnet9", "soft", run)

SEEDS = dict.fromkeys(RUNS, (0, 1, 2, 3, 4)) | dict.fromkeys(
    [LONGER, *(f"Resnet9, generation {generation}" for generation in (5, 6, 7, 8))], (0, 1, 2)
)
# Only Resnet9 was trained on labels alone for long enough to compare with.
BASELINE = {name: LONGER for name, run in RUNS.items() if run.model == "Resnet9" and name != LONGER}
FIGURE = partial(figures.forest, baseline=BASELINE)
ANSWER = """No: longer training on labels alone is as good, and cheaper. Resnet9 has
{Resnet9 on labels alone for 100 epochs}% after 100 epochs, with more noise, which see less
than half as many images as the chain up to its Resnet9 of soft labels. That one has
{Resnet9, soft labels}% (of hard labels {Resnet9, hard labels}%), its first further generation
{Resnet9, generation 4}% and the last of five {Resnet9, generation 8}%
({Resnet9, generation 8 minus Resnet9 on labels alone for 100 epochs} over the 100 epochs). Gains
over 25 epochs on labels alone ({Resnet9 on labels alone for 25 epochs}%) would look larger, but
these are undertrained. Five seeds, of the 100 epochs and the last generations three, on several
two-core CPUs."""
