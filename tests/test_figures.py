import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from noisy_student import Images, Recipe, Run, Store, figures, predict, run_all
from noisy_student.augment import OPS, apply_op
from noisy_student.report import last_student, plot_tables, student_figures, teacher_of
from noisy_student.runs import STUDENT_OPTIONS

CHAIN = ("Convnet5", "Convnet6", "Resnet6", "Resnet9")


def made_table(seeds: int = 3, title: str = "CIFAR-10") -> pd.DataFrame:
    """A table as run_experiment gives it, of invented accuracies."""
    rng, rows = np.random.default_rng(0), []

    def add(experiment: str, model: str, accuracy: float, seed: int, **more: object) -> None:
        row = {"experiment": experiment, "model": model, "teacher": "", "pseudo": "none", "generation": 0, "labels": 5000, "n": 2, "m": 10,
               "dropout": 0.5, "seed": seed, "device": "2-core CPU", "title": title, "accuracy": accuracy + rng.normal(),
               "validation_accuracy": math.nan, "pseudo_accuracy": math.nan, "kept": math.nan, "epochs": 3}
        rows.append(row | more | {"key": f"{len(rows)}"})

    for seed in range(seeds):
        for g, model in enumerate(CHAIN):
            for n, dropout in ((2, 0.5), (0, 0.5), (2, 0.0), (0, 0.0)):
                add("baselines", model, 60 + 3 * g + n + dropout, seed, n=n, dropout=dropout)
        for experiment, kinds in {"students": ("soft", "hard"), "generations": ("soft",)}.items():
            add(experiment, CHAIN[0], 62, seed)
            for kind in kinds:
                chain = [*CHAIN, "Resnet9", "Resnet9"] if experiment == "generations" else CHAIN
                for g in range(1, len(chain)):
                    add(experiment, chain[g], 64 + 3 * g, seed, pseudo=kind, generation=g, teacher=chain[g - 1], pseudo_accuracy=60 + 3 * g)
        for labels in (5000, 10000, 20000, 50000):
            add("label_counts", "Resnet9", 60 + 10 * math.log2(labels / 5000), seed, labels=labels)
        for n in (1, 5):
            for m in (2, 10):
                add("grid", "Convnet5", math.nan, seed, n=n, m=m, validation_accuracy=60 + n - m)
    return pd.DataFrame(rows)


def made_ablation(table: pd.DataFrame) -> pd.DataFrame:
    """Rows as of "student_ablation", invented, for the seeds of a table."""
    rows = []
    for seed in table.seed.unique():
        for accuracy, changed in ((60, {"pseudo": "none"}), (70, {}), (68.5, {"n": 0}), (71.25, {"pseudo": "hard"})):
            row = {**asdict(Recipe()), **{name: 1 for name in STUDENT_OPTIONS}, "pseudo": "soft", "kept": 1.0, "pseudo_accuracy": 80.0}
            rows.append({"experiment": "student_ablation", "model": "Resnet9", "seed": seed, "title": "CIFAR-10", "device": "2-core CPU",
                         "accuracy": accuracy + seed, **row, **changed})
    return pd.DataFrame(rows)


