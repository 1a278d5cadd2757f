"""A Run says everything that decides a result; run_all finishes a list of them, teachers first."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from importlib.metadata import version
from itertools import product
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .augment import check_crop, check_images
from .data import Images, Split, check_name, check_test_set, data_key, split
from .files import out_of_memory_said
from .models import MODELS, build
from .randomness import MAX_SEED, own_random_numbers
from .recipes import Recipe, check_fields
from .revision import git_revision
from .step import uses_bf16
from .store import Store
from .training import History, State, device_title, pick_device, predict, train
from .workers import helpers

PSEUDO = ("soft", "hard")
# how a student learns from its teachers
STUDENT_OPTIONS = ("pseudo", "threshold", "balance", "flip_average", "repeat_labels")
CHECKPOINT_SECONDS = 10.0
_ONE_CALL = RLock()


class NoPseudoLabelError(ValueError):
    """A student whose filter lets no pseudo-label through."""


@dataclass(frozen=True, eq=False)
class Run:
    """One training. Equal Runs have equal keys.

    On one CPU and one set of library versions they have equal weights too.
    """

    model: str
    labels: int  # how many labelled images
    recipe: Recipe = field(default_factory=Recipe)
    # their mean prediction labels the other images; none: trained on the labels alone
    teachers: tuple[Run, ...] = ()
    pseudo: str = "soft"  # soft: the teachers' probabilities; hard: their argmax
    threshold: float = 0.0  # pseudo-labels below this confidence are dropped
    balance: bool = False  # as many pseudo-labelled images in each class (paper, section 2)
    flip_average: bool = False  # a teacher's prediction is the mean over image and mirror
    repeat_labels: int = 1  # how often an epoch of a student sees each labelled image
    member: int = 0  # trainings alike but for this differ in initial weights, order and noise
    seed: int = 0  # of the split, the initial weights, the order and the noise
    # this share of the labels validates, and the test images are not looked at
    holdout: float = 0.0
    data: str = ""  # name and fingerprint of the images; filled in by run_all
    split: str = ""  # key of a saved split; empty: drawn from the seed

    def __post_init__(self) -> None:
        object.__setattr__(
            self,
            "teachers",
            tuple(self.teachers) if isinstance(self.teachers, list) else self.teachers,
        )
        if not isinstance(self.recipe, Recipe):
            raise ValueError(f"recipe={self.recipe!r} is not a Recipe.")
        if not isinstance(self.teachers, tuple) or not all(
            isinstance(teacher, Run) for teacher in self.teachers
        ):
            raise ValueError(
                f"teachers={self.teachers!r} is not a tuple of Runs: write teachers=(teacher,)."
            )
        check_fields(self, _RANGES)
        check_name("model", self.model, MODELS)
        check_name("pseudo-label kind", self.pseudo, PSEUDO)
        for f in fields(self) if not self.teachers else ():
            if f.name in STUDENT_OPTIONS and getattr(self, f.name) != f.default:
                raise ValueError(
                    f"{f.name}={getattr(self, f.name)} of a run without teachers: "
                    "it is for students."
                )
        for teacher, name in product(self.teachers, ("labels", "seed", "holdout")):
            mine, its = getattr(self, name), getattr(teacher, name)
            if mine != its:
                raise ValueError(
                    f"{name}={mine} of a student and {name}={its} of its teacher: the teacher "
                    "would have seen other labels."
                )
        if len({teacher.key for teacher in self.teachers}) < len(self.teachers):
            raise ValueError(
                f"two teachers of {self} are the same training: give them other members, as "
                "run.members(3) does."
            )

    @cached_property
    def key(self) -> str:
        """A hash of what differs from the defaults, the teachers' keys included.

        So a new field leaves the keys of finished runs as they were, and no default may change.
        """
        said = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != f.default
        }
        usual = asdict(Recipe())  # not the defaults of a subclass, which has a name of its own
        said["recipe"] = {k: v for k, v in asdict(self.recipe).items() if v != usual.get(k)}
        if type(self.recipe) is not Recipe:
            said["kind of recipe"] = type(self.recipe).__name__
        said["teachers"] = [teacher.key for teacher in self.teachers]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:20]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @cached_property
    def generation(self) -> int:
        """0 for a run on labels alone, 1 for its student, and so on."""
        return 1 + max(teacher.generation for teacher in self.teachers) if self.teachers else 0

    @property
    def held(self) -> int:
        """How many of the labels validate."""
        return round(self.holdout * self.labels)

    def members(self, count: int) -> tuple[Run, ...]:
        """An ensemble: this run and others, ``count`` in all, alike but for the member number.

        Raises ValueError unless ``count`` is from 1 to 1,000.
        """
        if not 1 <= count <= 1000:
            raise ValueError(f"members({count}): an ensemble has from 1 to 1,000 members.")
        return tuple(replace(self, member=self.member + i) for i in range(count))

    def throughout(self, **changes: Any) -> Run:
        """This run and all its teachers with some fields changed, such as the seed."""
        done: dict[str, Run] = {}  # generations of ensembles have thousands of paths to a teacher

        def changed(run: Run) -> Run:
            if run.key not in done:
                done[run.key] = replace(run, teachers=tuple(map(changed, run.teachers)), **changes)
            return done[run.key]

        return changed(self)

    def bind(self, data: str, split_key: str) -> Run:
        """This Run, and its teachers, for these images and this saved split."""
        for run in teachers_first([self]):
            if run.data not in ("", data):
                raise ValueError(
                    f"a run was made for the data {run.data}, not {data}: give run_all the "
                    "images it was made for."
                )
            if run.split not in ("", split_key):
                raise ValueError(
                    f"a run was made for the saved split {run.split}, not "
                    f"{split_key or 'one drawn from its seed'}: "
                    "give run_all the saved_split it was made for."
                )
        return self.throughout(data=data, split=split_key)

    def __str__(self) -> str:
        models = Counter(teacher.model for teacher in self.teachers)
        names = " and ".join(
            name if count == 1 else f"{count} {name}" for name, count in models.items()
        )
        by = f" {self.pseudo} from {names}" if names else ""
        member = f", member {self.member}" if self.member else ""
        return f"{self.model}{by}, {self.labels:,} labels, seed {self.seed}{member}"


_RANGES = {
    "labels": (2, math.inf),
    "threshold": (0, 1),
    "repeat_labels": (1, 1000),
    "member": (0, 1_000_000),
    "seed": (0, MAX_SEED),
    "holdout": (0, 0.9),
}


def teachers_first(runs: Sequence[Run]) -> list[Run]:
    """Every run once, its teachers before it."""
    ordered: dict[str, Run] = {}

    def add(run: Run) -> None:
        if run.key not in ordered:  # else its teachers are there too
            for teacher in run.teachers:
                add(teacher)
            ordered[run.key] = run

    for run in runs:
        add(run)
    return list(ordered.values())


# ----------------------------------------------------------------------------------------- training


def pseudo_labels(probabilities: Tensor, run: Run) -> tuple[Tensor, Tensor]:
    """The unlabelled images that a student learns from: (indices, targets: probabilities).

    probabilities: the teacher's, N x classes. The filter drops images below ``run.threshold``.
    Balancing brings each class to the mean count of what is left: its most confident images,
    repeated where there are too few (Xie et al., 2020, section 2, which repeats at random).
    """
    confidence, label = probabilities.max(1)
    targets = (
        probabilities
        if run.pseudo == "soft"
        else nn.functional.one_hot(label, probabilities.shape[1]).float()
    )
    kept = (confidence >= run.threshold).nonzero().flatten()
    if run.balance and len(kept):
        groups = [kept[label[kept] == c] for c in label[kept].unique()]
        count = max(1, len(kept) // len(groups))
        ranked = [
            group[confidence[group].argsort(descending=True, stable=True)] for group in groups
        ]
        kept = torch.cat([group.repeat(-(-count // len(group)))[:count] for group in ranked])
    return kept, targets[kept]


def _learn_from_teachers(
    run: Run, train_set: Images, pool: Tensor, store: Store, device: torch.device
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """(indices of the unlabelled images kept, targets for them, facts); teachers are finished."""
    votes = []
    for teacher in run.teachers:
        model = store.model(teacher.key)
        votes += [
            torch.cat(
                [
                    predict(
                        model,
                        train_set.images[part],
                        flip=run.flip_average,
                        precision=run.recipe.precision,
                        device=device,
                    )
                    # in parts: no second copy of all images
                    for part in pool.split(5000)
                ]
            )
        ]
    kept, targets = pseudo_labels(torch.stack(votes).mean(0), run)
    if not len(kept):
        raise NoPseudoLabelError(
            f"{run}: no pseudo-label reaches threshold={run.threshold:g}: lower threshold "
            "(0 keeps every one)."
        )
    (confidence, label), truth = targets.max(1), train_set.labels[pool[kept]]
    right = (label == truth)[truth >= 0].float()
    counts = torch.bincount(label, minlength=len(train_set.classes))
    sums = torch.bincount(label, confidence, minlength=len(train_set.classes))
    if none := [name for name, count in zip(train_set.classes, counts, strict=True) if not count]:
        tqdm.write(
            f"{run}: no pseudo-label of the class {' nor '.join(none[:3])}"
            f"{', ...' if len(none) > 3 else ''}: "
            "the teachers give it to no unlabelled image that is kept."
        )
    facts = {
        "pseudo_accuracy": 100 * float(right.mean()) if len(right) else None,
        "kept": len(kept.unique()) / len(pool),
        "pseudo_counts": counts.tolist(),
        "pseudo_confidence": (sums / counts.clamp(min=1)).tolist(),
    }
    return pool[kept], targets, facts


def _training_set(
    run: Run, train_set: Images, drawn: Split, store: Store, device: torch.device
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """(indices of the images to train on, targets for them, facts about the pseudo-labels)."""
    chosen = drawn.labeled[: run.labels - run.held]
    targets = nn.functional.one_hot(train_set.labels[chosen], len(train_set.classes)).float()
    if not run.teachers:
        return chosen, targets, {"pseudo_accuracy": None, "kept": None}
    more, soft, facts = _learn_from_teachers(run, train_set, drawn.unlabeled, store, device)
    chosen = torch.cat([chosen.repeat(run.repeat_labels), more])
    return chosen, torch.cat([targets.repeat(run.repeat_labels, 1), soft]), facts


def _train_run(
    run: Run,
    train_set: Images,
    test_set: Images,
    drawn: Split,
    store: Store,
    device: torch.device,
    progress: bool,
) -> None:
    """Train one run whose teachers are finished, and commit it."""
    start = time.perf_counter()
    chosen, targets, facts = _training_set(run, train_set, drawn, store, device)
    # the key, so that a student of equal size does not start as its teacher did
    seed, classes = int(run.key[:8], 16), train_set.classes
    noise = {name: getattr(run.recipe, name) for name in ("dropout", "stochastic_depth")}
    with own_random_numbers():
        torch.manual_seed(seed)
        model = build(run.model, len(classes), **noise)
    last, found = time.monotonic(), store.load_checkpoint(run)
    made_with = _made_with(run, device, found[2] if found else None)
    earlier = sum(row["seconds"] for row in found[1]) if found else 0.0

    def checkpoint(state: Callable[[], State], history: History) -> None:
        nonlocal last
        if time.monotonic() - last >= CHECKPOINT_SECONDS:
            store.save_checkpoint(run, state(), history, made_with)
            last = time.monotonic()

    history = train(
        model,
        train_set.images,
        targets,
        run.recipe,
        chosen=chosen,
        seed=seed,
        device=device,
        title=str(run),
        progress=progress,
        resume=found[:2] if found else None,
        checkpoint=checkpoint,
    )
    if run.held:
        of = drawn.labeled[run.labels - run.held :]
        test_set = Images(train_set.images[of], train_set.labels[of], classes, "")
    size, seconds = min(run.recipe.batch_size, len(chosen)), sum(row["seconds"] for row in history)
    steps = len(history) * (len(chosen) // size)
    result = facts | _scores(model, test_set, bool(run.held), device)
    result |= {
        "fit": history[-1]["accuracy"],
        "steps": steps,
        "seconds": earlier + time.perf_counter() - start,
        "images_per_second": steps * size / seconds,
        "device": device_title(device),
        "title": train_set.title,
        "classes": classes,
        "image_size": [*train_set.images.shape[2:]],
        "bits": train_set.bits,
    }
    made_with["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    weights = {k: v.cpu().contiguous() for k, v in model.state_dict().items()}
    store.commit(run, _record(run, result, made_with), history, weights)


def _scores(model: nn.Module, scored: Images, held: bool, device: torch.device) -> dict[str, Any]:
    """Accuracy, balanced accuracy, and confusion counts, true class by predicted.

    Balanced accuracy is the mean recall of the classes that have an image.
    """
    classes, guess = len(scored.classes), predict(model, scored.images, device=device).argmax(1)
    counts = torch.bincount(scored.labels * classes + guess, minlength=classes**2).view(
        classes, classes
    )
    accuracy, of_class = 100 * int(counts.trace()) / len(guess), counts.sum(1)
    recall = counts.diag()[of_class > 0] / of_class[of_class > 0]
    return {
        "accuracy": None if held else accuracy,
        "validation_accuracy": accuracy if held else None,
        "balanced_accuracy": 100 * float(recall.mean()),
        "confusion": counts.tolist(),
    }


def _record(run: Run, result: dict[str, Any], made_with: dict[str, Any]) -> dict[str, Any]:
    """What ``run.json`` says of a finished run."""
    said = {f.name: getattr(run, f.name) for f in fields(run)} | {
        "recipe": asdict(run.recipe),
        "teachers": [teacher.key for teacher in run.teachers],
    }
    return {"key": run.key, "run": said, "result": result, "made_with": made_with}


def _made_with(run: Run, device: torch.device, before: dict[str, Any] | None) -> dict[str, Any]:
    """Versions and device; before: those of the checkpoint that the training goes on from."""
    now = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "numpy": np.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "precision": "bf16" if uses_bf16(run.recipe.precision, device) else "fp32",
        "git": git_revision(),
    }
    if before and {k: v for k, v in before.items() if k != "resumed_from"} == now:
        return before
    return now | {"resumed_from": before} if before else now


def run_all(
    runs: Sequence[Run],
    train_set: Images,
    test_set: Images,
    store: Store | str | Path = "runs",
    *,
    saved_split: Split | None = None,
    device: str | torch.device | None = None,
    workers: int = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """Finish all runs, teachers first, and give a table with a row per run, in their order.

    What the store holds is not trained again. A run that another process is training is left to it,
    and waited for. workers: how many processes train at once; a script that asks for more than one
    must do so under ``if __name__ == "__main__":``, since they are started by importing it. The
    images are then one copy for all in a temporary file, the caller's tensors too: these no longer
    share memory with arrays that they were made of. Raises ValueError, before anything is trained,
    for runs that these images cannot give. A call in another thread waits for this one. On a CPU
    the C library keeps what is freed from then on (see :func:`~noisy_student.train`).
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers={workers!r} is not a whole number from 1.")
    if isinstance(runs, Run):
        raise ValueError(f"{runs} is one Run: run_all takes a list of them.")
    # One call of a process at a time: the number of threads is the whole process's.
    with _ONE_CALL:
        return _run_all(runs, train_set, test_set, store, saved_split, device, workers, progress)


