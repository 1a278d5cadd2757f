"""Four forms of figure, forest, line, heatmap and pictures: data in, a matplotlib Figure out."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from . import tables
from .files import write_whole

# Okabe and Ito's palette, told apart with any colour vision; markers help in grey print.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
STYLES = [(BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (RED, "D"), (GREY, "v"), ("#CC79A7", "P")]
# For Korean class names, which matplotlib's own font lacks: the first of these that there is.
_KOREAN = (
    "Noto Sans CJK KR",
    "Noto Sans KR",
    "NanumGothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "AppleGothic",
)
_LABELS = {
    "accuracy": "test accuracy, %",
    "validation_accuracy": "accuracy on held-out labels, %",
    "pseudo_accuracy": "pseudo-labels that are right, %",
    "kept": "share of pseudo-labels kept",
    "fit": "accuracy on the noisy training images, %",
    "loss": "training loss",
}
_MOST_CELLS = 20  # a side: more would leave no room for numbers and names

P = ParamSpec("P")


def _form(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw with a Korean font at hand, and take no text between dollar signs for a formula."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        there = set(font_manager.get_font_names())
        families = [*mpl.rcParams["font.family"], *[name for name in _KOREAN if name in there][:1]]
        with mpl.rc_context({"font.family": families, "text.parse_math": False}):
            return draw(*args, **kwargs)

    return drawn


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG of 150 dots an inch, which appears whole or not at all."""
    content = BytesIO()
    figure.savefig(content, dpi=150, format="png")
    write_whole(Path(path), content.getvalue())
    return Path(path)


def _panel(
    title: str, subtitle: str, width: float, height: float, aside: str = ""
) -> tuple[Figure, Axes]:
    """A figure with one panel and, at its right, a text."""
    figure = Figure(figsize=(width + 3 * bool(aside), height), layout="constrained")
    panel, *side = figure.subfigures(
        1, 1 + bool(aside), squeeze=False, width_ratios=[width, 3][: 1 + bool(aside)]
    )[0]
    for part in side:
        part.text(0.02, 0.97, aside, va="top", fontsize=8)
    lines = [textwrap.fill(text, int(12.5 * width)) for text in (title, subtitle) if text]
    panel.suptitle("\n".join(lines), fontsize=10)
    axis = panel.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    return figure, axis


def _subtitle(rows: pd.DataFrame, interval: bool = True) -> str:
    """Data, seeds and device in words."""
    if rows.empty:
        raise ValueError("there are no rows to draw: train the runs first.")
    data = rows.title if "title" in rows else rows.data.map(tables.data_title)
    seeds = rows.groupby("variant").seed.nunique()
    few, many = seeds.min(), seeds.max()
    mean = f"mean of {many if few == many else f'{few} to {many}'} seeds"
    spread = "1 seed" if many == 1 else mean + " with 95% interval" * interval
    return f"{' and '.join(data.unique())}, {spread}, {' and '.join(rows.device.unique())}"


# ---------------------------------------------------------------------------------- forest


