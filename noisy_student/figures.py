"""Every figure: a function that takes a tidy table (or arrays) and returns a matplotlib Figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .files import write_whole
from .statistics import mean_and_interval, part_gains, worth, worth_text

# Okabe and Ito's palette, told apart with any colour vision; markers tell the kinds apart in grey print.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
KINDS = {"none": ("supervised", GREY, "o"), "hard": ("hard student", ORANGE, "s"), "soft": ("soft student", BLUE, "^")}
ORIGINAL = {  # the original experiment: CIFAR-10 test accuracy in percent, one run each
    "none": {"Convnet5": 63.6, "Convnet6": 65.2, "Resnet6": 66.6, "Resnet9": 67.7},
    "hard": {"Convnet6": 69.8, "Resnet6": 70.6, "Resnet9": 72.5},
    "soft": {"Convnet6": 69.6, "Resnet6": 71.0, "Resnet9": 72.6},
}
ORIGINAL_BY_LABELS = {5000: 67.7, 6000: 69.5, 7000: 71.0, 8000: 72.0, 9000: 73.1, 10000: 74.2, 20000: 80.8,
                      30000: 84.0, 40000: 84.9, 50000: 85.4}


# For Korean class names, which matplotlib's own font lacks: the first of these that the system has.
_KOREAN = ("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo", "AppleGothic")
mpl.rcParams["font.family"] = [*mpl.rcParams["font.family"], *[name for name in _KOREAN if name in font_manager.get_font_names()][:1]]


# -------------------------------------------------------------------------------------------------------- helpers


def _plain(text: str) -> str:
    """The text as it is: between two dollar signs matplotlib would set mathematics."""
    return text.replace("$", r"\$")


def _rows(table: pd.DataFrame, *experiments: str) -> pd.DataFrame:
    """The rows of these experiments; ValueError where one is missing."""
    if "experiment" not in table or table.empty:
        raise ValueError("the table is empty or has no column 'experiment': make it with run_experiment().")
    for name in experiments:
        if name not in set(table.experiment):
            raise ValueError(f"the table has no rows of the experiment {name!r}: run it first.")
    return table[table.experiment.isin(experiments)]


def _subtitle(rows: pd.DataFrame, interval: bool = True) -> str:
    seeds = rows.seed.nunique()
    spread = f"mean of {seeds} seeds{' with 95% interval' if interval else ''}" if seeds > 1 else "1 seed"
    return f"{' and '.join(rows.title.unique())}, {spread}, {' and '.join(rows.device.unique())}"


def _panels(count: int, title: str, width: float = 4.5, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(6.5, width * count), height), layout="constrained")
    figure.suptitle(_plain(title), fontsize=11)
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _means(rows: pd.DataFrame, by: str, column: str = "accuracy") -> tuple[list[Any], np.ndarray, np.ndarray]:
    """The values of ``by``; for each the mean of a column, and half of its 95% interval (0 for one seed)."""
    found = {value: mean_and_interval(group) for value, group in rows.dropna(subset=[column]).groupby(by, sort=by != "model")[column]}
    mean, half = np.array(list(found.values())).reshape(-1, 2).T
    return list(found), mean, np.nan_to_num(half)


def _tenths(value: float) -> str:
    """With one decimal, halves up as by hand: 72.55, which a float holds as 72.5499..., is 72.6."""
    return f"{value + 1e-9:.1f}"


def _within_percent(axis: Axes) -> None:
    """Cut the axis a point below 0 and above 100, which leaves room for a marker: the interval of two seeds may reach far beyond."""
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, -1), min(high, 101))


def _by_model(title: str, groups: dict[str, tuple[pd.DataFrame, str, str, dict[str, float]]]) -> Figure:
    """Test accuracy by model. groups: label -> (rows, colour, marker, the original's accuracies, drawn hollow)."""
    groups = {label: group for label, group in groups.items() if len(group[0])}
    rows = pd.concat([group[0] for group in groups.values()])
    models = list(dict.fromkeys(rows.model))
    figure, (axis,) = _panels(1, f"{title}, {rows.labels.iloc[0]:,} labels\n{_subtitle(rows)}", 9)
    for i, (label, (part, colour, marker, original)) in enumerate(groups.items()):
        names, mean, half = _means(part, "model")
        places = [models.index(name) + 0.25 * (i - (len(groups) - 1) / 2) for name in names]
        hollow = {x: original[name] for x, name in zip(places, names, strict=True) if name in original}
        axis.errorbar(places, mean, half, fmt=marker, color=colour, capsize=4 if half.any() else 0, markersize=8, label=label)
        axis.plot(list(hollow), list(hollow.values()), marker, mfc="none", mec=colour, markersize=8)
        for x, ours in zip(places, mean, strict=True):  # the higher of the two has its number above, the other below
            pair = sorted([(ours, "black"), *([(hollow[x], GREY)] if x in hollow else [])], reverse=True)
            for (value, ink), side in zip(pair, (1, -1), strict=False):
                axis.annotate(_tenths(value), (x, value), (6, 8 * side), color=ink, textcoords="offset points", va="center", fontsize=8)
    if any(original for *_, original in groups.values()):
        axis.plot([], [], "o", mfc="none", mec=GREY, label="original, 1 run (hollow)")
    axis.set(xticks=range(len(models)), xticklabels=models, ylabel="test accuracy, %", xlim=(-0.5, len(models) - 0.35))
    axis.margins(y=0.15)
    _within_percent(axis)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(frameon=False, fontsize=9, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.1))
    return figure