def _run_all(
    runs: Sequence[Run],
    train_set: Images,
    test_set: Images,
    store: Store | str | Path,
    saved_split: Split | None,
    device: str | torch.device | None,
    workers: int,
    progress: bool,
) -> pd.DataFrame:
    """The part of :func:`run_all` that its lock protects."""
    store = store if isinstance(store, Store) else Store(store)
    device, _ = pick_device(device), git_revision()  # now, before somebody commits
    bound, ordered, splits = prepare(runs, train_set, test_set, saved_split)
    records = {run.key: record for run in ordered if (record := store.find(run))}
    missing = [run for run in ordered if run.key not in records]
    # The runs of a generation share the threads. Counted over all runs, not the missing ones: a
    # run's threads, and with them its last bits, must not depend on what a killed call finished.
    threads = torch.get_num_threads()
    shares = {
        g: max(1, threads // min(workers, count))
        for g, count in Counter(run.generation for run in ordered).items()
    }
    abreast = max(Counter(run.generation for run in missing).values(), default=0)
    arguments = (train_set, test_set, splits, shares, store, device)
    try:
        others = min(workers, abreast) - 1
        with (
            helpers(others, _finish, missing, records, *arguments, False)
            if others > 0
            else nullcontext()
        ):
            _finish(missing, records, *arguments, progress)
    finally:
        torch.set_num_threads(threads)
    return pd.DataFrame([_row(run, records[run.key]["result"]) for run in bound])


def run_variants(
    variants: Mapping[str, Run],
    seeds: Sequence[int] | Mapping[str, Sequence[int]],
    train_set: Images,
    test_set: Images,
    store: Store | str | Path = "runs",
    **options: Any,
) -> pd.DataFrame:
    """Finish each variant with each seed, by :func:`run_all` and its options; its table with a
    first column ``variant``.

    seeds: for all variants, or by variant. A variant's Run, and its teachers, take the seed in
    place of their own.
    """
    for some in seeds.values() if isinstance(seeds, Mapping) else [seeds]:
        if len(set(some)) < len(some):  # would count as two, and narrow the intervals
            raise ValueError(f"seeds={list(some)} names a seed twice: give each once.")
    by_variant = seeds if isinstance(seeds, Mapping) else dict.fromkeys(variants, seeds)
    runs = [
        (name, run.throughout(seed=seed))
        for name, run in variants.items()
        for seed in by_variant[name]
    ]
    table = run_all([run for _, run in runs], train_set, test_set, store, **options)
    table.insert(0, "variant", [name for name, _ in runs])
    return table


def _finish(
    runs: Sequence[Run],
    records: dict[str, dict[str, Any]],
    train_set: Images,
    test_set: Images,
    splits: dict[tuple[int, int], Split],
    shares: dict[int, int],
    store: Store,
    device: torch.device,
    progress: bool,
) -> None:
    """Train each of ``runs`` unless another process does or did, until ``records`` holds them all.

    runs: teachers before their students. records: those of finished runs, by key. shares: threads
    by generation.
    """
    waiting = list(runs)
    with tqdm(total=len(waiting), desc="runs", unit="run", disable=not (progress and runs)) as bar:
        while waiting:
            for run in waiting:
                record = store.find(run)
                if record is None and all(teacher.key in records for teacher in run.teachers):
                    with store.lock(run) as mine:
                        if mine and (record := store.find(run)) is None:
                            bar.set_postfix_str("")
                            store.set_aside(run)
                            torch.set_num_threads(shares[run.generation])
                            drawn = splits[run.labels, run.seed]
                            with out_of_memory_said(
                                f"images and network of {run}",
                                "lower recipe.batch_size, or take smaller images",
                            ):
                                _train_run(run, train_set, test_set, drawn, store, device, progress)
                            record = store.find(run)
                if record is not None:
                    records[run.key] = record
                    waiting.remove(run)
                    bar.update()
                    # the first again: one that failed in another process must not wait for the last
                    break
            else:
                bar.set_postfix_str("waiting for other processes")  # they train all that is left
                time.sleep(0.5)


def prepare(
    runs: Sequence[Run], train_set: Images, test_set: Images, saved_split: Split | None = None
) -> tuple[list[Run], list[Run], dict[tuple[int, int], Split]]:
    """(the runs, bound to these images; with their teachers, these first; splits by labels, seed).

    Raises ValueError, or TypeError for images that are not uint8, for a run that these images
    cannot give.
    """
    check_images(test_set.images)
    check_test_set(train_set, test_set)
    if len(train_set.classes) < 2:
        raise ValueError(
            f"{train_set.title} has the single class {''.join(train_set.classes)}: "
            "a classifier needs two or more."
        )
    data, drawn = data_key(train_set, test_set), saved_split.key if saved_split else ""
    bound = [run.bind(data, drawn) for run in runs]
    ordered = teachers_first(bound)
    wanted = {(run.labels, run.seed) for run in ordered}
    splits = {
        w: saved_split.resize(train_set, w[0]) if saved_split else split(train_set, *w)
        for w in wanted
    }
    for run in ordered:
        check_crop(run.recipe.crop, train_set.images, f"{run}: ")
        if run.teachers and not len(splits[run.labels, run.seed].unlabeled):
            raise ValueError(
                f"all {len(train_set):,} images are labelled, none is left for a student to learn "
                "from: lower labels."
            )
        learnt, classes = run.labels - run.held, len(train_set.classes)
        if run.holdout and (run.held < 1 or learnt < classes):
            raise ValueError(
                f"holdout={run.holdout:g} of {run.labels} labels leaves {learnt} to learn "
                f"{classes} classes from and {run.held} to validate on: "
                "raise labels, or leave the grid out."
            )
    return bound, ordered, splits


def _row(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    scores = (
        "accuracy",
        "validation_accuracy",
        "balanced_accuracy",
        "pseudo_accuracy",
        "kept",
        "fit",
        "steps",
        "seconds",
        "images_per_second",
    )
    return {
        "model": run.model,
        "teacher": " and ".join(dict.fromkeys(teacher.model for teacher in run.teachers)),
        "teachers": len(run.teachers),
        "generation": run.generation,
        "labels": run.labels,
        **asdict(run.recipe),
        **{name: getattr(run, name) for name in (*STUDENT_OPTIONS, "member", "seed")},
        "pseudo": run.pseudo if run.teachers else "none",
        "device": result["device"],
        "title": result["title"],
        "data": run.data,
        **{name: float("nan") if result[name] is None else result[name] for name in scores},
        "key": run.key,
    }