@_form
def forest(rows: pd.DataFrame, baseline: tables.Baseline = None, title: str = "") -> Figure:
    """Each variant's difference to its baseline, or without one its accuracy, with 95% intervals.

    rows, baseline: as :func:`~noisy_student.tables.compare` takes them. Variants stand in the order
    in which they first appear. Raises ValueError where there are no rows, or none of the baseline.
    """
    subtitle, found = _subtitle(rows), tables.compare(rows, baseline)
    value, half, sign = ("difference", "interval", "+") if baseline else ("accuracy", "spread", "")
    found, label = found.dropna(subset=[value]), _LABELS[tables.score_column(rows)]
    names = found.variant.tolist()
    if len(against := found.baseline.dropna().unique()) == 1:
        mean = tables.tenths(tables.scores(rows, against[0]).mean())
        label = label.replace(", %", f": points over “{against[0]}” ({mean}%)")
    elif baseline:
        label = label.replace(", %", ": points over its baseline")
        names = [f"{name}, over {own}" for name, own in zip(names, found.baseline, strict=True)]
    names = [textwrap.fill(name, 44) for name in names]
    heights = np.array([1 + 0.6 * name.count("\n") for name in names])
    places = heights / 2 - heights.cumsum()  # from the top down
    figure, axis = _panel(title, subtitle, 8, 0.3 * heights.sum() + 1.3)
    axis.errorbar(
        found[value],
        places,
        xerr=found[half].fillna(0),
        fmt="o",
        color=BLUE,
        capsize=3 if found[half].notna().any() else 0,
    )
    for place, mean, interval in zip(places, found[value], found[half], strict=True):
        axis.text(
            1.02,
            place,
            tables.with_interval(mean, interval, sign),
            fontsize=9,
            va="center",
            transform=axis.get_yaxis_transform(),
        )
    axis.set(yticks=places, yticklabels=names, xlabel=textwrap.fill(label, 56))
    axis.set_ylim(-heights.sum() - 0.2, 0.2)
    if baseline:
        axis.axvline(0, color=GREY, lw=1)
    else:
        axis.set_xlim(_within_percent(axis.get_xlim()))
    axis.grid(visible=False, axis="y")
    return figure


def _within_percent(limits: tuple[float, float]) -> tuple[float, float]:
    """Cut a point below 0 and above 100: the interval of two seeds may reach far beyond."""
    return max(limits[0], -1), min(limits[1], 101)


# ------------------------------------------------------------------------------------ line


@_form
def line(
    rows: pd.DataFrame,
    x: Mapping[str, float] | str,
    series: Mapping[str, str] | None = None,
    levels: Sequence[str] = (),
    *,
    y: str = "",
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    log: bool = False,
    ticks: Mapping[float, str] | None = None,
) -> Figure:
    """Means with their 95% intervals over x, a line a series; other variants as levels.

    x: by variant, which leaves out the others; or the name of a column, such as "epoch" of training
    histories. series: by variant, a line's name; without it all is one line, or over a column one a
    variant. levels: variants drawn across, each with the number of labels alone that gives as much:
    x is then the number of labels, of the first series. y: a column; empty: the test accuracy, or
    that on held-out labels. ticks: names of places on the x axis. Raises ValueError without rows.
    """
    over = isinstance(x, str)  # over a column
    drawn = rows if over else rows[rows.variant.isin([*x, *levels])]
    subtitle, column = _subtitle(drawn), y or tables.score_column(drawn)
    names = (
        drawn.variant.map(series)
        if series
        else drawn.variant
        if over
        else "labels alone" * bool(levels)
    )
    at = drawn[x] if isinstance(x, str) else drawn.variant.map(x)
    shown = pd.DataFrame({"x": at, "y": drawn[column], "series": names}).dropna()
    if shown.empty:
        raise ValueError(f"no row has both {column!r} and a place on the x axis: nothing to draw.")
    figure, axis = _panel(title, subtitle, 7.5, 4.8)
    first, styles = shown.series.iloc[0], cycle(STYLES)
    groups = shown.groupby("series", sort=False)  # set apart, or one would hide another's bars
    apart = 0 if log else 0.012 * (shown.x.max() - shown.x.min())
    for i, ((name, part), style) in enumerate(zip(groups, styles, strict=False)):
        _mean_line(axis, part, str(name), *style, apart * (i - (len(groups) - 1) / 2))
    alone = shown[shown.series == first].groupby("x").y
    curve = {int(count): part.tolist() for count, part in alone} if levels else {}
    for variant, style in zip(levels, styles, strict=False):
        _level(axis, variant, tables.scores(rows, variant), curve, *style)
    measure = "fit" if (x, column) == ("epoch", "accuracy") else column
    axis.set(xlabel=xlabel or (x if over else ""), ylabel=ylabel or _LABELS.get(measure, measure))
    _x_ticks(axis, shown.x, log, ticks)
    if "accuracy" in column:
        axis.set_ylim(_within_percent(axis.get_ylim()))
    if levels or first:
        figure.legend(
            frameon=False,
            fontsize=9,
            loc="outside lower center",
            ncols=1 if levels or shown.series.str.len().max() > 25 else 3,
        )
    return figure


