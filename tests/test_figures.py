import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import matplotlib.text
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats
from test_tables import rows_of

from noisy_student import figures
from noisy_student.augment import OPS, apply_op
from noisy_student.tables import label_efficiency, labels_in_words

PLAIN, LONG = [70.0, 71.0, 72.5], "a student with a long name " * 5


def texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def boxes(figure: Figure) -> dict[str, np.ndarray]:
    """Where each text is drawn, in pixels: x0, y0, x1, y1, after the layout."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    outside = set()
    for axis in (a for panel in figure.axes for a in (panel.xaxis, panel.yaxis)):
        low, high = sorted(axis.get_view_interval())
        hidden = [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
        outside |= {label for tick in hidden for label in (tick.label1, tick.label2)}
    found: dict[str, np.ndarray] = {}
    for text in figure.findobj(matplotlib.text.Text):
        if text.get_text().strip() and text.get_visible() and text not in outside:
            found[f"{len(found)} {text.get_text()}"] = text.get_window_extent(renderer).extents
    return found


def check_texts(figure: Figure) -> None:
    """No text is drawn over another, or out of the picture."""
    found = boxes(figure)
    width, height = figure.get_size_inches() * figure.dpi
    for i, (name, a) in enumerate(found.items()):
        assert a[0] >= -1 and a[2] <= width + 1 and a[1] >= -1 and a[3] <= height + 1, name
        for other, b in list(found.items())[:i]:
            over = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
            assert over.min() < 1, f"{name!r} over {other!r}"


def drawn(figure: Figure, path: Path) -> None:
    """The saved picture must not be empty."""
    figures.save(figure, path / "figure.png")
    with Image.open(path / "figure.png") as image:
        assert np.asarray(image.convert("L")).std() > 5
    assert [p.name for p in path.iterdir()] == ["figure.png"]


def bars(axis: Axes, across: bool = False) -> list[tuple[list[float], list[float]]]:
    """Means and half intervals of each series drawn; across: along the x axis."""
    found = []
    for container in axis.containers:
        line, _, (intervals,) = container
        ends = [segment[:, 0 if across else 1] for segment in intervals.get_segments()]
        means = line.get_xdata() if across else line.get_ydata()
        found.append((list(means), [(high - low) / 2 for low, high in ends]))
    return found


def students_t(groups: Iterable[Iterable[float]]) -> tuple[object, object]:
    """Means and half widths of their 95% intervals, by SciPy."""
    values = [np.array(list(group)) for group in groups]
    halves = [
        stats.t.interval(0.95, len(v) - 1, v.mean(), stats.sem(v))[1] - v.mean() for v in values
    ]
    return pytest.approx([v.mean() for v in values]), pytest.approx(halves)


# -------------------------------------------------------------------------------------- all


def test_importing_changes_nothing_of_the_process() -> None:
    code = (
        "import matplotlib as m; before = dict(m.rcParams); import noisy_student.figures; "
        "assert dict(m.rcParams) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def forms(rows: pd.DataFrame) -> dict[str, Figure]:
    at = {name: 100.0 * i for i, name in enumerate(dict.fromkeys(rows.variant), 1)}
    first = next(iter(at))
    return {
        "forest": figures.forest(rows, first),
        "accuracies": figures.forest(rows),
        "line": figures.line(rows, at, title="title"),
        "grid": figures.grid(rows, at, at),
        "levels": figures.line(rows, at, levels=[first]),
        "own": figures.forest(rows, {name: first for name in at}),
    }


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_figures_say_data_seeds_and_device(seeds: int, tmp_path: Path) -> None:
    rng, before = np.random.default_rng(0), dict(mpl.rcParams)
    rows = rows_of({name: list(rng.normal(75, 1, seeds)) for name in ("a", "b", "c $x_1$ $")})
    for name, figure in forms(rows).items():
        said = texts(figure)
        assert "CIFAR-10" in said and "2-core CPU" in said
        assert ("1 seed" if seeds == 1 else f"mean of {seeds} seeds") in said, name
        check_texts(figure)
        drawn(figure, tmp_path)
    assert dict(mpl.rcParams) == before
    more = pd.concat([rows, rows_of({"d": [70.0] * 6})])
    assert f"mean of {seeds} to 6 seeds" in texts(figures.forest(more))
    assert "photos, " in texts(figures.forest(rows.assign(title="photos"))), "rows of run_variants"


@pytest.mark.parametrize(
    "draw",
    [
        figures.forest,
        lambda rows: figures.line(rows, {"a": 1}),
        lambda rows: figures.grid(rows, {}, {}),
    ],
)
def test_a_figure_of_no_rows_is_refused(draw: object) -> None:
    with pytest.raises(ValueError, match="there are no rows to draw"):
        draw(rows_of({"a": [1.0]}).iloc[:0])  # type: ignore[operator]
    with pytest.raises(ValueError, match="no row has both 'kept' and a place"):
        figures.line(rows_of({"a": [1.0]}), {"a": 1}, y="kept")


@pytest.mark.parametrize("count", [2, 30])
def test_texts_of_long_names_do_not_meet(count: int) -> None:
    rows = rows_of({f"{i} {LONG}": [70.0 + i, 71, 72] for i in range(count)})
    for name, figure in forms(rows).items():
        if name not in ("grid", "line", "levels"):
            check_texts(figure)
    few = rows_of({f"{i} {LONG}": [70.0 + i, 71, 72] for i in range(3)})
    at = {name: i for i, name in enumerate(few.variant.unique(), 1)}
    check_texts(figures.line(few, at, {name: name for name in at}))
    check_texts(figures.line(few, dict(list(at.items())[:2]), levels=list(at)[2:], title=LONG))


# ---------------------------------------------------------------------------------- forest


def test_forest_shows_paired_differences_and_their_intervals() -> None:
    rows = rows_of({"plain": PLAIN, "b": [74.0, 76.5, 75.0], "c": [69.0, 70.5, 71.5]})
    axis = figures.forest(rows, "plain").axes[0]
    gains = [np.subtract(v, PLAIN) for v in ([74.0, 76.5, 75.0], [69.0, 70.5, 71.5])]
    assert bars(axis, across=True) == [students_t(gains)]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["b", "c"]
    assert list(axis.get_yticks()) == sorted(axis.get_yticks(), reverse=True), "from the top down"
    half = stats.sem(gains[0]) * stats.t.ppf(0.975, 2)
    assert next(t.get_text() for t in axis.texts) == f"+{gains[0].mean():.1f} ± {half:.1f}"
    assert "points over “plain” (71.2%)" in axis.get_xlabel().replace("\n", " ")
    single = figures.forest(rows[rows.seed == 0], "plain").axes[0]
    assert [t.get_text() for t in single.texts] == ["+4.0", "-1.0"]


def test_forest_of_accuracies_and_of_own_baselines() -> None:
    rows = rows_of({"plain": PLAIN, "b": [74.0, 76.5, 75.0], "c": [69.0, 70.5, 71.5]})
    axis = figures.forest(rows).axes[0]
    assert bars(axis, across=True) == [
        students_t(g.accuracy for _, g in rows.groupby("variant", sort=False))
    ]
    assert axis.get_xlabel() == "test accuracy, %"
    held = rows.assign(validation_accuracy=rows.accuracy, accuracy=math.nan)
    assert figures.forest(held).axes[0].get_xlabel() == "accuracy on held-out labels, %"
    axis = figures.forest(rows, {"b": "plain", "c": "b"}).axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["b, over plain", "c, over b"]


def test_axes_of_accuracies_end_at_0_and_100_percent() -> None:
    """Two seeds far apart have an interval that no accuracy can reach."""
    wide = rows_of({"a": [40.0, 80.0], "b": [41.0, 82.0]})
    for low, high in (
        figures.forest(wide).axes[0].get_xlim(),
        figures.line(wide, {"a": 1, "b": 2}).axes[0].get_ylim(),
    ):
        assert -1 <= low < 60 < high <= 101


# ------------------------------------------------------------------------------------ line


def test_line_shows_means_and_intervals_of_each_series() -> None:
    values = {
        "alone": PLAIN,
        "soft 1": [74, 75, 77],
        "soft 2": [77, 77, 78],
        "hard 1": [73, 75, 75],
    }
    at = {"alone": 0, "soft 1": 1, "soft 2": 2, "hard 1": 1}
    series = {name: name.split()[0] for name in at}
    figure = figures.line(rows_of(values), at, series, ticks={0: "0\nConvnet5", 1: "1", 2: "2"})
    axis = figure.axes[0]
    lines = [[PLAIN], [values["soft 1"], values["soft 2"]], [values["hard 1"]]]
    assert bars(axis) == [students_t(groups) for groups in lines]
    assert [c.get_label() for c in axis.containers] == ["alone", "soft", "hard"]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["0\nConvnet5", "1", "2"]
    places = [list(container[0].get_xdata()) for container in axis.containers]
    assert places[1] == pytest.approx([1, 2], abs=0.1) and places[1][0] != places[2][0]
    rows = rows_of(values).assign(pseudo_accuracy=80.0)
    other = figures.line(rows, at, y="pseudo_accuracy").axes[0]
    assert other.get_ylabel() == "pseudo-labels that are right, %"


def test_levels_cross_the_curve_where_label_efficiency_says() -> None:
    curve = {5000: [60.0, 61, 62], 10_000: [70.0, 71, 72], 50_000: [80.0, 81, 82]}
    student = [65.0, 66, 67.5]
    rows = rows_of({f"on {n}": v for n, v in curve.items()} | {"student": student, "no": [1, 2, 3]})
    figure = figures.line(rows, {f"on {n}": n for n in curve}, levels=["student"], log=True)
    axis = figure.axes[0]
    labels, low, high = label_efficiency(curve, student)
    (crossing,) = [line for line in axis.lines if line.get_marker() == "s"]
    assert (crossing.get_xdata()[0], crossing.get_ydata()[0]) == pytest.approx((labels, 66.1667))
    wanted = np.exp(np.interp(np.mean(student), [61, 71, 81], np.log(list(curve))))
    assert labels == pytest.approx(wanted)
    assert bars(axis) == [students_t(curve.values())] and axis.get_xscale() == "log"
    assert f"as good as {labels_in_words((labels, low, high), curve)} labels" in texts(figure)
    assert [t.get_text() for t in axis.get_xticklabels()] == ["5,000", "10,000", "50,000"]
    beyond = rows.assign(accuracy=rows.accuracy.where(rows.variant != "student", 90.0))
    figure = figures.line(beyond, {f"on {n}": n for n in curve}, levels=["student"], log=True)
    assert "more than 50,000" in texts(figure)


def test_line_draws_training_histories() -> None:
    rows = pd.DataFrame(
        [
            {
                "variant": name,
                "seed": seed,
                "epoch": e,
                "loss": (seed + k) / e,
                "accuracy": 10.0 * e,
                "device": "2-core CPU",
                "title": "8x8 digits",
            }
            for k, name in enumerate(("teacher", "student"), 1)
            for seed in (0, 1)
            for e in range(1, 31)
        ]
    )
    figure = figures.line(rows, "epoch", y="loss")
    axis = figure.axes[0]
    for k, line in enumerate(axis.lines, 1):
        assert list(line.get_ydata()) == pytest.approx([(k + 0.5) / e for e in range(1, 31)])
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("epoch", "training loss")
    assert {"teacher", "student"} <= set(texts(figure).split("\n"))
    label = figures.line(rows, "epoch").axes[0].get_ylabel()
    assert label == "accuracy on the noisy training images, %"


# --------------------------------------------------------------------------------- heatmap


def test_grid_shows_every_cell_and_frames_the_best() -> None:
    values = {(n, m): 60.0 + n - m for n in (1, 5) for m in (2, 10)}
    rows = rows_of({f"({n}, {m})": [math.nan] * 2 for n, m in values})
    rows["validation_accuracy"] = [v + s for v in values.values() for s in (-1, 1)]
    down, across = ({f"({n}, {m})": (n, m)[k] for n, m in values} for k in (0, 1))
    figure = figures.grid(rows, down, across, xlabel="m", ylabel="n")
    axis = figure.axes[0]
    assert [t.get_text() for t in axis.texts] == ["59.0", "51.0", "63.0", "55.0"]
    names = [
        [t.get_text() for t in labels]
        for labels in (axis.get_xticklabels(), axis.get_yticklabels())
    ]
    assert names == [["2", "10"], ["1", "5"]]
    (frame,) = axis.patches
    assert (frame.get_x(), frame.get_y()) == (-0.5, 0.5)  # m = 2, n = 5
    assert "accuracy on held-out labels" in texts(figure) and "mean of 2 seeds," in texts(figure)
    tied = figures.grid(rows.assign(validation_accuracy=60.0), down, across).axes[0].patches
    assert len({(p.get_x(), p.get_y()) for p in tied}) == 4
    (number,) = figures.heatmap(pd.DataFrame([[72.55]])).axes[0].texts
    assert number.get_text() == "72.6", "as in tables; the float is 72.5499..."


def test_confusion_shows_shares_of_the_true_class(tmp_path: Path) -> None:
    figure = figures.confusion(np.array([[8, 2], [1, 3]]), ("cat", "dog"), "title")
    axis = figure.axes[0]
    assert [t.get_text() for t in axis.texts] == ["80", "20", "25", "75"]
    said = texts(figure)
    assert "78.6% right, mean over the classes 77.5%" in said
    assert "2 (20%): cat as dog\n1 (25%): dog as cat" in said
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("true", "predicted")
    check_texts(figure)
    drawn(figure, tmp_path)


def test_a_class_without_a_test_image_is_marked() -> None:
    counts = np.array([[8, 2, 0], [0, 0, 0], [1, 0, 3]])
    axis = figures.confusion(counts, ("cat", "dog", "frog")).axes[0]
    assert "dog\n(no test image)" in [
        t.get_text().replace(" (", "\n(") for t in axis.get_yticklabels()
    ]
    assert len(axis.texts) == 6, "no numbers in its row"
    assert np.isnan(np.ma.filled(axis.images[0].get_array(), np.nan)[1]).all()


@pytest.mark.parametrize("name", ["{}", "class number {} with a very long name indeed"])
@pytest.mark.parametrize("count", [4, 10, 100])
def test_confusions_of_many_classes_and_long_names(count: int, name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 5, (count, count)) + 50 * np.eye(count, dtype=int)
    counts[[1, 3]] = 0
    counts[2, 0] = 40
    figure = figures.confusion(counts, [name.format(i) for i in range(count)], "many")
    found = boxes(figure)
    if name == "{}" or count == 100:  # slanted names have boxes that overlap
        check_texts(figure)
    width = figure.get_figwidth() * figure.dpi
    assert all(b[0] >= -1 and b[1] >= -1 and b[2] <= width + 1 for b in found.values())
    said = " ".join(texts(figure).split())
    assert f"40 ({4000 / counts[2].sum():.0f}%): {name.format(2)}" in said
    assert len(figure.axes[0].texts) == (0 if count > 20 else count * (count - 2))
    if count > 20:
        assert f"No test image (hatched): {name.format(1)}, " in said


# -------------------------------------------------------------------------------- pictures


def shown(figure: Figure) -> list[int]:
    return [int(image.get_array()[0, 0, 0]) for image in figure.axes[0].images]


def numbered(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 3, 16, 16)


def test_pictures_show_what_the_ops_give(tmp_path: Path) -> None:
    image = torch.randint(
        0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    given = [apply_op(image, name, m)[0] for name in OPS for m in (-10, 0, 10)]
    figure = figures.pictures(given, rows=OPS, columns=["-10", "0", "10"], title="ops", tile=0.6)
    axis = figure.axes[0]
    for pixels, wanted in zip(axis.images, given, strict=True):
        assert np.array_equal(pixels.get_array(), wanted.permute(1, 2, 0).numpy())
    places = np.array([pixels.get_extent() for pixels in axis.images]).reshape(len(OPS), 3, 4)
    assert (np.diff(places[:, :, 0], axis=1) > 0).all() and (np.diff(places[:, 0, 2]) > 0).all()
    names = {t.get_text(): t.get_position() for t in axis.texts}
    assert [names[op][1] for op in OPS] == pytest.approx(places[:, 0, 2:].mean(1))
    check_texts(figure)
    drawn(figure, tmp_path)


def test_mistakes_are_the_most_confident_ones() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.05, 0.95], [0.2, 0.8], [0.1, 0.9]])
    labels = torch.tensor([0, 0, 0, 1, -1])
    worst = figures.mistakes(labels, probabilities)
    assert worst.tolist() == [2, 1] and figures.mistakes(labels, probabilities, 1).tolist() == [2]
    said = figures.captions(probabilities[worst], ("cat", "dog"), labels[worst])
    assert said == ["95% dog\nis cat", "60% dog\nis cat"]
    assert figures.captions(probabilities[3:], ("cat", "dog"), labels[3:]) == ["80% dog", "90% dog"]
    figure = figures.pictures(numbered(5)[worst], said, title="t")
    assert shown(figure) == [2, 1] and set(said) <= {t.get_text() for t in figure.axes[0].texts}


def test_rows_of_classes_have_gaps_where_images_are_few() -> None:
    labels = torch.tensor([0, 1, 1, -1, 1])
    given = figures.by_class(numbered(5), labels, 2, count=2)
    figure = figures.pictures(given, rows=("cat", "dog"), title="t")
    assert shown(figure) == [0, 1, 2] and len(given) == 4
    places = [image.get_extent() for image in figure.axes[0].images]
    assert places[0][0] == places[1][0] < places[2][0] and places[1][2] == places[2][2]
    with pytest.raises(ValueError, match="3 images in 2 rows: fill the rows up"):
        figures.pictures(given[:3], rows=("cat", "dog"))


@pytest.mark.parametrize(
    "name",
    [
        "automobile",
        "W" * 60,
        "a_name_of_many_words_without_space",
        "a name of many words " * 4,
        "$x_1$",
    ],
)
def test_long_class_names_never_meet(name: str) -> None:
    said = [f"95% {name}\nis {name}"] * 16
    check_texts(figures.pictures(numbered(16), said, title=name * 5))
    check_texts(figures.pictures(numbered(8), rows=[name] * 4, columns=[name] * 2, title=name))


def test_pictures_that_are_not_square_keep_their_shape() -> None:
    (image,) = figures.pictures(torch.zeros(1, 3, 10, 20, dtype=torch.uint8)).axes[0].images
    left, right, bottom, top = image.get_extent()
    assert (right - left) == pytest.approx(2 * (bottom - top))


def test_korean_names_get_a_korean_font_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    there = font_manager.get_font_names()
    monkeypatch.setattr(
        font_manager, "get_font_names", lambda: [*there, "Malgun Gothic", "NanumGothic"]
    )
    figure = figures.pictures(numbered(1), ["cat"])
    (text,) = [t for t in figure.axes[0].texts if t.get_text() == "cat"]
    assert text.get_fontfamily() == [*mpl.rcParams["font.family"], "NanumGothic"]
