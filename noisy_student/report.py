"""What a finished set of experiments leaves in a folder: its tables and its figures."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from . import figures
from .augment import OPS, apply_op
from .data import Images, Split
from .experiments import baseline_of
from .files import write_whole
from .store import Store
from .tables import compare, per_class, with_interval
from .training import predict


def saved_split(path: str | Path, train: Images) -> Split | None:
    """The split in a file, or None, with a line that says why, where it cannot be used."""
    try:
        found = Split.load(path, train)
    except FileNotFoundError:
        print(f"There is no {path}: each seed draws its own labelled images.")
    except ValueError as error:
        print(f"{path} is not used, each seed draws its own labelled images: {error}")
    else:
        print(f"The split of {path}, the same for all seeds.")
        return found
    return None


def summary(table: pd.DataFrame, test: Images) -> pd.DataFrame:
    """For people: a row a variant of a table of run_variants, mean and 95% interval over its seeds.

    Columns, those that would be empty left out: accuracy; balanced accuracy, where one class of
    ``test`` has half as many images again as another; the difference to the same model on as many
    labels alone, in points, paired by seed; pseudo-labels kept, and those right; optimizer steps;
    seeds.
    """
    found = compare(table, baseline_of(table)).set_index("variant")
    mean = table.groupby("variant")[["balanced_accuracy", "steps"]].mean()
    counts = test.labels.bincount(minlength=len(test.classes))
    unequal = counts.max() > 1.5 * counts.min()

    def column(values: pd.Series, form: str) -> list[str]:
        return [form.format(value) if value == value else "" for value in values]

    shown = pd.DataFrame(
        {
            "accuracy, %": list(map(with_interval, found.accuracy, found.spread)),
            "balanced accuracy, %": column(
                mean.balanced_accuracy[found.index], "{:.1f}" if unequal else ""
            ),
            "over labels alone, points": [
                with_interval(*pair, "+")
                for pair in zip(found.difference, found.interval, strict=True)
            ],
            "pseudo-labels kept": column(found.kept, "{:.0%}"),
            "of these right": column(found.pseudo_accuracy, "{:.1f}%"),
            "optimizer steps": column(mean.steps[found.index], "{:,.0f}"),
            "seeds": found.seeds,
        },
        found.index,
    )
    return shown[[name for name in shown if any(map(str, shown[name]))]]


def by_confidence(
    probabilities: Tensor, labels: Tensor, ends: tuple[float, ...] = (0.0, 0.5, 0.8, 0.95, 1.0)
) -> pd.DataFrame:
    """How many predictions have which confidence, and what percent are right; label -1: unknown."""
    confidence, guess = probabilities.max(1)
    right = pd.Series((guess == labels).double()).where(pd.Series(labels >= 0))
    names = [f"{low:.0%} to {high:.0%}" for low, high in pairwise(ends)]
    groups = right.groupby(pd.cut(pd.Series(confidence), ends, labels=names), observed=False)
    return pd.DataFrame(
        {"images": groups.size(), "right, %": (100 * groups.mean()).round(1)}
    ).rename_axis("confidence")


def write_tables(table: pd.DataFrame, store: Store, folder: Path) -> None:
    """Write ``runs.csv``, a row a variant and seed, and ``history.csv``, a row a run and epoch."""
    for name, content in {
        "runs.csv": table,
        "history.csv": store.history(*table.key.unique()),
    }.items():
        write_whole(folder / name, content.to_csv(index=False, float_format="%.6g").encode())


def from_tables(table: pd.DataFrame) -> dict[str, Figure]:
    """A figure for each experiment in ``table`` (a ``runs.csv``), which is all that is needed."""
    if missing := sorted(
        {"experiment", "variant", "seed", "accuracy", "validation_accuracy", "labels", "key"}
        - set(table)
    ):
        raise ValueError(
            f"the table has no column {missing[0]!r}: it is not a runs.csv of this package."
        )
    drawn: dict[str, Figure] = {}
    for name, rows in table.groupby("experiment", sort=False):
        first = rows.drop_duplicates("variant")
        n, m, labels = (
            dict(zip(first.variant, first[column], strict=True)) for column in ("n", "m", "labels")
        )
        if name == "grid":
            for model, part in rows.groupby("model", sort=False):
                title = (
                    f"RandAugment(n, m), {model} on {part.labels.iloc[0]:,} labels: "
                    "accuracy on held-out labels, %"
                )
                drawn[f"grid-{model}"] = figures.grid(
                    part, n, m, title, xlabel="m, bound of the magnitudes", ylabel="n, ops an image"
                )
        elif name == "label_counts":
            drawn["label_counts"] = figures.line(rows, labels, xlabel="labelled images", log=True)
        else:
            drawn[str(name)] = figures.forest(rows, baseline_of(rows) or None)
    return drawn


def ops(images: Tensor) -> Figure:
    """The first of ``images`` under each op (rows) at five magnitudes (columns)."""
    magnitudes = (-10, -5, 0, 5, 10)
    shown = torch.cat(
        [apply_op(images[:1], name, magnitude) for name in OPS for magnitude in magnitudes]
    )
    return figures.pictures(
        shown,
        rows=OPS,
        columns=[f"{m:g}" for m in magnitudes],
        title="The RandAugment ops by magnitude (negative: the other direction)",
    )


def confusion_of(row: pd.Series, store: Store) -> np.ndarray:
    """A run's confusion counts, true class by predicted; run: a row of run_variants' table."""
    return np.array(store.record(row.key)["result"]["confusion"])


def by_class(row: pd.Series, store: Store) -> pd.DataFrame:
    """Of a run, a row of run_variants' table, a row a class: recall, precision (percent), count of
    test images; of a student also the number of its pseudo-labels, and their mean confidence.
    """
    result = store.record(row.key)["result"]
    found = per_class(np.array(result["confusion"]), result["classes"]).round(1).set_index("class")
    if "pseudo_counts" in result:
        found["pseudo-labels"] = result["pseudo_counts"]
        found["confidence"] = np.round(result["pseudo_confidence"], 2)
    return found


def of_model(
    student: pd.Series, store: Store, test: Images, device: str | torch.device | None = None
) -> dict[str, Figure]:
    """Of a run, a row of run_variants' table: "confusion", and its most confident "mistakes"."""
    counts, title = (
        confusion_of(student, store),
        f"{test.title}: {student.variant}, seed {student.seed}",
    )
    guess = predict(store.model(student.key), test.images, device=device)
    wrong = figures.mistakes(test.labels, guess)
    captions = figures.captions(guess[wrong], test.classes, test.labels[wrong])
    return {
        "confusion": figures.confusion(counts, test.classes, title),
        "mistakes": figures.pictures(
            test.images[wrong], captions, title=f"{title}: most confident mistakes"
        ),
    }


def save_figures(
    table: pd.DataFrame,
    store: Store,
    train: Images,
    test: Images,
    folder: Path,
    device: str | torch.device | None = None,
) -> list[Path]:
    """The figures of :func:`from_tables`, the RandAugment ops, and those of the last student."""
    drawn = {**from_tables(table), "ops": ops(train.images)}
    if (table.generation > 0).any():
        drawn |= of_model(table[table.generation > 0].iloc[-1], store, test, device)
    return [figures.save(figure, folder / f"{name}.png") for name, figure in drawn.items()]
