"""The store of finished runs, and of the checkpoints of unfinished ones.

An entry is a folder named by the Run's key: ``run.json`` (the Run and its result), ``history.csv`` (a row per epoch),
``model.safetensors``, and ``SHA256SUMS`` over the three. It is built in ``<key>.partial``, where the checkpoint lies, and
appears whole by one rename. Nothing that is read here can execute code.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn
from tqdm.auto import tqdm

from .models import build
from .training import History, State

if TYPE_CHECKING:
    from .runs import Run

VERSION = 2  # to be raised when the code changes what a Run gives; older entries are then set aside
FILES = ("run.json", "history.csv", "model.safetensors")


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
            self._tidy(entry)  # it may have been killed between rename and clean-up
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
        """Make the entry of a finished run appear, whole, by one rename. Raises OSError where it cannot be written."""
        partial, record = self._partial(run), {"version": VERSION, **record}
        contents = [json.dumps(record, indent=1).encode(), pd.DataFrame(history).to_csv(index=False).encode(), save(weights)]
        for name, content in zip(FILES, contents, strict=True):
            _write(partial / name, content)
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in zip(FILES, contents, strict=True)}
        _write(partial / "SHA256SUMS", json.dumps(sums, indent=1).encode())
        partial.rename(self.folder / run.key)
        self._tidy(self.folder / run.key)

    def _tidy(self, entry: Path) -> None:
        """Remove the checkpoint, and what a kill left of writing one."""
        for path in entry.glob("checkpoint.safetensors*"):
            path.unlink(missing_ok=True)

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