def _tiles(rows: int, columns: int, title: str, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """Axes for rows x columns images, without ticks and frames."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(_plain(title), fontsize=11)
    return figure, figure.subplots(rows, columns, squeeze=False, subplot_kw={"xticks": [], "yticks": [], "frameon": False})


def _pixels(image: Tensor) -> np.ndarray:
    return image.cpu().permute(1, 2, 0).numpy()


def _cifar10(rows: pd.DataFrame) -> bool:
    """Whether the original's figures belong beside these: on CIFAR-10, and where its 5,000 labels are among these."""
    return all(t == "CIFAR-10" or t.startswith("CIFAR-10 ") for t in rows.title) and 5000 in set(rows.labels)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG of 150 dots an inch, which appears whole or not at all."""
    content = BytesIO()
    figure.savefig(content, dpi=150, format="png")
    write_whole(Path(path), content.getvalue())
    return Path(path)


# -------------------------------------------------------------------------------------------------------- results


def result1(table: pd.DataFrame) -> Figure:
    """Accuracy of each model: supervised with all noise, student with hard and with soft pseudo-labels.

    A model that a chain has twice is shown by its last student.
    """
    rows = _rows(table, "baselines", "students")
    plain = rows[rows.experiment == "baselines"].drop_duplicates(["model", "seed"])
    students = rows[(rows.experiment == "students") & (rows.pseudo != "none")].sort_values("generation", kind="stable")
    rows = pd.concat([plain, students.drop_duplicates(["model", "pseudo", "seed"], keep="last")])
    original = ORIGINAL if _cifar10(rows) else {}
    return _by_model("Noisy Student by model", {label: (rows[rows.pseudo == kind], colour, marker, original.get(kind, {}))
                                                for kind, (label, colour, marker) in KINDS.items()})


def result2(table: pd.DataFrame) -> Figure:
    """Supervised accuracy by number of labels; the last students as lines, and the labels that they are worth."""
    rows = _rows(table, "label_counts")
    counts, mean, half = _means(rows, "labels")
    figure, (axis,) = _panels(1, f"What the unlabelled images are worth\n{_subtitle(rows)}", 7.5, 5)
    axis.plot(counts, mean, "o-", color=GREY, label=f"{rows.model.iloc[0]} supervised")
    axis.fill_between(counts, mean - half, mean + half, color=GREY, alpha=0.2)
    if _cifar10(rows) and rows.model.iloc[0] == "Resnet9":
        axis.plot(*zip(*ORIGINAL_BY_LABELS.items(), strict=True), "o--", mfc="none", color=GREY, lw=1, label="original, supervised")
        counts += [count for count in ORIGINAL_BY_LABELS if count > counts[-1]]
    for found in worth(table).to_dict("records"):
        label, colour, marker = KINDS[found["pseudo"]]
        text = worth_text(found["worth"], found["low"], found["high"], rows)
        axis.axhline(found["student"], color=colour, ls="--" if found["pseudo"] == "hard" else "-",
                     label=f"{label}, generation {found['generation']}, {_tenths(found['student'])}%: worth {text} labels")
        if math.isfinite(found["worth"]):
            axis.plot(found["worth"], found["student"], marker, color=colour, markersize=11)
    axis.set(xscale="log", xlabel="labelled images", ylabel="test accuracy, %")
    ticks = counts[:1]
    for count in counts:
        if count >= 1.24 * ticks[-1]:  # nearer ones would write over each other
            ticks.append(count)
    axis.set_xticks(ticks, [f"{c:,}" for c in ticks])
    axis.minorticks_off()
    _within_percent(axis)
    axis.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center")
    return figure


def grid(table: pd.DataFrame) -> Figure:
    """Validation accuracy by RandAugment's n and m, a heatmap a model; the best cell is framed, or all that are as good."""
    rows = _rows(table, "grid")
    models = list(rows.model.unique())
    figure, axes = _panels(len(models), f"RandAugment(n, m): accuracy on held-out labels, %\n{_subtitle(rows, interval=False)}", 5.5, 4.6)
    for axis, model in zip(axes, models, strict=True):
        cells = rows[rows.model == model].pivot_table(index="n", columns="m", values="validation_accuracy")
        values = cells.to_numpy()
        axis.imshow(values, cmap="cividis", aspect="auto", origin="lower")
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for (y, x), value in np.ndenumerate(values):
            if value == value:
                axis.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=8, color="white" if value < middle else "black")
        for y, x in np.argwhere(values == np.nanmax(values)):
            axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, ec=RED, lw=3, clip_on=False, zorder=3))  # above the axes
        axis.set(title=model, xlabel="m, bound of the magnitudes", ylabel="n, ops an image", xticks=range(len(cells.columns)),
                 xticklabels=[f"{m:g}" for m in cells.columns], yticks=range(len(cells)), yticklabels=cells.index)
    return figure


