"""What the tables say: means with intervals, gains, and what unlabelled images are worth in labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from .runs import STUDENT_OPTIONS
from .recipes import Recipe

PARTS = ("pseudo", *(f.name for f in fields(Recipe)), *STUDENT_OPTIONS)  # what a row of "student_ablation" may have changed


def mean_and_interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half width of Student's 95% interval; the half width of a single value is NaN."""
    found = pd.Series(list(values), dtype=float).dropna()
    return float(found.mean()), float(stdtrit(len(found) - 1, 0.975) * found.sem())


def labels_worth(table: pd.DataFrame, student: Sequence[float]) -> tuple[float, float, float]:
    """How many labels a supervised model needs for the student's mean accuracy, and the ends of the 95% interval.

    table: the rows of "label_counts"; student: accuracies in percent, one a seed. The supervised mean, made monotone, is
    interpolated linearly in log(labels). The interval is a parametric bootstrap: each mean, the student's and those along the
    curve, is drawn from its Student's t distribution (to resample three seeds would give little more than their range; of three
    to five it is rather too wide than too narrow). Infinite beyond the measured range; where a mean is of a single seed the interval
    is NaN.
    """
    counts = np.sort(table.labels.unique())
    groups = [table[table.labels == count].accuracy.to_numpy() for count in counts]

    def crossing(curve: Sequence[float], level: float) -> float:
        rising = np.maximum.accumulate(curve)
        i = int(np.searchsorted(rising, level))  # the fewest labels that reach it
        if i == len(rising):
            return math.inf
        if i == 0:
            return float(counts[0]) if level == rising[0] else -math.inf
        return float(np.exp(np.interp(level, rising[i - 1 : i + 1], np.log(counts[i - 1 : i + 1]))))

    rng, samples = np.random.default_rng(0), 10_000

    def means(values: np.ndarray) -> np.ndarray:
        return values.mean() + values.std(ddof=1) / len(values) ** 0.5 * rng.standard_t(len(values) - 1, samples)

    estimate = crossing([g.mean() for g in groups], float(np.mean(student)))
    if min(map(len, [student, *groups])) < 2:
        return estimate, math.nan, math.nan
    levels, curves = means(np.asarray(student)), np.stack([means(g) for g in groups], 1)
    drawn = sorted(crossing(curve, level) for curve, level in zip(curves, levels, strict=True))
    return estimate, drawn[int(0.025 * samples)], drawn[int(0.975 * samples) - 1]


def worth_text(labels: float, low: float, high: float, table: pd.DataFrame) -> str:
    """What :func:`labels_worth` found in words, to three digits; table: the rows of "label_counts" that it was read from."""
    def one(value: float) -> str:
        if math.isinf(value):
            return f"more than {table.labels.max():,}" if value > 0 else f"fewer than {table.labels.min():,}"
        unit = 10 ** max(0, math.floor(math.log10(value)) - 2)
        return f"{math.floor(value / unit + 0.5) * unit:,}"

    return one(labels) + ("" if math.isnan(low) or low == high else f" ({one(low)} to {one(high)})")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation and number of seeds of each setting: what the notebook and the command line show."""
    by = ["experiment", "model", "teacher", "pseudo", "generation", "labels", "n", "m", "dropout"]
    by += [f.name for f in fields(Recipe) if f.name not in by and table[f.name].nunique() > 1]
    by += [name for name in STUDENT_OPTIONS if (table.groupby(by)[name].nunique() > 1).any()]  # means are of one setting
    score = "validation_accuracy" if table["accuracy"].isna().all() else "accuracy"
    aggregations = {score: (score, "mean"), "std": (score, "std"), "seeds": ("seed", "nunique")}
    aggregations |= {name: (name, "mean") for name in ("pseudo_accuracy", "kept") if table[name].notna().any()}
    return table.groupby(by, sort=False).agg(**aggregations).round(2).reset_index()


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """What Noisy Student gained: for each student, accuracy minus that of the same model on labels alone with its seed.

    table: rows of "baselines", and of "students", "generations" or both; empty without either. The interval is
    Student's, 95%, over the seeds' paired differences.
    """
    plain = table[table.experiment == "baselines"].drop_duplicates(["model", "seed"])  # the first is with all noise
    students = table[table.experiment.isin(["students", "generations"]) & (table.pseudo != "none")].drop_duplicates("key")
    pairs = students.merge(plain[["model", "seed", "accuracy"]], on=["model", "seed"], suffixes=("", "_supervised"))
    rows = []
    for (model, pseudo, generation), group in pairs.groupby(["model", "pseudo", "generation"], sort=False):
        gain, interval = mean_and_interval(group.accuracy - group.accuracy_supervised)
        rows.append({"model": model, "pseudo": pseudo, "generation": generation, "supervised": group.accuracy_supervised.mean(),
                     "student": group.accuracy.mean(), "gain": gain, "interval": interval, "seeds": len(group)})
    return pd.DataFrame(rows).round(2)


def worth(table: pd.DataFrame) -> pd.DataFrame:
    """How many labels the last students are worth to the same model on labels alone, with the 95% interval.

    table: rows of "label_counts", and of "students", "generations" or both; empty without either. Infinite: more than were
    measured; minus infinite: fewer.
    """
    counts, rows = table[table.experiment == "label_counts"], []
    students = table[table.experiment.isin(["students", "generations"]) & (table.pseudo != "none")].drop_duplicates("key")
    for kind, group in students.groupby("pseudo", sort=False) if len(counts) else ():
        last = group[group.generation == group.generation.max()]
        labels, low, high = labels_worth(counts, last.accuracy.tolist())
        rows.append({"model": last.model.iloc[0], "pseudo": kind, "generation": last.generation.iloc[0], "labels": last.labels.iloc[0],
                     "student": last.accuracy.mean(), "worth": labels, "low": low, "high": high})
    return pd.DataFrame(rows).round({"student": 2, "worth": 1, "low": 1, "high": 1})


def part_gains(table: pd.DataFrame) -> pd.DataFrame:
    """What each changed part gains or costs: accuracy minus that of the unchanged student of the same seed, in points.

    table: rows of "student_ablation", each seed's unchanged student first; empty without them. The interval is Student's,
    95%, over the seeds' paired differences.
    """
    students = table[(table.experiment == "student_ablation") & (table.pseudo != "none")]
    if students.empty:
        return pd.DataFrame()
    rows = []
    for _, group in students.groupby("seed", sort=False):
        ours = group.iloc[0]
        for _, row in group.iloc[1:].iterrows():
            changed = ", ".join(f"{name}={row[name]}" for name in PARTS if row[name] != ours[name])
            rows.append({"changed": changed, "accuracy": row.accuracy, "difference": row.accuracy - ours.accuracy, "kept": row.kept,
                         "pseudo_accuracy": row.pseudo_accuracy})
    by = pd.DataFrame(rows).groupby("changed", sort=False)
    spread = by.difference.agg(interval=lambda values: mean_and_interval(values)[1], seeds="size")
    return by.mean().join(spread).round(2).reset_index()
