"""A study: one question, answered by named Runs. Each is one Python file in the folder studies/."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from .data import Images, check_name, data_key
from .files import check_writable
from .runs import Run, run_all, teachers_first
from .store import Store
from .tables import ROW_COLUMNS, read_rows, write_rows

ROOT = Path(__file__).resolve().parent.parent  # holds the folders studies/ and results/
MOST_WORDS = 120


@dataclass(frozen=True)
class Study:
    """What a study's file says. Raises ValueError for what cannot be, with the study's name.

    The variants' names are plain words, without braces and bars: pages name them between these.
    """

    name: str
    question: str
    runs: dict[str, Run]  # by variant, of seed 0: the study replaces it throughout
    seeds: dict[str, tuple[int, ...]]  # by variant
    baseline: dict[str, str]  # by variant, the one that it is compared with; some have none
    figure: Callable[[pd.DataFrame], Figure]
    answer: str  # at most MOST_WORDS words; its numbers are placeholders, see pages.py
    data: str = "cifar10-jpeg"
    curve: dict[int, str] = field(default_factory=dict)  # labels -> variant on these alone

    def __post_init__(self) -> None:
        said = f"study {self.name}: "
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ValueError(f"{said}name its file with letters, digits and - alone.")
        if not self.question.endswith("?"):
            raise ValueError(f"{said}the docstring is {self.question!r}: make it one question.")
        if not self.runs or not all(isinstance(run, Run) for run in self.runs.values()):
            raise ValueError(f"{said}RUNS is not a dict from the names of variants to Runs.")
        for name in self.runs:
            if not name or name != " ".join(re.sub(r"[{}|]", " ", name).split()):
                raise ValueError(f"{said}the variant {name!r} has a brace, a bar or spare space.")
        used = {
            "SEEDS": self.seeds,
            "BASELINE": [*self.baseline, *self.baseline.values()],
            "CURVE": self.curve.values(),
        }
        for where, names in used.items():
            for name in names:
                check_name(f"variant in {where} of the study {self.name}", name, self.runs)
        for name in self.runs:
            if not self.seeds.get(name):
                raise ValueError(f"{said}SEEDS has none of the variant {name!r}: give it one.")
        if not callable(self.figure):
            raise ValueError(f"{said}FIGURE={self.figure!r} is not a function of the rows.")
        words = len(re.sub(r"\{[^{}]*\}", "0", self.answer).split())  # a placeholder is a word
        if words > MOST_WORDS:
            raise ValueError(f"{said}ANSWER has {words} words: cut it to {MOST_WORDS}.")

    def rows(self, root: Path = ROOT) -> pd.DataFrame:
        """Those of results/<name>.csv, by variant and seed; none where there is no such file.

        Raises ValueError for a row of a variant that the study does not have, or that is of another
        Run than the study says now.
        """
        path = root / "results" / f"{self.name}.csv"
        rows = read_rows(path) if path.exists() else pd.DataFrame(columns=list(ROW_COLUMNS))
        for row in rows.itertuples():
            check_name(f"variant in {path.name}", row.variant, self.runs)
            if self.run(row.variant, row.seed, row.data).key != row.key:  # type: ignore[arg-type]
                raise ValueError(
                    f"{path.name}: the row of {row.variant!r}, seed {row.seed}, is of "
                    f"another training than the study says: make study "
                    f"NAME={self.name} replaces it."
                )
        place = {name: i for i, name in enumerate(self.runs)}
        return (
            rows.assign(place=rows.variant.map(place))
            .sort_values(["place", "seed"])
            .drop(columns="place")
            .reset_index(drop=True)
        )

    def run(self, variant: str, seed: int, data: str) -> Run:
        """A variant's training with this seed, of these images (see data.data_key)."""
        return self.runs[variant].throughout(seed=seed).bind(data, "")


def study_names(root: Path = ROOT) -> list[str]:
    """The names of all studies, sorted."""
    return sorted(path.stem for path in (root / "studies").glob("[!._]*.py"))