def _mean_line(
    axis: Axes, part: pd.DataFrame, name: str, colour: str, marker: str, shift: float
) -> None:
    """Mean and interval of y at each x: shifted bars, or a band where there are many places."""
    found = {at: tables.mean_and_interval(values) for at, values in part.groupby("x").y}
    at, (mean, half) = np.array(list(found)), np.array(list(found.values())).T
    half, label = np.nan_to_num(half), textwrap.fill(name, 90)
    if len(at) > 20:
        axis.plot(at, mean, color=colour, label=label)
        axis.fill_between(at, mean - half, mean + half, color=colour, alpha=0.2, lw=0)
    else:
        axis.errorbar(
            at + shift,
            mean,
            half,
            fmt=f"{marker}-",
            color=colour,
            label=label,
            capsize=3 if half.any() else 0,
        )


def _level(
    axis: Axes,
    variant: str,
    values: pd.Series,
    curve: Mapping[int, Sequence[float]],
    colour: str,
    marker: str,
) -> None:
    """A variant's mean across the axis, and where the curve of labels alone reaches it."""
    found = tables.label_efficiency(curve, values.tolist())
    worth = tables.labels_in_words(found, curve)
    text = f"{variant}, {tables.tenths(values.mean())}%: as good as {worth} labels alone"
    axis.axhline(values.mean(), color=colour, ls="--", label=textwrap.fill(text, 90))
    if math.isfinite(found[0]):
        axis.plot(found[0], values.mean(), marker, color=colour, markersize=10)


def _x_ticks(axis: Axes, x: pd.Series, log: bool, ticks: Mapping[float, str] | None) -> None:
    """Named places; on a log scale those of the points, as far as they have room."""
    places = sorted(x.unique())
    if log:
        axis.set_xscale("log")
        kept = places[:1]
        for place in places:
            if place >= kept[-1] * (places[-1] / places[0]) ** 0.09:
                kept.append(place)
        ticks = ticks or {place: f"{place:,g}" for place in kept}
        axis.minorticks_off()
    if ticks:
        axis.set_xticks(list(ticks), list(ticks.values()))
    elif all(float(place).is_integer() for place in places):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))


# --------------------------------------------------------------------------------- heatmap


@_form
def heatmap(
    values: pd.DataFrame,
    title: str = "",
    subtitle: str = "",
    *,
    xlabel: str = "",
    ylabel: str = "",
    unit: str = "",
    decimals: int = 1,
    best: bool = False,
    aside: str = "",
    limits: tuple[float | None, float | None] = (None, None),
) -> Figure:
    """A frame as colours, with its index and columns as names; up to 20 x 20 cells their numbers.

    Cells that are NaN are hatched. best: frame the highest cell, or all that are as high. aside: a
    text beside it. limits: of the colours, those of the values where None.
    """
    cells, (down, across) = values.to_numpy(dtype=float), values.shape
    few = max(down, across) <= _MOST_CELLS
    width, height = (max(4.5, 2.4 + 0.55 * across), max(3, 1.8 + 0.4 * down)) if few else (7, 6)
    figure, axis = _panel(title, subtitle, width, height, aside)
    axis.grid(visible=False)
    axis.patch.set(hatch="////", facecolor="#EEEEEE", edgecolor="#AAAAAA")
    shown = axis.imshow(cells, cmap="cividis", aspect="auto", vmin=limits[0], vmax=limits[1])
    axis.figure.colorbar(shown, ax=axis, label=unit)
    axis.set(xlabel=xlabel, ylabel=ylabel, xticks=[], yticks=[])
    middle = sum(shown.get_clim()) / 2
    for (y, x), value in np.ndenumerate(cells):
        if few and not math.isnan(value):
            axis.text(
                x,
                y,
                f"{value + 1e-9:,.{decimals}f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value < middle else "black",
            )
        if best and value == np.nanmax(cells):  # above the axis lines
            axis.add_patch(
                Rectangle(
                    (x - 0.5, y - 0.5), 1, 1, fill=False, ec=RED, lw=3, clip_on=False, zorder=3
                )
            )
    if few:
        names = [_fit(str(name), 150, 9) for name in values.columns]
        axis.set_xticks(range(across), names, fontsize=9)
        if max(map(len, names)) * across > 60:  # no room side by side
            axis.tick_params("x", rotation=45)
            for label in axis.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        axis.set_yticks(range(down), [_fit(str(name), 150, 9) for name in values.index], fontsize=9)
    return figure