def ablation(table: pd.DataFrame) -> Figure:
    """Labels alone: what RandAugment and dropout are each worth."""
    rows = _rows(table, "baselines").drop_duplicates("key")
    rows = rows[rows.model.isin(list(rows[(rows.n == 0) | (rows.dropout == 0)].model) or list(rows.model))]
    augmented, dropped = rows.n > 0, rows.dropout > 0
    return _by_model("Noise in supervised training", {
        "all noise": (rows[augmented & dropped], BLUE, "o", {}), "no RandAugment": (rows[~augmented & dropped], ORANGE, "s", {}),
        "no dropout": (rows[augmented & ~dropped], GREEN, "^", {}), "neither": (rows[~augmented & ~dropped], GREY, "D", {}),
    })


def student_ablation(table: pd.DataFrame) -> Figure:
    """What each changed part of the student gains or costs, in points."""
    rows, found = _rows(table, "student_ablation"), part_gains(table)
    title = f"A {rows.model.iloc[0]} taught by {rows.model.iloc[0]}, with one part changed\n{_subtitle(rows)}"
    figure, (axis,) = _panels(1, title, 8, 0.35 * len(found) + 1.5)
    half, places = found.interval.fillna(0), range(len(found), 0, -1)
    axis.axvline(0, color=GREY, lw=1)
    axis.errorbar(found.difference, places, xerr=half, fmt="o", color=BLUE, capsize=4 if half.any() else 0)
    for x, y in zip(found.difference, places, strict=True):
        axis.annotate(f"{'+' if x >= 0 else '-'}{_tenths(abs(x))}", (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    unchanged = rows[rows.pseudo != "none"].drop_duplicates("seed").accuracy.mean()
    axis.set(yticks=places, yticklabels=found.changed, xlabel=f"test accuracy over the unchanged student's {_tenths(unchanged)}%, points")
    axis.margins(x=0.1, y=0.1)
    axis.grid(axis="x", alpha=0.3)
    return figure


def curves(history: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Loss and accuracy on the noisy training images by epoch, for the chain's supervised model and its students, if possible soft."""
    rows = _rows(table, "students")
    kind = next((kind for kind in ("soft", "hard") if kind in set(rows.pseudo)), "none")
    rows = rows[rows.pseudo.isin([kind, "none"])]
    joined = history.merge(rows[["key", "generation"]].drop_duplicates("key"), on="key")
    students = "" if kind == "none" else f", {kind} students"
    figure, axes = _panels(2, f"Training on noisy images{students}\n{_subtitle(rows, interval=False)}")
    chain = rows[["generation", "model"]].drop_duplicates()
    styles = [(GREY, "-"), (GREEN, "--"), (ORANGE, "-."), (BLUE, ":"), (RED, "-")]
    for axis, column, label in zip(axes, ("loss", "accuracy"), ("loss", "training accuracy, %"), strict=True):
        for (generation, model), (colour, style) in zip(chain.itertuples(index=False), cycle(styles), strict=False):
            mean = joined[joined.generation == generation].groupby("epoch")[column].mean()
            axis.plot(mean.index, mean, style, color=colour, lw=2, label=f"{generation}: {model}")
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=9, title="generation: model", title_fontsize=9)
    return figure


def generations(table: pd.DataFrame) -> Figure:
    """Test accuracy, and, where it is known, that of the pseudo-labels learnt from, along the generations; 0 is trained on labels alone."""
    rows = table[table.experiment.isin(["students", "generations"])] if "experiment" in table else table
    if rows.empty:
        raise ValueError("the table has no rows of the experiments 'students' and 'generations': run one first.")
    rows = rows.drop_duplicates("key")
    shown = {"accuracy": "test accuracy, %", "pseudo_accuracy": "pseudo-label accuracy, %"}
    if rows.pseudo_accuracy.isna().all():  # of images whose labels nobody knows
        del shown["pseudo_accuracy"]
    figure, axes = _panels(len(shown), f"Along the generations\n{_subtitle(rows)}")
    for axis, (column, label) in zip(axes, shown.items(), strict=True):
        lines = {kind: rows[(rows.pseudo == kind) | (rows.generation == 0)] for kind in ("hard", "soft") if kind in set(rows.pseudo)}
        for kind, part in {**lines, "none": rows[rows.generation == 0]}.items():
            if part[column].notna().any():  # generation 0 has no pseudo-labels
                name, colour, marker = KINDS[kind]
                generation, mean, half = _means(part, "generation", column)
                aside = 0 if kind == "none" or len(lines) == 1 else 0.04 if kind == "soft" else -0.04  # else one hides the other's bars
                places = [g + aside * (g > 0) for g in generation]
                axis.errorbar(places, mean, half, fmt=f"{marker}-", color=colour, capsize=4 if half.any() else 0, label=name)
        names = rows[rows[column].notna()].drop_duplicates("generation").sort_values("generation")
        axis.set_xticks(names.generation, [f"{g}\n{m}" for g, m in zip(names.generation, names.model, strict=True)], fontsize=8,
                        rotation=0 if len(names) < 7 else 45)
        axis.set(ylabel=label, xlabel="generation and its model")
        _within_percent(axis)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=9)
    return figure


# --------------------------------------------------------------------------------------------------------- images


def ops(images: Tensor, apply: Callable[[Tensor, str, float], Tensor], names: Sequence[str], magnitudes: Sequence[float]) -> Figure:
    """One image under each op (rows, in two halves) at each magnitude (columns)."""
    half, wide = math.ceil(len(names) / 2), len(magnitudes)
    title = "The RandAugment ops by magnitude (negative: the other direction)"
    figure, axes = _tiles(half, 2 * wide + 1, title, 11, 0.95 * half + 0.8)
    for i, name in enumerate(names):
        for j, magnitude in enumerate(magnitudes):
            axis = axes[i % half, j + (wide + 1) * (i // half)]
            axis.imshow(_pixels(apply(images[:1], name, magnitude)[0]))
            if i % half == 0:
                axis.set_title(f"{magnitude:g}", fontsize=9)
            if j == 0:
                axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def confusion(counts: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Where each true class (row, in percent) went; numbers are printed for up to 20 classes."""
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(share, cmap="cividis", vmin=0, vmax=100)
    figure.colorbar(shown, label="% of the true class", shrink=0.8)
    if len(classes) <= 20:
        for (y, x), value in np.ndenumerate(share):
            axis.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=8, color="white" if value < 50 else "black")
        names = [_plain(name) for name in classes]
        axis.set_xticks(range(len(classes)), names, rotation=45, ha="right", fontsize=9)
        axis.set_yticks(range(len(classes)), names, fontsize=9)
    axis.set(xlabel="predicted", ylabel="true")
    axis.set_title(f"{_plain(title)}\n{_tenths(100 * np.trace(counts) / counts.sum())}% right", fontsize=11)
    return figure


def mistakes(images: Tensor, labels: Tensor, probabilities: Tensor, classes: Sequence[str], title: str, count: int = 16) -> Figure:
    """The wrong predictions of highest confidence; above each, predicted class and confidence, and the true class."""
    confidence, guess = probabilities.max(1)
    wrong = (guess != labels).nonzero().flatten()
    chosen = wrong[confidence[wrong].argsort(descending=True)][:count]
    rows = math.ceil(count / 8)
    figure, axes = _tiles(rows, 8, title, 9, 1.5 * rows + 0.6)
    for axis, i in zip(axes.flat, chosen.tolist(), strict=False):
        axis.imshow(_pixels(images[i]))
        axis.set_title(_plain(f"{classes[int(guess[i])]} {100 * confidence[i]:.0f}%\nis {classes[int(labels[i])]}"), fontsize=8)
    return figure


def samples(images: Tensor, labels: Tensor, classes: Sequence[str], title: str, per_class: int = 8) -> Figure:
    """The first images of each class, a row a class; of many classes the first 20."""
    if len(classes) > 20:
        title, classes = f"{title}, the first 20 of {len(classes)} classes", classes[:20]
    figure, axes = _tiles(len(classes), per_class, title, 0.8 * per_class + 1.5, 0.8 * len(classes) + 0.6)
    for label, name in enumerate(classes):
        for axis, i in zip(axes[label], (labels == label).nonzero().flatten().tolist(), strict=False):
            axis.imshow(_pixels(images[i]))
        axes[label, 0].set_ylabel(_plain(name), rotation=0, ha="right", va="center", fontsize=9)
    return figure


def class_balance(parts: dict[str, Tensor], classes: Sequence[str], title: str) -> Figure:
    """How many images each class has, a panel for each part."""
    figure, axes = _panels(len(parts), title, 4.5, 3.8)
    for axis, (name, labels), colour in zip(axes, parts.items(), cycle((BLUE, ORANGE, GREEN)), strict=False):
        counts = np.bincount(labels[labels >= 0].numpy(), minlength=len(classes))
        bars = axis.bar(range(len(classes)), counts, color=colour)
        axis.set_title(f"{name}: {len(labels):,}", fontsize=10)
        axis.set_ylabel("images")
        if len(classes) <= 20:
            axis.bar_label(bars, fmt="{:,.0f}", fontsize=7)
            axis.set_xticks(range(len(classes)), [_plain(name) for name in classes], rotation=45, ha="right", fontsize=9)
    return figure
