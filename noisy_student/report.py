"""What a finished set of experiments leaves in a folder: its tables and its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from . import figures
from .augment import OPS, apply_op
from .data import Images
from .experiments import baseline_of
from .files import write_whole
from .store import Store
from .training import predict


def write_tables(table: pd.DataFrame, store: Store, folder: Path) -> None:
    """Write ``runs.csv``, a row per experiment, variant and seed, and ``history.csv``, a row per run and epoch."""
    for name, content in {"runs.csv": table, "history.csv": store.history(*table.key.unique())}.items():
        write_whole(folder / name, content.to_csv(index=False, float_format="%.6g").encode())


def from_tables(table: pd.DataFrame) -> dict[str, Figure]:
    """A figure for each experiment in ``table`` (a ``runs.csv``): no images, no models, no GPU are needed."""
    if missing := sorted({"experiment", "variant", "seed", "accuracy", "validation_accuracy", "labels", "key"} - set(table)):
        raise ValueError(f"the table has no column {missing[0]!r}: it is not a runs.csv of this package.")
    drawn: dict[str, Figure] = {}
    for name, rows in table.groupby("experiment", sort=False):
        of_variant: Any = rows.drop_duplicates("variant").set_index("variant")[["n", "m", "labels"]].to_dict()
        if name == "grid":
            for model, part in rows.groupby("model", sort=False):
                title = f"RandAugment(n, m), {model} on {part.labels.iloc[0]:,} labels: accuracy on held-out labels, %"
                drawn[f"grid-{model}"] = figures.grid(part, of_variant["n"], of_variant["m"], title, xlabel="m, bound of the magnitudes",
                                                      ylabel="n, ops an image")
        elif name == "label_counts":
            drawn["label_counts"] = figures.line(rows, of_variant["labels"], xlabel="labelled images", log=True)
        else:
            drawn[str(name)] = figures.forest(rows, baseline_of(rows) or None)
    return drawn


def ops(images: Tensor) -> Figure:
    """The first of ``images`` under each op (rows) at five magnitudes (columns)."""
    magnitudes = (-10, -5, 0, 5, 10)
    shown = torch.cat([apply_op(images[:1], name, magnitude) for name in OPS for magnitude in magnitudes])
    return figures.pictures(shown, rows=OPS, columns=[f"{m:g}" for m in magnitudes],
                            title="The RandAugment ops by magnitude (negative: the other direction)")


def of_model(student: pd.Series, store: Store, test: Images, device: str | torch.device | None = None) -> dict[str, Figure]:
    """"confusion" of a run, a row of run_variants' table, and "mistakes", its most confident ones."""
    counts, title = np.array(store.record(student.key)["result"]["confusion"]), f"{test.title}: {student.variant}, seed {student.seed}"
    guess = predict(store.model(student.key), test.images, device=device)
    wrong = figures.mistakes(test.labels, guess)
    captions = figures.captions(guess[wrong], test.classes, test.labels[wrong])
    return {"confusion": figures.confusion(counts, test.classes, title),
            "mistakes": figures.pictures(test.images[wrong], captions, title=f"{title}: most confident mistakes")}


def save_figures(table: pd.DataFrame, store: Store, train: Images, test: Images, folder: Path,
                 device: str | torch.device | None = None) -> list[Path]:
    """The figures of :func:`from_tables`, the RandAugment ops, and those of the last student."""
    drawn = {**from_tables(table), "ops": ops(train.images)}
    if (table.generation > 0).any():
        drawn |= of_model(table[table.generation > 0].iloc[-1], store, test, device)
    return [figures.save(figure, folder / f"{name}.png") for name, figure in drawn.items()]