def texts(figure: Figure) -> str:
    import matplotlib.text

    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def drawn(figure: Figure, path: Path) -> np.ndarray:
    """The saved picture; it must not be empty."""
    figures.save(figure, path / "figure.png")
    with Image.open(path / "figure.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.std() > 5 and [p.name for p in path.iterdir()] == ["figure.png"]
    return pixels


def history(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame([{"key": key, "epoch": e, "loss": 2 / e, "accuracy": 10 * e, "lr": 0.1} for key in table.key for e in (1, 2, 3)])


FROM_TABLE: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "result1": figures.result1, "result2": figures.result2, "grid": figures.grid, "ablation": figures.ablation,
    "generations": figures.generations,
    "student_ablation": lambda table: figures.student_ablation(made_ablation(table)),
    "curves": lambda table: figures.curves(history(table), table),
}


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("name", FROM_TABLE)
def test_figure_says_data_seeds_and_device(name: str, seeds: int, tmp_path: Path) -> None:
    figure = FROM_TABLE[name](made_table(seeds))
    said = texts(figure)
    assert "CIFAR-10" in said and "2-core CPU" in said
    assert (f"mean of {seeds} seeds" if seeds > 1 else "1 seed") in said
    drawn(figure, tmp_path)


@pytest.mark.parametrize("name", FROM_TABLE)
def test_figure_of_an_empty_table(name: str) -> None:
    with pytest.raises(ValueError, match=r"run it first|run one first|is empty"):
        FROM_TABLE[name](made_table().iloc[:0])


def test_result1_prints_means_and_the_original() -> None:
    table = made_table()
    said = texts(figures.result1(table))
    soft = table[(table.experiment == "students") & (table.pseudo == "soft") & (table.model == "Resnet9")].accuracy.mean()
    assert f"{soft:.1f}" in said and "original, 1 run (hollow)" in said
    for number in (63.6, 65.2, 66.6, 67.7, 69.8, 70.6, 72.5, 69.6, 71.0, 72.6):
        assert f"{number:.1f}" in said
    hollow = [line for line in figures.result1(table).axes[0].lines if line.get_markerfacecolor() == "none" and len(line.get_xdata())]
    assert [list(line.get_ydata()) for line in hollow] == [[63.6, 65.2, 66.6, 67.7], [69.8, 70.6, 72.5], [69.6, 71.0, 72.6]]
    assert "original" not in texts(figures.result1(made_table(title="8x8 digits")))
    assert "original" not in texts(figures.result1(made_table(title="cifar10-folder")))


@pytest.mark.parametrize("mean, said", [(72.55, "72.6"), (66.35, "66.4"), (68.25, "68.3"), (68.24, "68.2")])
def test_means_are_rounded_as_by_hand(mean: float, said: str) -> None:
    table = made_table(1, title="8x8 digits")  # the original, beside CIFAR-10, has a 72.6 of its own
    table.loc[(table.experiment == "baselines") & (table.model == "Convnet5") & (table.n == 2) & (table.dropout == 0.5), "accuracy"] = mean
    assert said in texts(figures.result1(table)).split()


def bars(axis: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Means and half intervals drawn, by the legend's label."""
    found = {}
    for container in axis.containers:
        line, _, (intervals,) = container
        ends = [segment[:, 1] for segment in intervals.get_segments()]
        found[str(container.get_label())] = list(line.get_ydata()), [(high - low) / 2 for low, high in ends]
    return found


def students_t(groups: Iterable[pd.Series]) -> tuple[object, object]:
    """Means and half widths of their 95% intervals, by SciPy."""
    values = list(groups)
    halves = [stats.t.interval(0.95, len(v) - 1, v.mean(), stats.sem(v))[1] - v.mean() for v in values]
    return pytest.approx([v.mean() for v in values]), pytest.approx(halves)


def students_t_ends(groups: Iterable[pd.Series]) -> tuple[list[float], list[float]]:
    low, high = zip(*(stats.t.interval(0.95, len(v) - 1, v.mean(), stats.sem(v)) for v in groups), strict=True)
    return list(low), list(high)


def test_result1_and_ablation_show_means_and_intervals() -> None:
    table = made_table()
    plain, students = (table[table.experiment == name] for name in ("baselines", "students"))
    noisy = plain[(plain.n == 2) & (plain.dropout == 0.5)]
    found = bars(figures.result1(table).axes[0])
    assert found["supervised"] == students_t(noisy[noisy.model == m].accuracy for m in CHAIN)
    for kind in ("hard", "soft"):
        ours = students[students.pseudo == kind]
        assert found[f"{kind} student"] == students_t(ours[ours.model == m].accuracy for m in CHAIN[1:])
    again = ours[ours.model == "Resnet9"].assign(generation=4, accuracy=90.0)
    assert bars(figures.result1(pd.concat([table, again])).axes[0])["soft student"][0][-1] == 90, "of two in a chain the last"
    found = bars(figures.ablation(table).axes[0])
    for label, (n, dropout) in {"all noise": (2, 0.5), "no RandAugment": (0, 0.5), "no dropout": (2, 0), "neither": (0, 0)}.items():
        part = plain[(plain.n == n) & (plain.dropout == dropout)]
        assert found[label] == students_t(part[part.model == m].accuracy for m in CHAIN)


def test_generations_show_means_and_intervals() -> None:
    table = made_table()
    table = table[table.experiment == "generations"]
    accuracy, labels = (bars(axis) for axis in figures.generations(table).axes)
    assert accuracy["soft student"] == students_t(group for _, group in table.groupby("generation").accuracy)
    assert labels["soft student"][0] == pytest.approx([60 + 3 * g for g in range(1, 6)])
    ticks = [[tick.get_text() for tick in axis.get_xticklabels()] for axis in figures.generations(table).axes]
    assert ticks[1] == ticks[0][1:] and ticks[0][:2] == ["0\nConvnet5", "1\nConvnet6"], "generation 0 has no pseudo-labels"
    (alone,) = figures.generations(table.assign(pseudo_accuracy=math.nan)).axes  # someone's own images: no hidden labels to compare with
    assert bars(alone) == accuracy


def test_result2_shows_the_curve_and_where_the_students_cross_it() -> None:
    table = made_table()
    counts = table[table.experiment == "label_counts"].groupby("labels").accuracy.mean()
    soft = table[(table.experiment == "generations") & (table.generation == 5)].accuracy.mean()
    table.loc[table.generation == 5, "accuracy"] -= soft - 68  # within the curve, 60 to 93
    axis = figures.result2(table).axes[0]
    curve, (crossing,) = axis.lines[0], [line for line in axis.lines if line.get_marker() == "^"]
    assert list(curve.get_xdata()) == list(counts.index) and list(curve.get_ydata()) == pytest.approx(list(counts))
    low, high = students_t_ends(group.accuracy for _, group in table[table.experiment == "label_counts"].groupby("labels"))
    edges = axis.collections[0].get_paths()[0].vertices
    assert {round(y, 6) for y in edges[:, 1]} == {round(y, 6) for y in [*low, *high]}
    (level,) = {float(line.get_ydata()[0]) for line in axis.lines if str(line.get_label()).startswith("soft student")}  # type: ignore[index]
    assert level == pytest.approx(68)
    wanted = 2 ** np.interp(68, counts, np.log2(counts.index))
    assert (crossing.get_xdata()[0], crossing.get_ydata()[0]) == pytest.approx((wanted, 68), rel=1e-3)  # type: ignore[index]


def test_axes_of_accuracies_end_at_0_and_100_percent() -> None:
    """Two seeds far apart have an interval that no accuracy can reach."""
    wide = made_table(2)
    wide.loc[wide.seed == 0, ["accuracy", "pseudo_accuracy"]] -= 40
    for draw in (figures.result1, figures.ablation, figures.result2, figures.generations):
        for axis in draw(wide).axes:
            low, high = axis.get_ylim()
            assert -1 <= low < 60 < high <= 101, draw  # all means are near 60, and in sight


def test_the_originals_curve_stands_beside_its_own_model_alone() -> None:
    table = made_table()
    others = table.assign(model=table.model.where(table.experiment != "label_counts", "Convnet5"))
    drawn = [[line.get_label() for line in figures.result2(rows).axes[0].lines] for rows in (table, others)]
    assert "original, supervised" in drawn[0] and "original, supervised" not in drawn[1]


def test_curves_show_each_generations_mean() -> None:
    table = made_table()
    rows = table[(table.experiment == "students") & (table.pseudo != "hard")]
    runs = history(table)
    runs["loss"] = runs.key.astype(int) / runs.epoch
    loss, accuracy = figures.curves(runs, table).axes
    for generation, line in enumerate(loss.lines):
        keys = rows[rows.generation == generation].key.astype(int)
        assert list(line.get_ydata()) == pytest.approx([keys.mean() / e for e in (1, 2, 3)])
    assert len(loss.lines) == 4 and list(accuracy.lines[0].get_ydata()) == [10, 20, 30]


def test_grid_shows_every_cell_and_frames_the_best() -> None:
    figure = figures.grid(made_table())
    assert [t.get_text() for t in figure.axes[0].texts] == ["59.0", "51.0", "63.0", "55.0"]
    axis = figure.axes[0]
    assert (axis.get_xlabel()[0], axis.get_ylabel()[0]) == ("m", "n")
    assert [[t.get_text() for t in labels] for labels in (axis.get_xticklabels(), axis.get_yticklabels())] == [["2", "10"], ["1", "5"]]
    (frame,) = figure.axes[0].patches
    assert (frame.get_x(), frame.get_y()) == (-0.5, 0.5)  # m = 2, n = 5
    tied = figures.grid(made_table().assign(validation_accuracy=60.0)).axes[0].patches
    assert {(p.get_x(), p.get_y()) for p in tied} == {(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)}


def test_student_ablation_shows_differences() -> None:
    figure = figures.student_ablation(made_ablation(made_table(1)))
    assert [t.get_text() for t in figure.axes[0].texts] == ["-1.5", "+1.3"] and "unchanged student's 70.0%" in texts(figure)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["n=0", "pseudo=hard"]
    axis = figures.student_ablation(made_ablation(made_table(2)).assign(accuracy=[60, 70, 68.5, 71.25, 61, 71, 70.5, 72.25])).axes[0]
    (container,) = axis.containers
    line, _, (intervals,) = container
    at = dict(zip((t.get_text() for t in axis.get_yticklabels()), axis.get_yticks(), strict=True))
    assert dict(zip(line.get_ydata(), line.get_xdata(), strict=True)) == {at["n=0"]: -1, at["pseudo=hard"]: 1.25}
    ends = [segment[:, 0] for segment in intervals.get_segments()]
    assert [(high - low) / 2 for low, high in ends] == pytest.approx([12.706 * 0.5, 0], abs=0.01)  # -1.5 and -0.5; Student's t, 1 degree


def test_every_column_that_student_ablation_reads_is_named_where_it_is_missing(tmp_path: Path) -> None:
    """The figure itself says which it reads."""
    whole = pd.read_csv(Path(__file__).parent.parent / "results" / "cifar10-jpeg-quick-parts" / "runs.csv")
    read = set()
    for name in whole:
        rows = whole.drop(columns=name)
        try:
            figures.student_ablation(rows)
        except (KeyError, AttributeError, ValueError):
            read.add(name)
            with pytest.raises(ValueError, match=f"the table has no column {name!r}"):
                plot_tables(rows, pd.DataFrame(), tmp_path)
    assert {"threshold", "kept", "crop", "seed"} < read and not list(tmp_path.iterdir())


def test_curves_of_a_model_that_teaches_itself_are_apart() -> None:
    table = made_table(1)
    table.loc[table.experiment == "students", "model"] = "Resnet9"
    figure = figures.curves(history(table), table)
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert len(set(labels)) == len(labels) == table[table.experiment == "students"].generation.nunique()


def test_original_figures_are_the_reports() -> None:
    assert sum(figures.ORIGINAL["none"].values()) == pytest.approx(263.1)
    assert figures.ORIGINAL_BY_LABELS[5000] == figures.ORIGINAL["none"]["Resnet9"]


def test_result2_beyond_the_measured_labels(tmp_path: Path) -> None:
    table = made_table()
    table.loc[table.experiment == "students", "accuracy"] += 50
    assert "more than 50,000" in texts(figures.result2(table))


def test_ops_show_what_the_ops_give(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    figure = figures.ops(image, apply_op, OPS, (-10, 0, 10))
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert len(shown) == 14 * 3
    said = texts(figure)
    assert all(name in said for name in OPS)
    inverted = (255 - image[0]).permute(1, 2, 0).numpy()
    assert any(np.array_equal(pixels, inverted) for pixels in shown), "Solarize at 10"
    for axis in figure.axes:
        if (name := axis.get_ylabel()):  # at -10, left of its row
            assert np.array_equal(axis.images[0].get_array(), apply_op(image, name, -10)[0].permute(1, 2, 0).numpy()), name
    drawn(figure, tmp_path)


def test_confusion_shows_shares_of_the_true_class(tmp_path: Path) -> None:
    figure = figures.confusion(np.array([[8, 2], [1, 3]]), ("cat", "dog"), "title")
    assert [t.get_text() for t in figure.axes[0].texts] == ["80", "20", "25", "75"]
    assert "78.6% right" in texts(figure)
    assert (figure.axes[0].get_ylabel(), figure.axes[0].get_xlabel()) == ("true", "predicted")
    drawn(figure, tmp_path)
    drawn(figures.confusion(np.eye(100) + 1, tuple(map(str, range(100))), "many"), tmp_path)


def test_mistakes_are_the_most_confident_ones(tmp_path: Path) -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.05, 0.95], [0.4, 0.6], [0.2, 0.8]])
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 16, 16)
    figure = figures.mistakes(images, torch.tensor([0, 0, 0, 1]), probabilities, ("cat", "dog"), "t")
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["dog 95%\nis cat", "dog 60%\nis cat"]
    assert [int(axis.images[0].get_array()[0, 0, 0]) for axis in figure.axes if axis.images] == [1, 2]
    drawn(figure, tmp_path)