@_form
def grid(
    rows: pd.DataFrame,
    down: Mapping[str, float],
    across: Mapping[str, float],
    title: str = "",
    *,
    xlabel: str = "",
    ylabel: str = "",
) -> Figure:
    """The heatmap of a search over two settings: mean accuracy, the best framed.

    down, across: by variant, its value of the one and of the other, for the vertical and the
    horizontal axis; variants that lack either are left out. Raises ValueError without rows.
    """
    rows = rows[rows.variant.isin(set(down) & set(across))]
    column, subtitle = tables.score_column(rows), _subtitle(rows, interval=False)
    at = {"down": rows.variant.map(down), "across": rows.variant.map(across)}
    values = rows.assign(**at).pivot_table(index="down", columns="across", values=column)
    values.index, values.columns = (axis.map("{:g}".format) for axis in values.axes)
    return heatmap(
        values, title, subtitle, xlabel=xlabel, ylabel=ylabel, best=True, unit=_LABELS[column]
    )


@_form
def confusion(counts: np.ndarray, classes: Sequence[str], title: str = "") -> Figure:
    """The heatmap of where each true class went, in percent, and the largest confusions.

    counts: classes x classes, true class by predicted. A class without a test image is hatched.
    """
    rows, worst = tables.per_class(counts, classes), tables.confusions(counts, classes)
    right = f"{tables.tenths(100 * counts.trace() / counts.sum())}% right"
    if rows["count"].nunique() > 1:
        right += f", mean over the classes {tables.tenths(tables.balanced_accuracy(counts))}%"
    said = [
        f"{count} ({share:.0f}%): {true} as {predicted}"
        for true, predicted, count, share in worst.itertuples(index=False)
    ]
    untested = rows["class"][rows["count"] == 0].tolist()
    names = [f"{name} (no test image)" if name in untested else name for name in classes]
    if len(classes) > _MOST_CELLS and untested:
        more = f" and {len(untested) - 5} more" if len(untested) > 5 else ""
        said = [f"No test image (hatched): {', '.join(untested[:5])}{more}", "", *said]
    share = 100 * pd.DataFrame(counts, names, list(classes)).div(counts.sum(1), axis=0)
    aside = "\n".join(
        textwrap.fill(text, 46, subsequent_indent="   ", max_lines=2, placeholder="…")
        for text in ("Largest confusions, true as predicted", *said)
    )
    return heatmap(
        share,
        title,
        right,
        xlabel="predicted",
        ylabel="true",
        unit="% of the true class",
        decimals=0,
        aside=aside,
        limits=(0, 100),
    )


# -------------------------------------------------------------------------------- pictures


def _width(text: str, size: float) -> float:
    """How wide a text is drawn, in points."""
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=size), False)[0]


def _fit(text: str, points: float, size: float, most: int = 2) -> str:
    """The text broken so that no line is wider than ``points``; a line into at most ``most``."""
    for width in range(max(map(len, text.split("\n"))), 0, -1):
        broken = [textwrap.wrap(line, width) for line in text.split("\n")]
        lines = [
            part
            for parts in broken
            for part in (
                parts if len(parts) <= most else [*parts[: most - 1], f"{parts[most - 1][:-1]}…"]
            )
        ]
        if all(_width(part, size) <= points for part in lines):
            return "\n".join(lines)
    return ""


