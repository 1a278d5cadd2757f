"""Tables and figures of a set of experiments, written to a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from . import figures
from .augment import OPS, apply_op
from .data import Images
from .files import write_whole
from .statistics import PARTS
from .store import Store
from .training import predict

NEEDED = {"experiment", "model", "teacher", "pseudo", "generation", "labels", "n", "m", "dropout", "seed", "device", "title", "accuracy",
          "validation_accuracy", "pseudo_accuracy", "key"}  # columns that the figures read, student_ablation those of PARTS too


def write_tables(table: pd.DataFrame, store: Store, folder: Path) -> None:
    """``runs.csv``, a row per run and experiment, and ``history.csv``, a row per run and epoch; each whole or not at all."""
    for name, content in {"runs.csv": table, "history.csv": store.history(*table.key.unique())}.items():
        write_whole(folder / name, content.to_csv(index=False, float_format="%.6g").encode())


def plot_tables(table: pd.DataFrame, history: pd.DataFrame, folder: Path) -> list[Path]:
    """Every figure that the experiments in the two tables allow: no images, no models, no GPU are needed."""
    present = set(table.get("experiment", ()))
    needed = NEEDED | {*PARTS, "kept"} if "student_ablation" in present else NEEDED
    for name, columns, there in ("runs.csv", needed, table), ("history.csv", {"key", "epoch", "loss", "accuracy"}, history):
        if missing := sorted(columns - set(there)):
            raise ValueError(f"the table has no column {missing[0]!r}: it is not a {name} of this package.")
    without_noise = (table.experiment == "baselines") & ((table.n == 0) | (table.dropout == 0))
    allowed = {figures.result1: {"baselines", "students"} <= present, figures.result2: "label_counts" in present,
               figures.grid: "grid" in present, figures.ablation: without_noise.any(),
               figures.generations: not present.isdisjoint({"generations", "students"}),
               figures.student_ablation: "student_ablation" in present}
    drawn = {draw.__name__: draw(table) for draw, there in allowed.items() if there}
    if "students" in present:
        drawn["curves"] = figures.curves(history, table)
    return [figures.save(figure, folder / f"{name}.png") for name, figure in drawn.items()]


def last_student(table: pd.DataFrame) -> pd.Series:
    """The row of the first seed's last student of the chain: a soft one, if there is one. table: rows of "students"."""
    rows = table[table.experiment == "students"]
    rows = rows[rows.seed == rows.seed.iloc[0]]
    kind = "soft" if "soft" in set(rows.pseudo) else "hard"
    return rows[rows.pseudo.isin([kind, "none"])].sort_values("generation").iloc[-1]


def teacher_of(student: pd.Series, table: pd.DataFrame) -> pd.Series:
    """The row of a chain's student's teacher; in a chain of one model, that model itself."""
    rows = table[(table.experiment == "students") & (table.seed == student.seed) & (table.generation == max(0, student.generation - 1))]
    return rows[rows.pseudo.isin([student.pseudo, "none"])].iloc[0]


def student_figures(table: pd.DataFrame, store: Store, test: Images, device: str | torch.device | None = None) -> dict[str, Figure]:
    """"confusion" of the first seed's last student, and "mistakes", the most confident ones, of its teacher."""
    row = last_student(table)
    teacher = teacher_of(row, table)
    kind = "supervised" if row.pseudo == "none" else f"{row.pseudo} student"
    counts = np.array(store.record(row.key)["result"]["confusion"])
    guess = predict(store.model(teacher.key), test.images, device=device)
    title = f"{test.title}: most confident mistakes of the teacher {teacher.model}, seed {row.seed}"
    return {"confusion": figures.confusion(counts, test.classes, f"{test.title}: {row.model}, {kind}, seed {row.seed}"),
            "mistakes": figures.mistakes(test.images, test.labels, guess, test.classes, title)}


def save_figures(table: pd.DataFrame, store: Store, train: Images, test: Images, folder: Path,
                 device: str | torch.device | None) -> list[Path]:
    """The figures of :func:`plot_tables`, and those that show images or need a model."""
    paths = plot_tables(table, store.history(*table.key.unique()), folder)
    drawn = {"ops": figures.ops(train.images[:1], apply_op, OPS, (-10, -5, 0, 5, 10))}
    if "students" in set(table.experiment):
        drawn |= student_figures(table, store, test, device)
    return paths + [figures.save(figure, folder / f"{name}.png") for name, figure in drawn.items()]
