"""Does it work on small data: 100 labels of 8x8 digits, on a laptop?"""

from functools import partial

from noisy_student import Recipe, Run, figures

SUPERVISED = Recipe(
    epochs=40, min_steps=2000, batch_size=20, n=1, m=5, dropout=0.2, flip=False, crop=2
)
STUDENT = SUPERVISED.replace(epochs=8, min_steps=1000)


def student(model: str, *teachers: Run) -> Run:
    return Run(model, 100, STUDENT, teachers, repeat_labels=5)


CHAIN = ("Convnet5", "Convnet6", "Resnet6", "Resnet9")
RUNS = {f"{model} on labels alone": Run(model, 100, SUPERVISED) for model in CHAIN}
teachers = RUNS["Convnet5 on labels alone"].members(3)
for generation, model in enumerate((*CHAIN[1:], "Resnet9"), 1):
    run = RUNS[f"{model}, generation {generation}"] = student(model, *teachers)
    teachers = (run,)

DATA = "digits"
SEEDS = (0, 1, 2)
BASELINE = {name: f"{run.model} on labels alone" for name, run in RUNS.items() if run.teachers}
FIGURE = partial(figures.forest, baseline=BASELINE)
ANSWER = """Yes: over the same network on 100 labels alone, trained until more steps hardly help,
the last student gains {Resnet9, generation 4 minus Resnet9 on labels alone} points and has
{Resnet9, generation 4}%; Convnet6, taught by three Convnet5, gains
{Convnet6, generation 1 minus Convnet6 on labels alone}. Another CPU rounds otherwise, and gives
numbers that differ by about a point."""
