"""A Run is a value that says everything that decides a result; run_all finishes a list of them, teachers first."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .augment import check_crop, check_images
from .data import MAX_SEED, Images, Split, check_name, check_test_set, data_key, split
from .models import MODELS, build
from .step import uses_bf16
from .store import Store
from .training import History, Recipe, State, check_fields, device_title, pick_device, predict, train
from .workers import helpers

PSEUDO = ("none", "soft", "hard")  # none: of a run on labels alone
# What decides how a student learns from its teacher: fields of Run and of Settings.
STUDENT_OPTIONS = ("threshold", "balance", "flip_average", "temperature", "ensemble", "repeat_labels")
CHECKPOINT_SECONDS = 10.0


@dataclass(frozen=True)
class Run:
    """One training. Equal Runs have equal keys and, on one CPU and one set of library versions, equal weights."""

    model: str
    labels: int  # how many labelled images
    recipe: Recipe = field(default_factory=Recipe)
    teacher: Run | None = None  # None: trained on the labels alone
    pseudo: str = "none"  # soft: the teacher's probabilities; hard: their argmax
    threshold: float = 0.0  # pseudo-labels below this confidence are dropped
    balance: bool = False  # as many pseudo-labelled images in each class (paper, section 2)
    flip_average: bool = False  # the teacher's prediction is the mean over image and mirror
    temperature: float = 1.0  # of soft pseudo-labels: below 1 sharpens them
    ensemble: int = 1  # the pseudo-labels are the mean prediction of so many trainings of the teacher
    repeat_labels: int = 1  # how often an epoch of a student sees each labelled image
    member: int = 0  # trainings alike but for this differ in initial weights, order and noise
    seed: int = 0  # of the split, the initial weights, the order and the noise
    holdout: float = 0.0  # this share of the labels validates, and the test images are not looked at
    data: str = ""  # name and fingerprint of the images; filled in by run_all
    split: str = ""  # key of a saved split; empty: drawn from the seed

    def __post_init__(self) -> None:
        if not isinstance(self.recipe, Recipe) or not isinstance(self.teacher, Run | None):
            raise ValueError(f"recipe={self.recipe!r} and teacher={self.teacher!r}: a Recipe is wanted, and a Run or None.")
        at_least = {"labels": 2, "ensemble": 1, "repeat_labels": 1, "member": 0}
        check_fields(self, {"threshold": (0, 1), "holdout": (0, 0.9), "temperature": (0.01, 100), "seed": (0, MAX_SEED),
                            **{name: (least, math.inf) for name, least in at_least.items()}})
        check_name("model", self.model, MODELS)
        check_name("pseudo-label kind", self.pseudo, PSEUDO)
        if (self.teacher is None) != (self.pseudo == "none"):
            raise ValueError(f"pseudo={self.pseudo!r} with{'out' if self.teacher is None else ''} a teacher: a student "
                             "needs a teacher and 'soft' or 'hard', a supervised run neither.")
        for f in fields(self) if self.teacher is None else ():
            if f.name in STUDENT_OPTIONS and getattr(self, f.name) != f.default:
                raise ValueError(f"{f.name}={getattr(self, f.name)} of a run without a teacher: it is for students.")
        for name in ("labels", "seed", "holdout") if self.teacher is not None else ():
            mine, its = getattr(self, name), getattr(self.teacher, name)
            if mine != its:
                raise ValueError(f"{name}={mine} of a student and {name}={its} of its teacher: the teacher would have seen other labels.")

    @cached_property
    def key(self) -> str:
        """A hash of all fields, the teacher's included."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:20]

    @cached_property
    def teachers(self) -> tuple[Run, ...]:
        """The runs whose mean prediction labels the images: none, the teacher, or an ensemble of its trainings."""
        if self.teacher is None:
            return ()
        return tuple(replace(self.teacher, member=self.teacher.member + i) for i in range(self.ensemble))

    @property
    def generation(self) -> int:
        """0 for a run on labels alone, 1 for its student, and so on."""
        return 0 if self.teacher is None else self.teacher.generation + 1

    def bind(self, data: str, split_key: str) -> Run:
        """This Run, and its teachers, for these images and this saved split."""
        if self.data not in ("", data):
            raise ValueError(f"a run was made for the data {self.data}, not {data}: give run_all the images it was made for.")
        if self.split not in ("", split_key):
            raise ValueError(f"a run was made for the saved split {self.split}, not {split_key or 'one drawn from its seed'}: give run_all "
                             "the saved_split it was made for.")
        teacher = self.teacher.bind(data, split_key) if self.teacher else None
        return replace(self, data=data, split=split_key, teacher=teacher)

    def __str__(self) -> str:
        by = f" {self.pseudo} from {self.teacher.model}" if self.teacher else ""
        member = f", member {self.member}" if self.member else ""
        return f"{self.model}{by}, {self.labels:,} labels, seed {self.seed}{member}"