def test_samples_of_many_classes_are_those_of_the_first_twenty() -> None:
    figure = figures.samples(torch.zeros(30, 3, 16, 16, dtype=torch.uint8), torch.arange(30), tuple(map(str, range(30))), "t", per_class=1)
    assert len(figure.axes) == 20 and "the first 20 of 30 classes" in texts(figure)


def test_the_last_student_is_the_soft_one_and_its_teacher_that_before_it() -> None:
    table = made_table()
    last = last_student(table)
    teacher = teacher_of(last, table)
    assert [(r.model, r.pseudo, r.generation, r.seed) for r in (last, teacher)] == [("Resnet9", "soft", 3, 0), ("Resnet6", "soft", 2, 0)]
    hard = last_student(table[table.pseudo != "soft"])
    assert (hard.pseudo, hard.generation) == ("hard", 3) and teacher_of(hard, table).pseudo == "hard"
    first = table[(table.experiment == "students") & (table.generation == 1) & (table.pseudo == "soft")].iloc[0]
    assert (teacher_of(first, table).model, teacher_of(first, table).generation) == ("Convnet5", 0)


def test_curves_without_students_name_none() -> None:
    table = made_table(1)
    table = table[(table.experiment == "students") & (table.pseudo == "none")]
    history = pd.DataFrame({"key": table.key.iloc[0], "epoch": [1, 2], "loss": [2.0, 1.0], "accuracy": [10.0, 20.0]})
    assert "student" not in texts(figures.curves(history, table))


