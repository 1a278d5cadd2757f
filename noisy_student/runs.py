"""A Run is a value that says everything that decides a result; the store remembers the finished ones.

An entry of the store is a folder named by the Run's key: ``run.json`` (the Run and its result), ``history.csv`` (a row
per epoch), ``model.safetensors``, and ``SHA256SUMS`` over the three. It is built in ``<key>.partial``, where the
checkpoint of an unfinished training lies, and appears whole by one rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchvision
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm.auto import tqdm

from .data import Images, Split, data_key, split, unknown
from .models import MODELS, build
from .training import History, Recipe, State, device_title, pick_device, predict, train

VERSION = 1  # to be raised when the code changes what a Run gives; older entries are then set aside
PSEUDO = ("none", "soft", "hard")
FILES = ("run.json", "history.csv", "model.safetensors")
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
    repeat_labels: int = 1  # how often an epoch of a student sees each labelled image
    seed: int = 0  # of the split, the initial weights, the order and the noise
    holdout: float = 0.0  # this share of the labels validates, and the test images are not looked at
    data: str = ""  # name and fingerprint of the images; filled in by run_all
    split: str = ""  # key of a saved split; empty: drawn from the seed

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise unknown("model", self.model, MODELS)
        if self.pseudo not in PSEUDO:
            raise unknown("pseudo-label kind", self.pseudo, PSEUDO)
        if (self.teacher is None) != (self.pseudo == "none"):
            raise ValueError(f"pseudo={self.pseudo!r} with{'out' if self.teacher is None else ''} a teacher: a student "
                             "needs a teacher and 'soft' or 'hard', a supervised run neither.")
        for name, low, high in (("threshold", 0, 1), ("holdout", 0, 0.9), ("temperature", 0.01, 100), ("repeat_labels", 1, 1000)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} is not between {low:g} and {high:g}.")
        if isinstance(self.labels, bool) or not isinstance(self.labels, int) or self.labels < 2:
            raise ValueError(f"labels={self.labels!r} is not a whole number from 2.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed={self.seed!r} is not a whole number from 0.")

    @cached_property
    def key(self) -> str:
        """A hash of all fields, the teacher's included."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:20]

    @property
    def generation(self) -> int:
        """0 for a run on labels alone, 1 for its student, and so on."""
        return 0 if self.teacher is None else self.teacher.generation + 1

    def bind(self, data: str, split_key: str) -> Run:
        """This Run, and its teachers, for these images and this saved split."""
        if self.data not in ("", data):
            raise ValueError(f"a run was made for the data {self.data}, not {data}: give run_all the images it was made for.")
        teacher = self.teacher.bind(data, split_key) if self.teacher else None
        return replace(self, data=data, split=split_key, teacher=teacher)

    def __str__(self) -> str:
        by = f" {self.pseudo} from {self.teacher.model}" if self.teacher else ""
        return f"{self.model}{by}, {self.labels:,} labels, seed {self.seed}"


# --------------------------------------------------------------------------------------------------------- store