@_form
def pictures(
    images: Sequence[Tensor | None] | Tensor,
    captions: Sequence[str] = (),
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    title: str = "",
    across: int = 8,
    tile: float = 0.95,
) -> Figure:
    """Images, row by row, each below its caption.

    images: uint8, 3 x H x W each, or None for a gap. rows, columns: names at the left and above,
    which decide how many stand in a row; else ``across`` do. tile: an image's side in inches. Long
    names are broken, and cut short. Raises ValueError where the images do not fill the rows.
    """
    if rows and len(images) % len(rows):
        raise ValueError(f"{len(images)} images in {len(rows)} rows: fill the rows up with None.")
    across = len(images) // len(rows) if rows else len(columns) or min(across, max(1, len(images)))
    pitch, size = tile + 0.1, 8.0  # inches, points
    names = [_fit(name, 110, size) for name in rows]
    said = [_fit(text, 72 * (pitch - 0.04), size) for text in captions]
    heads = [_fit(name, 72 * (pitch - 0.04), size) for name in columns]
    left = max((_width(part, size) for name in names for part in name.split("\n")), default=0)
    left, lines = left / 72 + 0.15, max((text.count("\n") + 1 for text in said), default=0)
    width, high = left + across * pitch + 0.1, pitch + 0.14 * lines
    title = _fit(title, 72 * (width - 0.2), 10, most=4)
    top = 0.1 + 0.18 * (title.count("\n") + 1) * bool(title) + 0.15
    top += 0.14 * max((head.count("\n") + 1 for head in heads), default=0)
    figure = Figure(figsize=(width, top + high * math.ceil(len(images) / across)))
    axis = figure.add_axes((0, 0, 1, 1))  # in inches, from the upper left
    axis.set(xlim=(0, width), ylim=(figure.get_figheight(), 0), autoscale_on=False)
    axis.axis("off")
    axis.text(width / 2, 0.08, title, size=10, ha="center", va="top")
    for i, head in enumerate(heads):
        axis.text(left + (i + 0.5) * pitch, top - 0.05, head, size=size, ha="center", va="bottom")
    for i, image in enumerate(images):
        x, y = left + i % across * pitch, top + i // across * high + 0.14 * lines
        if rows and i % across == 0:
            axis.text(
                left - 0.08, y + tile / 2, names[i // across], size=size, ha="right", va="center"
            )
        if said:
            axis.text(x + pitch / 2, y - 0.03, said[i], size=size, ha="center", va="bottom")
        if image is not None:
            h, w = tile * np.array(image.shape[1:]) / max(image.shape[1:])
            x, y = x + (pitch - w) / 2, y + (tile - h) / 2
            axis.imshow(image.permute(1, 2, 0).cpu().numpy(), extent=(x, x + w, y + h, y))
    return figure


def by_class(images: Tensor, labels: Tensor, classes: int, count: int = 8) -> list[Tensor | None]:
    """For :func:`pictures`, a row a class: the first ``count`` images of each, or None."""
    rows = [images[(labels == label).nonzero().flatten()[:count]] for label in range(classes)]
    return [image for row in rows for image in (*row, *[None] * (count - len(row)))]


def mistakes(labels: Tensor, probabilities: Tensor, count: int = 16) -> Tensor:
    """Indices of the wrong predictions, the most confident first; labels: -1 where not known."""
    confidence, guess = probabilities.max(1)
    wrong = ((guess != labels) & (labels >= 0)).nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:count]


def captions(
    probabilities: Tensor, classes: Sequence[str], labels: Tensor | None = None
) -> list[str]:
    """ "95% cat" of each prediction, and below it, where it is wrong, "is dog"."""
    confidence, guess = probabilities.max(1)
    said = [f"{share:.0%} {classes[c]}" for share, c in zip(confidence, guess, strict=True)]
    truth = guess if labels is None else torch.where(labels < 0, guess, labels)
    return [
        f"{text}\nis {classes[t]}" if t != c else text
        for text, t, c in zip(said, truth, guess, strict=True)
    ]