def test_samples_and_balance(tmp_path: Path) -> None:
    labels = torch.tensor([0, 1, 1, -1, 1])
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 16, 16) * 50
    figure = figures.samples(images, labels, ("cat", "dog"), "t", per_class=3)
    shown = [[int(i.get_array()[0, 0, 0]) for i in axis.images] for axis in figure.axes]
    assert shown == [[0], [], [], [50], [100], [200]]
    drawn(figure, tmp_path)
    figure = figures.class_balance({"labelled": labels}, ("cat", "dog"), "t")
    assert [p.get_height() for p in figure.axes[0].patches] == [1, 3]
    four = figures.class_balance(dict.fromkeys("abcd", labels), ("cat", "dog"), "t")
    assert [[p.get_height() for p in axis.patches] for axis in four.axes] == [[1, 3]] * 4
    drawn(figure, tmp_path)


def test_hard_and_soft_lines_are_their_own() -> None:
    table = made_table()
    table = table[table.experiment == "students"]
    for axis in figures.generations(table).axes[:1]:
        for kind in ("hard", "soft"):
            part = table[table.pseudo.isin([kind, "none"])]
            assert bars(axis)[f"{kind} student"] == students_t(group for _, group in part.groupby("generation").accuracy)


def test_confusion_is_the_students_and_mistakes_are_its_teachers(tiny: tuple[Images, Images], tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, tuple[object, ...]] = {}
    for name in ("confusion", "mistakes"):
        monkeypatch.setattr(figures, name, lambda *a, name=name: drawn.update({name: a}))
    teacher, test, store = Run("Convnet5", 20, Recipe(epochs=1, batch_size=10, lr=1e-9)), tiny[1], Store(tmp_path)
    student = Run("Convnet6", 20, Recipe(epochs=15, batch_size=10, n=0, lr=0.02), teacher, "soft", repeat_labels=5)
    table = run_all([teacher, student], *tiny, store, device="cpu", progress=False)
    student_figures(table.assign(experiment="students"), store, test, "cpu")
    own, its = (store.record(key)["result"]["confusion"] for key in table.key[::-1])
    shown, labels, guess = drawn["mistakes"][:3]
    assert np.asarray(drawn["confusion"][0]).tolist() == own != its
    assert torch.equal(shown, test.images) and torch.equal(labels, test.labels)  # type: ignore[arg-type]
    assert torch.equal(guess, predict(store.model(table.key[0]), test.images, device="cpu"))  # type: ignore[arg-type]