class Store:
    """Finished runs in a folder; any number of processes may share it."""

    def __init__(self, folder: str | Path = "runs") -> None:
        self.folder = Path(folder)

    def find(self, run: Run) -> dict[str, Any] | None:
        """The record of a finished run, or None. A damaged or outdated entry is set aside."""
        entry = self.folder / run.key
        if not entry.is_dir():
            return None
        try:
            sums = json.loads((entry / "SHA256SUMS").read_text())
            sound = all(_sha256(entry / name) == sums[name] for name in FILES)
            record = json.loads((entry / "run.json").read_text()) if sound else {}
        except (OSError, ValueError, KeyError, TypeError):
            record = {}
        if record.get("version") == VERSION:
            (entry / "checkpoint.safetensors").unlink(missing_ok=True)  # killed between rename and clean-up
            return record
        reason = f"from version {record['version']}" if record else "damaged"
        aside = self.folder / f"{run.key}.{reason.replace(' ', '-')}-{time.time_ns()}"
        tqdm.write(f"{entry} is {reason}: set aside as {aside.name}; the run is trained again.")
        with suppress(FileNotFoundError):  # another process was faster
            entry.rename(aside)
        return None

    def record(self, key: str) -> dict[str, Any]:
        """What ``run.json`` of a finished run holds: run, result (with confusion counts), made_with."""
        return json.loads((self.folder / key / "run.json").read_text())

    def history(self, key: str) -> pd.DataFrame:
        """Columns key, epoch, loss, accuracy (percent, on the noisy training images), lr."""
        table = pd.read_csv(self.folder / key / "history.csv")
        table.insert(0, "key", key)
        return table

    def model(self, key: str) -> nn.Module:
        """The trained model of a finished run."""
        record = self.record(key)
        model = build(record["run"]["model"], len(record["result"]["confusion"]))
        model.load_state_dict(load_file(self.folder / key / "model.safetensors"))
        return model

    @contextmanager
    def lock(self, run: Run) -> Iterator[bool]:
        """True if this process may train the run now. The system frees the lock of a process that dies."""
        (self.folder / ".locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".locks" / run.key, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def save_checkpoint(self, run: Run, state: State, history: History) -> None:
        meta = {"key": run.key, "version": str(VERSION), "history": json.dumps(history)}
        meta["digest"] = _digest(state, meta["history"])
        _write(self._partial(run) / "checkpoint.safetensors", save(state, meta))

    def load_checkpoint(self, run: Run) -> tuple[State, History] | None:
        """What a killed training left, or None; a damaged checkpoint is not used."""
        path = self._partial(run) / "checkpoint.safetensors"
        try:
            with safe_open(path, "pt") as file:
                meta = file.metadata()
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            right = (meta["key"], meta["version"], meta["digest"]) == (run.key, str(VERSION), _digest(state, meta["history"]))
            return (state, json.loads(meta["history"])) if right else None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
            return None

    def commit(self, run: Run, record: dict[str, Any], history: History, weights: State) -> None:
        partial = self._partial(run)
        contents = [json.dumps(record, indent=1).encode(), pd.DataFrame(history).to_csv(index=False).encode(), save(weights)]
        for name, content in zip(FILES, contents, strict=True):
            _write(partial / name, content)
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in zip(FILES, contents, strict=True)}
        _write(partial / "SHA256SUMS", json.dumps(sums, indent=1).encode())
        partial.rename(self.folder / run.key)
        (self.folder / run.key / "checkpoint.safetensors").unlink(missing_ok=True)

    def _partial(self, run: Run) -> Path:
        path = self.folder / f"{run.key}.partial"
        path.mkdir(parents=True, exist_ok=True)
        return path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(state: State, history: str) -> str:
    digest = hashlib.sha256(history.encode())
    for name in sorted(state):
        digest.update(name.encode() + state[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all. Raises OSError that says what was needed."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        needed = f"{len(content) / 1e6:.1f} MB"
        raise OSError(error.errno, f"{path} could not be written ({error.strerror}): {needed} are needed there") from error


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


def _train_run(run: Run, train_set: Images, test_set: Images, drawn: Split, store: Store, device: torch.device,
               progress: bool) -> None:
    """Train one run whose teacher is finished, and commit it."""
    classes, start = len(train_set.classes), time.perf_counter()
    held = round(run.holdout * run.labels)
    learn, validate = drawn.labeled[: run.labels - held], drawn.labeled[run.labels - held :]
    chosen, targets = learn, nn.functional.one_hot(train_set.labels[learn], classes).float()
    result: dict[str, Any] = {"pseudo_accuracy": None, "kept": None}
    if run.teacher is not None:
        pool = drawn.unlabeled
        teacher = store.model(run.teacher.key)
        kept, soft = pseudo_labels(predict(teacher, train_set.images[pool], flip=run.flip_average, device=device), run)
        if not len(kept):
            raise ValueError(f"no pseudo-label reaches the threshold {run.threshold} ({run}): lower it.")
        truth = train_set.labels[pool[kept]]
        known = truth >= 0
        right = (soft.argmax(1) == truth)[known].float()
        result = {"pseudo_accuracy": 100 * float(right.mean()) if len(right) else None, "kept": len(kept.unique()) / len(pool)}
        chosen = torch.cat([learn.repeat(run.repeat_labels), pool[kept]])
        targets = torch.cat([targets.repeat(run.repeat_labels, 1), soft])
    seed = int(run.key[:8], 16)  # the key, so that a student of equal size does not start as its teacher did
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(run.model, classes, dropout=run.recipe.dropout, stochastic_depth=run.recipe.stochastic_depth)
    last = time.monotonic()

    def checkpoint(state: State, history: History) -> None:
        nonlocal last
        if time.monotonic() - last >= CHECKPOINT_SECONDS:
            store.save_checkpoint(run, state, history)
            last = time.monotonic()

    resume = store.load_checkpoint(run)
    before = len(resume[1]) if resume else 0
    train_start = time.perf_counter()
    history = train(model, train_set.images[chosen], targets, run.recipe, seed=seed, device=device, title=str(run),
                    progress=progress, resume=resume, checkpoint=checkpoint)
    seconds = time.perf_counter() - train_start
    speed = (run.recipe.epochs - before) * len(chosen) / seconds
    scored = Images(train_set.images[validate], train_set.labels[validate], train_set.classes, "") if held else test_set
    guess = predict(model, scored.images, device=device).argmax(1)
    accuracy = 100 * float((guess == scored.labels).float().mean())
    counts = torch.bincount(scored.labels * classes + guess, minlength=classes**2).view(classes, classes)
    result |= {"accuracy": None if held else accuracy, "validation_accuracy": accuracy if held else None,
               "confusion": counts.tolist(), "seconds": time.perf_counter() - start, "images_per_second": speed,
               "device": device_title(device), "title": train_set.title}
    record = {"version": VERSION, "key": run.key, "run": asdict(run), "result": result, "made_with": _made_with(device)}
    store.commit(run, record, history, {k: v.cpu().contiguous() for k, v in model.state_dict().items()})


def _made_with(device: torch.device) -> dict[str, Any]:
    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
            "numpy": np.__version__, "device": str(device), "threads": torch.get_num_threads(), "git": _git_revision(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


@cache
def _git_revision() -> str | None:
    """The revision of the code, marked "+" if files were changed since; None outside a git checkout."""
    command = ["git", "-C", os.fspath(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def run_all(runs: Sequence[Run], train_set: Images, test_set: Images, store: Store | str | Path = "runs", *,
            saved_split: Split | None = None, device: str | torch.device | None = None,
            progress: bool = True) -> pd.DataFrame:
    """Finish all runs, teachers first, and give a table with a row per run, in their order.

    What the store holds is not trained again. A run that another process is training is left to it, and waited for.
    """
    store = store if isinstance(store, Store) else Store(store)
    device = pick_device(device)
    bound = [run.bind(data_key(train_set, test_set), saved_split.key if saved_split else "") for run in runs]
    waiting = _teachers_first(bound)
    wanted = {(run.labels, run.seed) for run in waiting}  # all drawn now: too many labels must not fail after hours
    splits = {w: saved_split.resize(train_set, w[0]) if saved_split else split(train_set, *w) for w in wanted}
    records: dict[str, dict[str, Any]] = {}
    with tqdm(total=len(waiting), desc="runs", unit="run", disable=not progress) as bar:
        while waiting:
            busy = []
            for run in waiting:
                record = store.find(run)
                if record is None and (run.teacher is None or run.teacher.key in records):
                    with store.lock(run) as mine:
                        record = store.find(run) if mine else None
                        if mine and record is None:
                            _train_run(run, train_set, test_set, splits[run.labels, run.seed], store, device, progress)
                            record = store.find(run)
                if record is None:
                    busy.append(run)
                else:
                    records[run.key] = record
                    bar.update()
            if len(busy) == len(waiting):
                time.sleep(0.5)  # others train all that is left
            waiting = busy
    return pd.DataFrame([_row(run, records[run.key]["result"]) for run in bound])


def _teachers_first(runs: Sequence[Run]) -> list[Run]:
    """Every run once, its teachers before it."""
    ordered: dict[str, Run] = {}
    for run in runs:
        chain = [run]
        while chain[-1].teacher is not None:
            chain.append(chain[-1].teacher)
        for member in reversed(chain):
            ordered.setdefault(member.key, member)
    return list(ordered.values())


def _row(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    scores = ("accuracy", "validation_accuracy", "pseudo_accuracy", "kept", "seconds", "images_per_second")
    return {"model": run.model, "teacher": run.teacher.model if run.teacher else "", "pseudo": run.pseudo,
            "generation": run.generation, "labels": run.labels, **asdict(run.recipe), "threshold": run.threshold,
            "balance": run.balance, "flip_average": run.flip_average, "temperature": run.temperature,
            "repeat_labels": run.repeat_labels, "seed": run.seed, "device": result["device"], "title": result["title"], "data": run.data,
            **{name: float("nan") if result[name] is None else result[name] for name in scores}, "key": run.key}