# ------------------------------------------------------------------------------------------------------- training


def pseudo_labels(probabilities: Tensor, run: Run) -> tuple[Tensor, Tensor]:
    """Which unlabelled images a student learns from, and its targets for them: (indices, probabilities).

    probabilities: the teacher's, N x classes. The filter drops images below ``run.threshold``. Balancing brings each
    class to the mean count of what is left: its most confident images, repeated where there are too few (Xie et
    al., 2020, section 2, which repeats at random). Soft targets are p^(1/temperature), normalised.
    """
    confidence, label = probabilities.max(1)
    soft = (probabilities.clamp(min=1e-30).log() / run.temperature).softmax(1)
    targets = soft if run.pseudo == "soft" else nn.functional.one_hot(label, probabilities.shape[1]).float()
    kept = (confidence >= run.threshold).nonzero().flatten()
    if run.balance and len(kept):
        groups = [kept[label[kept] == c] for c in label[kept].unique()]
        count = max(1, len(kept) // len(groups))
        ranked = [group[confidence[group].argsort(descending=True, stable=True)] for group in groups]
        kept = torch.cat([group.repeat(-(-count // len(group)))[:count] for group in ranked])
    return kept, targets[kept]


def _learn_from_teacher(run: Run, train_set: Images, pool: Tensor, store: Store,
                        device: torch.device) -> tuple[Tensor, Tensor, dict[str, float | None]]:
    """(indices of the unlabelled images kept, targets for them, how right and how many they are); the teachers are finished."""
    votes = []
    for teacher in run.teachers:
        model = store.model(teacher.key)
        votes += [torch.cat([predict(model, train_set.images[part], flip=run.flip_average, precision=run.recipe.precision, device=device)
                             for part in pool.split(5000)])]  # in parts: no second copy of all images
    kept, targets = pseudo_labels(torch.stack(votes).mean(0), run)
    if not len(kept):
        raise ValueError(f"no pseudo-label reaches the threshold {run.threshold} ({run}): lower it.")
    truth = train_set.labels[pool[kept]]
    right = (targets.argmax(1) == truth)[truth >= 0].float()
    facts = {"pseudo_accuracy": 100 * float(right.mean()) if len(right) else None, "kept": len(kept.unique()) / len(pool)}
    return pool[kept], targets, facts


def _train_run(run: Run, train_set: Images, test_set: Images, drawn: Split, store: Store, device: torch.device,
               progress: bool) -> None:
    """Train one run whose teachers are finished, and commit it."""
    classes, start = len(train_set.classes), time.perf_counter()
    held = round(run.holdout * run.labels)
    chosen, validate = drawn.labeled[: run.labels - held], drawn.labeled[run.labels - held :]
    targets = nn.functional.one_hot(train_set.labels[chosen], classes).float()
    result: dict[str, Any] = {"pseudo_accuracy": None, "kept": None}
    if run.teachers:
        more, soft, result = _learn_from_teacher(run, train_set, drawn.unlabeled, store, device)
        chosen = torch.cat([chosen.repeat(run.repeat_labels), more])
        targets = torch.cat([targets.repeat(run.repeat_labels, 1), soft])
    seed = int(run.key[:8], 16)  # the key, so that a student of equal size does not start as its teacher did
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(run.model, classes, dropout=run.recipe.dropout, stochastic_depth=run.recipe.stochastic_depth)
    last, made_with, found = time.monotonic(), _made_with(run, device), store.load_checkpoint(run)
    if found and {k: v for k, v in found[2].items() if k != "resumed_from"} == made_with:
        made_with = found[2]
    elif found:
        made_with["resumed_from"] = found[2]
    earlier = sum(row["seconds"] for row in found[1]) if found else 0.0

    def checkpoint(state: Callable[[], State], history: History) -> None:
        nonlocal last
        if time.monotonic() - last >= CHECKPOINT_SECONDS:
            store.save_checkpoint(run, state(), history, made_with)
            last = time.monotonic()

    history = train(model, train_set.images, targets, run.recipe, chosen=chosen, seed=seed, device=device, title=str(run),
                    progress=progress, resume=found[:2] if found else None, checkpoint=checkpoint)
    size = min(run.recipe.batch_size, len(chosen))
    speed = run.recipe.epochs * (len(chosen) // size * size) / sum(row["seconds"] for row in history)
    scored = Images(train_set.images[validate], train_set.labels[validate], train_set.classes, "") if held else test_set
    guess = predict(model, scored.images, device=device).argmax(1)
    accuracy = 100 * int((guess == scored.labels).sum()) / len(guess)
    counts = torch.bincount(scored.labels * classes + guess, minlength=classes**2).view(classes, classes)
    result |= {"accuracy": None if held else accuracy, "validation_accuracy": accuracy if held else None,
               "confusion": counts.tolist(), "seconds": earlier + time.perf_counter() - start, "images_per_second": speed,
               "device": device_title(device), "title": train_set.title, "image_size": [*train_set.images.shape[2:]]}
    made_with["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = {"key": run.key, "run": asdict(run), "result": result, "made_with": made_with}
    store.commit(run, record, history, {k: v.cpu().contiguous() for k, v in model.state_dict().items()})


def _made_with(run: Run, device: torch.device) -> dict[str, Any]:
    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": version("torchvision"),
            "numpy": np.__version__, "device": str(device), "threads": torch.get_num_threads(),
            "precision": "bf16" if uses_bf16(run.recipe.precision, device) else "fp32", "git": GIT_REVISION}


def _git_revision() -> str | None:
    """The revision of the code, marked "+" if files were changed since; None where git does not know this file.

    ``git describe --dirty`` would rewrite the index, and a commit made at the same moment would fail.
    """
    git = ["git", "-C", os.fspath(Path(__file__).parent)]
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": True, "timeout": 10}
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], **options)
        revision = subprocess.run([*git, "describe", "--always", "--abbrev=12"], **options).stdout.strip()
        changed = subprocess.run([*git, "--no-optional-locks", "status", "--porcelain", "--untracked-files=no"], **options).stdout
        return f"{revision}+" if changed else revision
    except (OSError, subprocess.SubprocessError):
        return None


GIT_REVISION = _git_revision()  # of the code that was imported, whatever is committed while it runs


def run_all(runs: Sequence[Run], train_set: Images, test_set: Images, store: Store | str | Path = "runs", *,
            saved_split: Split | None = None, device: str | torch.device | None = None, workers: int = 1,
            progress: bool = True) -> pd.DataFrame:
    """Finish all runs, teachers first, and give a table with a row per run, in their order.

    What the store holds is not trained again. A run that another process is training is left to it, and waited for.
    workers: how many processes train at once; a script that asks for more than one must do so under
    ``if __name__ == "__main__":``, since they are started by importing it. The images are then one copy for all in a temporary file,
    the caller's tensors too: these no longer share memory with arrays that they were made of.
    Raises ValueError, before anything is trained, for runs that these images cannot give.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers={workers!r} is not a whole number from 1.")
    if isinstance(runs, Run):
        raise ValueError(f"{runs} is one Run: run_all takes a list of them.")
    store = store if isinstance(store, Store) else Store(store)
    device = pick_device(device)
    bound, ordered, splits = prepare(runs, train_set, test_set, saved_split)
    records = {run.key: record for run in ordered if (record := store.find(run))}
    missing = [run for run in ordered if run.key not in records]
    # The runs of a generation share the threads. Counted over all runs, not the missing ones: a run's threads, and with
    # them its last bits, must not depend on what a killed call had finished.
    threads = torch.get_num_threads()
    shares = {g: max(1, threads // min(workers, count)) for g, count in Counter(run.generation for run in ordered).items()}
    abreast = max(Counter(run.generation for run in missing).values(), default=0)
    arguments = (train_set, test_set, splits, shares, store, device)
    try:
        others = min(workers, abreast) - 1
        with helpers(others, _finish, missing, records, *arguments, False) if others > 0 else nullcontext():
            _finish(missing, records, *arguments, progress)
    finally:
        torch.set_num_threads(threads)
    return pd.DataFrame([_row(run, records[run.key]["result"]) for run in bound])


def _finish(runs: Sequence[Run], records: dict[str, dict[str, Any]], train_set: Images, test_set: Images,
            splits: dict[tuple[int, int], Split], shares: dict[int, int], store: Store, device: torch.device, progress: bool) -> None:
    """Train each of ``runs`` unless another process does or did, until ``records``, by key, holds them all.

    runs: teachers before their students. records: those of finished runs. shares: threads by generation.
    """
    waiting = list(runs)
    with tqdm(total=len(waiting), desc="runs", unit="run", disable=not progress) as bar:
        while waiting:
            for run in waiting:
                record = store.find(run)
                if record is None and all(teacher.key in records for teacher in run.teachers):
                    with store.lock(run) as mine:
                        if mine and (record := store.find(run)) is None:
                            bar.set_postfix_str("")
                            store.set_aside(run)
                            torch.set_num_threads(shares[run.generation])
                            _train_run(run, train_set, test_set, splits[run.labels, run.seed], store, device, progress)
                            record = store.find(run)
                if record is not None:
                    records[run.key] = record
                    waiting.remove(run)
                    bar.update()
                    break  # the first runs again: one that failed in another process must not wait for the last
            else:
                bar.set_postfix_str("waiting for other processes")  # they train all that is left
                time.sleep(0.5)


def prepare(runs: Sequence[Run], train_set: Images, test_set: Images,
            saved_split: Split | None = None) -> tuple[list[Run], list[Run], dict[tuple[int, int], Split]]:
    """(the runs bound to these images; with their teachers, teachers first; splits by number of labels and seed).

    Raises ValueError, or TypeError for images that are not uint8, for a run that these images cannot give.
    """
    check_images(test_set.images)
    check_test_set(train_set, test_set)
    if len(train_set.classes) < 2:
        raise ValueError(f"{train_set.title} has the single class {''.join(train_set.classes)}: a classifier needs two or more.")
    bound = [run.bind(data_key(train_set, test_set), saved_split.key if saved_split else "") for run in runs]
    ordered = _teachers_first(bound)
    wanted = {(run.labels, run.seed) for run in ordered}
    splits = {w: saved_split.resize(train_set, w[0]) if saved_split else split(train_set, *w) for w in wanted}
    for run in ordered:
        check_crop(run.recipe.crop, train_set.images, f"{run}: ")
        if run.teachers and not len(splits[run.labels, run.seed].unlabeled):
            raise ValueError(f"all {len(train_set):,} images are labelled, none is left for a student to learn from: lower labels.")
        held = round(run.holdout * run.labels)
        if run.holdout and (held < 1 or run.labels - held < len(train_set.classes)):
            raise ValueError(f"holdout={run.holdout:g} of {run.labels} labels leaves {run.labels - held} to learn {len(train_set.classes)} "
                             f"classes from and {held} to validate on: raise labels, or leave the grid out.")
    return bound, ordered, splits


def _teachers_first(runs: Sequence[Run]) -> list[Run]:
    """Every run once, its teachers before it."""
    ordered: dict[str, Run] = {}

    def add(run: Run) -> None:
        if run.key not in ordered:  # else its teachers are there too: ensembles of ensembles have thousands of paths to them
            for teacher in run.teachers:
                add(teacher)
            ordered[run.key] = run

    for run in runs:
        add(run)
    return list(ordered.values())


def _row(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    scores = ("accuracy", "validation_accuracy", "pseudo_accuracy", "kept", "seconds", "images_per_second")
    return {"model": run.model, "teacher": run.teacher.model if run.teacher else "", "pseudo": run.pseudo,
            "generation": run.generation, "labels": run.labels, **asdict(run.recipe),
            **{name: getattr(run, name) for name in (*STUDENT_OPTIONS, "member", "seed")},
            "device": result["device"], "title": result["title"], "data": run.data,
            **{name: float("nan") if result[name] is None else result[name] for name in scores}, "key": run.key}
