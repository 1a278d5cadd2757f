"""Do more short generations climb as far as fewer long ones?"""

from functools import partial

from noisy_student import Recipe, Run, figures

TEACHER = Recipe(epochs=200, n=2, m=10, dropout=0.2)
SHORT = Recipe(epochs=50, batch_size=512, lr=0.4, weight_decay=5e-4, n=1, m=5, dropout=0.2)
LONG = SHORT.replace(epochs=150, n=2, m=10)


def student(recipe: Recipe, repeat_labels: int, *teachers: Run) -> Run:
    return Run("Resnet9", 5000, recipe, teachers, flip_average=True, repeat_labels=repeat_labels)


RUNS = {"labels alone": Run("Resnet9", 5000, TEACHER)}
teachers = RUNS["labels alone"].members(3)
for generation in (1, 2, 3, 4, 5):
    run = RUNS[f"50 epochs, generation {generation}"] = student(SHORT, 3, *teachers)
    teachers = (run,)
teachers = RUNS["labels alone"].members(3)
for generation in (1, 2):
    run = RUNS[f"150 epochs, generation {generation}"] = student(LONG, 2, *teachers)
    teachers = run.members(3)

SEEDS = (0, 1, 2, 3, 4)
BASELINE = "labels alone"
FIGURE = partial(
    figures.line,
    x={name: run.generation for name, run in RUNS.items() if run.teachers},
    series={name: name.partition(",")[0] for name, run in RUNS.items() if run.teachers},
    xlabel="generation",
)
ANSWER = """Nearly: five generations of 50 epochs end at {50 epochs, generation 5}%
({50 epochs, generation 5 minus labels alone} over labels alone), two of 150 epochs, with more noise
and three teachers each, at {150 epochs, generation 2}%
({150 epochs, generation 2 minus labels alone}). These ends differ by
{150 epochs, generation 2 minus 50 epochs, generation 5}. The first generation is better by
{150 epochs, generation 1 minus 50 epochs, generation 1} when it is long. After the first short one
({50 epochs, generation 1 minus labels alone}) four more add
{50 epochs, generation 5 minus 50 epochs, generation 1} together. Five seeds, one GPU; length,
noise and the number of teachers change together, and the long setting was suggested by test
scores."""
