"""What rows say: means with intervals, paired differences, label efficiency, and accuracy by class.

A row is one training, of a study's file (ROW_COLUMNS) or of ``run_variants``' table. Nothing here
reads the order of rows but to name variants in the order in which they first appear.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from .data import NAMED, check_name
from .files import write_whole

ROW_COLUMNS = (
    "study",
    "variant",
    "seed",
    "model",
    "labels",
    "generation",
    "accuracy",
    "validation_accuracy",
    "pseudo_accuracy",
    "kept",
    "fit",
    "seconds",
    "images_per_second",
    "device",
    "data",
    "key",
)
_TEXT = ("study", "variant", "model", "device", "data", "key")
Baseline = str | Mapping[str, str] | None  # of all other variants; or by variant, each its own


def read_rows(path: str | Path) -> pd.DataFrame:
    """The rows of a study, columns ROW_COLUMNS. Raises OSError; ValueError for another table."""
    empty = {name: [""] for name in ROW_COLUMNS if name not in _TEXT}  # a variant may be "NA"
    text = dict.fromkeys(_TEXT, str)
    rows = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=empty)
    if tuple(rows) != ROW_COLUMNS:
        raise ValueError(
            f"{path} has the columns {', '.join(map(str, rows))}: a study's rows have "
            f"{', '.join(ROW_COLUMNS)}."
        )
    for row in rows[rows.duplicated(["study", "variant", "seed"])].itertuples():
        raise ValueError(f"{path} has two rows of {row.variant!r} with seed {row.seed}: leave one.")
    return rows


def write_rows(rows: pd.DataFrame, path: str | Path, variants: Iterable[str] = ()) -> None:
    """Write ROW_COLUMNS of rows, whole or not at all, by the order of ``variants``, then by seed.

    Variants that are not named come last, in the order in which they first appear.
    """
    place = {name: i for i, name in enumerate(dict.fromkeys([*variants, *rows.variant]))}
    by = rows.assign(place=rows.variant.map(place)).sort_values(["place", "seed"])
    content = by[list(ROW_COLUMNS)].to_csv(index=False, float_format="%.6g")
    write_whole(Path(path), content.encode())


def data_title(data: str) -> str:
    """The images' name for people, of a row's ``data``: their short name and fingerprint."""
    name = data.rpartition("-")[0]
    return NAMED.get(name, name)


# ----------------------------------------------------------------------------------- means


def mean_and_interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half width of Student's 95% interval; the half width of a single value is NaN."""
    found = pd.Series(list(values), dtype=float).dropna()
    return float(found.mean()), float(stdtrit(len(found) - 1, 0.975) * found.sem())


def score_column(rows: pd.DataFrame) -> str:
    """The test accuracy, or that on held-out labels of rows that have no other."""
    held = "validation_accuracy" in rows and rows.accuracy.isna().all()
    return "validation_accuracy" if held else "accuracy"


def scores(rows: pd.DataFrame, variant: str) -> pd.Series:
    """The accuracies of a variant, percent, by seed. Raises ValueError for an unknown variant."""
    check_name("variant", variant, dict.fromkeys(rows.variant))
    part = rows[rows.variant == variant]
    return part.set_index("seed")[score_column(part)].dropna()


def difference(rows: pd.DataFrame, variant: str, baseline: str) -> tuple[float, float, int]:
    """A variant's accuracy minus its baseline's by seed: (mean, half of its 95% interval, pairs).

    The mean is NaN where they have no seed in common. Raises ValueError for an unknown variant, or
    where one was scored on the test images and the other on held-out labels.
    """
    both = rows[rows.variant.isin([variant, baseline])]
    if len({score_column(part) for _, part in both.groupby("variant")}) > 1:
        raise ValueError(
            f"{variant!r} and {baseline!r} were scored on different images, held-out "
            "labels and test images: compare variants of one kind."
        )
    pairs = (scores(rows, variant) - scores(rows, baseline)).dropna()
    return *mean_and_interval(pairs), len(pairs)


def compare(rows: pd.DataFrame, baseline: Baseline = None) -> pd.DataFrame:
    """A row a variant, in the order in which they first appear.

    Columns: variant; accuracy, and spread, half of its 95% interval; baseline; difference to it,
    paired by seed, interval, half of its 95% interval, and pairs; kept, pseudo_accuracy, seeds.
    What there is not is NaN. Raises ValueError for a baseline that has no rows.
    """
    variants = list(dict.fromkeys(rows.variant))
    if isinstance(baseline, str):
        check_name("variant", baseline, variants)
        baseline = {name: baseline for name in variants if name != baseline}
    found = []
    for name in variants:
        part, own = rows[rows.variant == name], (baseline or {}).get(name)
        accuracy, spread = mean_and_interval(scores(rows, name))
        gain, interval, pairs = difference(rows, name, own) if own else (math.nan, math.nan, 0)
        found.append(
            {
                "variant": name,
                "accuracy": accuracy,
                "spread": spread,
                "baseline": own,
                "difference": gain,
                "interval": interval,
                "pairs": pairs,
                "kept": part.kept.mean(),
                "pseudo_accuracy": part.pseudo_accuracy.mean(),
                "seeds": part.seed.nunique(),
            }
        )
    return pd.DataFrame(found)


