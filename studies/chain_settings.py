"""What decides whether a chain of growing networks gains?"""

from functools import partial

from noisy_student import Recipe, Run, figures

SUPERVISED = Recipe(epochs=200, n=2, m=10, dropout=0.2)
STUDENT = Recipe(epochs=50, batch_size=512, lr=0.4, weight_decay=5e-4, n=1, m=5, dropout=0.2)
NETWORKS = ("Convnet6", "Resnet6", "Resnet9")


def chain(
    name: str,
    recipe: Recipe,
    teachers: tuple[Run, ...],
    *,
    threshold: float = 0.0,
    repeat_labels: int = 3,
    members: int = 1,
    networks: tuple[str, ...] = NETWORKS,
) -> dict[str, Run]:
    """A student of each network, of which as many ``members`` teach the next one."""
    runs = {}
    for network in networks:
        run = runs[f"{network}, {name}"] = Run(
            network,
            5000,
            recipe,
            teachers,
            threshold=threshold,
            flip_average=True,
            repeat_labels=repeat_labels,
        )
        teachers = run.members(members)
    return runs


first = Run("Convnet5", 5000, SUPERVISED).members(3)
LONGER = SUPERVISED.replace(epochs=400, dropout=0.0)
longer_trained = Run("Convnet5", 5000, LONGER).members(5)
LONG = STUDENT.replace(epochs=150)
ALONE = SUPERVISED.replace(dropout=0.0)  # which costs labels alone some points (supervised_noise)
RUNS = {f"{network} on labels alone": Run(network, 5000, ALONE) for network in NETWORKS}
RUNS |= chain("confidence filter", STUDENT, first, threshold=0.8)
RUNS |= chain(
    "filter, longer-trained teachers, 150 epochs, no dropout",
    LONG.replace(dropout=0.0),
    longer_trained,
    threshold=0.8,
    repeat_labels=2,
    members=3,
)
RUNS |= chain("no filter", STUDENT, first)
RUNS |= chain("no filter, 150 epochs", LONG, first, repeat_labels=2, networks=("Convnet6",))
RUNS |= chain(
    "no filter, 150 epochs, more noise", LONG.replace(n=2, m=10), first, repeat_labels=2, members=3
)

SEEDS = (0, 1, 2)
BASELINE = {name: f"{run.model} on labels alone" for name, run in RUNS.items() if run.teachers}
FIGURE = partial(figures.forest, baseline=BASELINE)
ANSWER = """The confidence filter, first of all. Without it no student is better than
labels alone, and Resnet9, which learns from a teacher worse than itself, differs by
{Resnet9, no filter minus Resnet9 on labels alone}; the filter lifts it by
{Resnet9, confidence filter minus Resnet9, no filter}. Five Convnet5 trained for longer as first
teachers, longer students and no dropout give it
{Resnet9, filter, longer-trained teachers, 150 epochs, no dropout minus Resnet9, confidence filter}
more; which of these does it is not known. More noise harms a small student: (2, 10) in place of
(1, 5) changes Convnet6 by
{Convnet6, no filter, 150 epochs, more noise minus Convnet6, no filter, 150 epochs}. Three seeds,
one GPU; settings were tried one after the other with test scores known, the filter among them."""