def load_study(name: str | Path, root: Path = ROOT) -> Study:
    """A study by name, or by the path of its file, a Python program that is run.

    Classes that it defines can be handed to helper processes: its module is ``studies.<name>``,
    and the folder that holds studies/ is appended to ``sys.path``. Raises ValueError for an unknown
    name, and for a file that is no study.
    """
    path = Path(name)
    if path.suffix != ".py":
        check_name("study", str(name), study_names(root))
        path = root / "studies" / f"{name}.py"
    module = _module(path)
    for needed in ("RUNS", "SEEDS", "FIGURE", "ANSWER"):
        if not hasattr(module, needed):
            raise ValueError(f"study {path.stem}: {path} has no {needed}.")
    runs, seeds, baseline = dict(module.RUNS), module.SEEDS, getattr(module, "BASELINE", {})
    if not isinstance(seeds, Mapping):
        seeds = dict.fromkeys(runs, seeds)
    if not isinstance(baseline, Mapping):
        check_name(f"variant in BASELINE of the study {path.stem}", baseline, runs)
        baseline = {variant: baseline for variant in runs if variant != baseline}
    more: dict[str, Any] = {
        low: getattr(module, low.upper())
        for low in ("data", "curve")
        if hasattr(module, low.upper())
    }
    return Study(
        path.stem,
        " ".join((module.__doc__ or "").split()),
        runs,
        {variant: tuple(s) for variant, s in seeds.items()},
        dict(baseline),
        module.FIGURE,
        " ".join(module.ANSWER.split()),
        **more,
    )


def _module(path: Path) -> ModuleType:
    """Run the file as the module ``studies.<its name>``."""
    spec = importlib.util.spec_from_file_location(f"studies.{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"{path} is no file: give a study's name, or the path of its file.")
    if (folder := str(path.resolve().parent.parent)) not in sys.path:
        sys.path.append(folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


# ---------------------------------------------------------------------------------- training


def runs_of(study: Study, data: str) -> dict[tuple[str, int], Run]:
    """The study's trainings by variant and seed, for these images (see data.data_key)."""
    return {
        (variant, seed): study.run(variant, seed, data)
        for variant in study.runs
        for seed in study.seeds[variant]
    }


def train_study(
    study: Study,
    train_set: Images,
    test_set: Images,
    store: Store,
    root: Path = ROOT,
    **options: Any,
) -> pd.DataFrame:
    """Train what the study's rows lack, write results/<name>.csv, and give all rows.

    A row of a variant that was changed since is replaced; one of a variant or seed that the study
    no longer has is left out. options: those of run_all. Raises ValueError where there are rows of
    other images.
    """
    data, path = data_key(train_set, test_set), root / "results" / f"{study.name}.csv"
    rows = read_rows(path) if path.exists() else pd.DataFrame(columns=list(ROW_COLUMNS))
    if others := sorted(set(rows.data) - {data}):
        raise ValueError(
            f"the rows of the study {study.name} are of the data {others[0]}, not {data}: "
            "give it the images that it was made with."
        )
    wanted = runs_of(study, data)
    keys = {(*at, run.key): run for at, run in wanted.items()}
    there = list(zip(rows.variant, rows.seed, rows.key, strict=True))
    kept = rows[[found in keys for found in there]]
    missing = {(v, s): run for (v, s, key), run in keys.items() if (v, s, key) not in there}
    if missing:
        check_writable(path.parent)
        table = run_all(list(missing.values()), train_set, test_set, store, **options)
        table = table.assign(study=study.name, variant=[variant for variant, _ in missing])
        kept = pd.concat([part for part in (kept, table[list(ROW_COLUMNS)]) if len(part)])
    if missing or len(kept) < len(rows):
        write_rows(kept, path, study.runs)
    return study.rows(root)


def verify(
    study: Study,
    train_set: Images,
    test_set: Images,
    count: int = 2,
    root: Path = ROOT,
    **options: Any,
) -> pd.DataFrame:
    """Train the ``count`` cheapest rows again: columns variant, seed, rows, again, difference.

    Cheapest: of the fewest trainings, teachers included, then of the fewest seconds. rows, again:
    the accuracy in the rows and that of today, percent. A device, or another release of PyTorch,
    rounds otherwise: a difference of some tenths is no fault. The store is a new one, or finished
    runs would be compared with themselves. Raises ValueError for fewer than one, without rows, and
    for other images than those of the rows.
    """
    rows, data = study.rows(root), data_key(train_set, test_set)
    if count < 1:
        raise ValueError(f"{count} rows cannot be trained again: give 1 or more.")
    if rows.empty or set(rows.data) != {data}:
        raise ValueError(
            f"the study {study.name} has no rows of the data {data}: make study "
            f"NAME={study.name}, or give it the images of its rows."
        )
    runs = [study.run(*at, data) for at in zip(rows.variant, rows.seed, strict=True)]
    trainings = [len(teachers_first([run])) for run in runs]
    rows = rows.assign(place=range(len(rows)), trainings=trainings)
    rows = rows.sort_values(["trainings", "seconds"], kind="stable").head(count)
    with TemporaryDirectory() as store:
        again = run_all([runs[i] for i in rows.place], train_set, test_set, store, **options)
    score = "validation_accuracy" if rows.accuracy.isna().all() else "accuracy"
    found = rows[["variant", "seed", "device", score]].rename(columns={score: "rows"})
    return found.assign(again=list(again[score]), difference=list(again[score] - rows[score].array))