def tenths(value: float, sign: str = "") -> str:
    """With one decimal, halves away from zero as by hand: 72.55, as a float 72.5499..., is 72.6."""
    return f"{value + math.copysign(1e-9, value):{sign}z.1f}"


def with_interval(value: float, half: float, sign: str = "") -> str:
    """ "83.4 ± 0.3"; of a single seed "83.4"; nothing for NaN."""
    interval = "" if math.isnan(half) else f" ± {tenths(half)}"
    return "" if math.isnan(value) else tenths(value, sign) + interval


# ------------------------------------------------------------------------ label efficiency


def label_efficiency(
    curve: Mapping[int, Sequence[float]], student: Sequence[float]
) -> tuple[float, float, float]:
    """How many labels alone give the student's mean accuracy, and the ends of the 95% interval.

    curve: number of labels -> accuracies on so many labels alone, in percent, one a seed; student:
    likewise. The supervised mean, made monotone, is interpolated linearly in log(labels). The
    interval is a parametric bootstrap: each mean, the student's and those along the curve, is drawn
    from its Student's t distribution (to resample three seeds would give little more than their
    range; of three to five it is rather too wide than too narrow). Infinite beyond the measured
    range; where a mean is of a single seed the interval is NaN.
    """
    counts = np.sort(list(curve))
    groups = [np.asarray(curve[count], dtype=float) for count in counts.tolist()]

    def crossing(means: Sequence[float], level: float) -> float:
        rising = np.maximum.accumulate(means)
        i = int(np.searchsorted(rising, level))  # the fewest labels that reach it
        if i == len(rising):
            return math.inf
        if i == 0:
            return float(counts[0]) if level == rising[0] else -math.inf
        ends = slice(i - 1, i + 1)
        return float(np.exp(np.interp(level, rising[ends], np.log(counts[ends]))))

    rng, samples = np.random.default_rng(0), 10_000

    def draws(values: np.ndarray) -> np.ndarray:
        error = values.std(ddof=1) / len(values) ** 0.5
        return values.mean() + error * rng.standard_t(len(values) - 1, samples)

    estimate = crossing([group.mean() for group in groups], float(np.mean(student)))
    if min(len(student), *(len(group) for group in groups)) < 2:
        return estimate, math.nan, math.nan
    levels, curves = draws(np.asarray(student)), np.stack([draws(group) for group in groups], 1)
    drawn = sorted(crossing(c, level) for c, level in zip(curves, levels, strict=True))
    return estimate, drawn[int(0.025 * samples)], drawn[int(0.975 * samples) - 1]


def labels_in_words(found: tuple[float, float, float], counts: Iterable[int]) -> str:
    """What :func:`label_efficiency` found, to three digits: "11,700 (9,900 to 13,300)".

    counts: the numbers of labels of the curve that it was read from.
    """
    fewest, most = min(counts := list(counts)), max(counts)

    def one(value: float) -> str:
        if math.isinf(value):
            return f"more than {most:,}" if value > 0 else f"fewer than {fewest:,}"
        unit = 10 ** max(0, math.floor(math.log10(value)) - 2)
        return f"{math.floor(value / unit + 0.5) * unit:,}"

    labels, low, high = found
    interval = "" if math.isnan(low) or low == high else f" ({one(low)} to {one(high)})"
    return one(labels) + interval


# -------------------------------------------------------------------------------- by class


def per_class(counts: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """Columns class, recall, precision (percent), count (of test images); a row a class.

    counts: classes x classes, true class by predicted. Recall is NaN for a class without a test
    image, precision for one that was never predicted.
    """
    right, true = pd.Series(counts.diagonal()), pd.Series(counts.sum(1))
    predicted = pd.Series(counts.sum(0))
    return pd.DataFrame(
        {
            "class": list(classes),
            "recall": 100 * right / true,
            "precision": 100 * right / predicted,
            "count": true,
        }
    )


def balanced_accuracy(counts: np.ndarray) -> float:
    """The mean recall, percent, of the classes that have a test image; counts as in per_class."""
    return float(per_class(counts, [""] * len(counts)).recall.mean())


def confusions(counts: np.ndarray, classes: Sequence[str], most: int = 10) -> pd.DataFrame:
    """The largest confusions: columns true, predicted, count, share (percent of the true class)."""
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    true, predicted = np.unravel_index(order, wrong.shape)
    found = pd.DataFrame(
        {
            "true": [classes[y] for y in true],
            "predicted": [classes[x] for x in predicted],
            "count": wrong[true, predicted].astype(int),
            "share": 100 * wrong[true, predicted] / np.maximum(counts[true].sum(1), 1),
        }
    )
    return found[found["count"] > 0]
