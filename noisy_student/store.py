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
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import safetensors.torch
from filelock import FileLock, Timeout
from torch import nn
from tqdm.auto import tqdm

from .files import load_tensors, save_tensors, write_whole
from .models import build
from .randomness import own_random_numbers
from .training import History, State

if TYPE_CHECKING:
    from .runs import Run

VERSION = 4  # to be raised when the code changes what a Run gives; older entries are then set aside
FILES = ("run.json", "history.csv", "model.safetensors")


class DamagedError(OSError):
    """An entry that is not there, or not what was committed."""


class Store:
    """Finished runs in a folder; any number of processes may share it."""

    def __init__(self, folder: str | Path = "runs") -> None:
        self.folder = Path(folder)

    def find(self, run: Run) -> dict[str, Any] | None:
        """The record of a finished run; None where there is none that is sound and of this version."""
        try:
            record = self.record(run.key)
        except DamagedError:
            return None
        if (record.get("version"), record.get("key")) != (VERSION, run.key):
            return None
        self._tidy(self.folder / run.key)  # it may have been killed between rename and clean-up
        return record

    def set_aside(self, run: Run) -> None:
        """Move an entry that ``find`` did not take out of the way; for the holder of the run's lock.

        Raises ValueError for an entry of a newer version of the package, which may be in use.
        """
        entry, reason = self.folder / run.key, "damaged"
        if not entry.exists():
            return
        try:
            version = self.record(run.key).get("version")
            if isinstance(version, int) and version > VERSION:
                raise ValueError(f"{entry} is from version {version}, newer than this one, {VERSION}: update, or give another store.")
            reason = f"from version {version}"
        except DamagedError:
            pass
        aside = entry.rename(self.folder / f"{run.key}.{reason.replace(' ', '-')}-{time.time_ns()}")
        tqdm.write(f"{entry} is {reason}: set aside as {aside.name}; the run is trained again.")

    def record(self, key: str) -> dict[str, Any]:
        """What ``run.json`` of a finished run holds: run, result (with confusion counts), made_with."""
        return json.loads(self._contents(key)["run.json"])

    def history(self, *keys: str) -> pd.DataFrame:
        """Columns key, epoch, loss, accuracy (percent, on the noisy training images), lr, seconds; a row per run and epoch."""
        if not keys:
            raise ValueError("history of no runs: give the key of one or more.")
        tables = {key: pd.read_csv(BytesIO(self._contents(key)["history.csv"])) for key in keys}
        return pd.concat(tables, names=["key", None]).reset_index("key")

    def model(self, key: str) -> nn.Module:
        """The trained model of a finished run, in evaluation mode; ``predict`` refuses it images of another size than it learnt from."""
        contents = self._contents(key)
        record = json.loads(contents["run.json"])
        with own_random_numbers():  # a caller's random numbers do not depend on what was in the store
            recipe = record["run"]["recipe"]
            model = build(record["run"]["model"], len(record["result"]["confusion"]), dropout=recipe["dropout"],
                          stochastic_depth=recipe["stochastic_depth"])
        model.load_state_dict(safetensors.torch.load(contents["model.safetensors"]))
        model.image_size = record["result"].get("image_size")  # None where an earlier version trained it
        return model.eval()

    def _contents(self, key: str) -> dict[str, bytes]:
        """The files of an entry, checked each time: hours may lie between a teacher's training and its student's."""
        entry = self.folder / key
        if not entry.exists():
            raise DamagedError(f"{entry} is not there: run it, or take its key from run_all's table (a Run's own lacks the images).")
        try:
            contents = {name: (entry / name).read_bytes() for name in FILES}
            sums = json.loads((entry / "SHA256SUMS").read_bytes())
            if {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()} == sums:
                return contents
        except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
            pass
        raise DamagedError(f"{entry} is damaged: run it again, it is then trained anew.")

    @contextmanager
    def lock(self, run: Run) -> Iterator[bool]:
        """True if this process may train the run now. The system frees the lock of a process that dies."""
        (self.folder / ".locks").mkdir(parents=True, exist_ok=True)
        with suppress(Timeout), FileLock(self.folder / ".locks" / run.key, timeout=0):
            yield True
            return
        yield False

    def save_checkpoint(self, run: Run, state: State, history: History, made_with: dict[str, Any]) -> None:
        facts = {"key": run.key, "version": str(VERSION), "history": json.dumps(history), "made_with": json.dumps(made_with)}
        save_tensors(self._partial(run) / "checkpoint.safetensors", state, facts)

    def load_checkpoint(self, run: Run) -> tuple[State, History, dict[str, Any]] | None:
        """(state, history, made_with) that a killed training left, or None; a damaged checkpoint is not used."""
        found = load_tensors(self._partial(run) / "checkpoint.safetensors")
        if found is None or (found[1]["key"], found[1]["version"]) != (run.key, str(VERSION)):
            return None
        return found[0], json.loads(found[1]["history"]), json.loads(found[1]["made_with"])

    def commit(self, run: Run, record: dict[str, Any], history: History, weights: State) -> None:
        """Make the entry of a finished run appear, whole, by one rename. Raises OSError where it cannot be written."""
        partial, record = self._partial(run), {"version": VERSION, **record}
        contents = dict(zip(FILES, [json.dumps(record, indent=1).encode(), pd.DataFrame(history).to_csv(index=False).encode(),
                                    safetensors.torch.save(weights)], strict=True))
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        contents["SHA256SUMS"] = json.dumps(sums, indent=1).encode()
        for name, content in contents.items():
            write_whole(partial / name, content)
        self._tidy(partial.rename(self.folder / run.key))

    def _tidy(self, entry: Path) -> None:
        """Remove the checkpoint, and what a kill left of writing; not before the entry is there, which needs neither."""
        for path in entry.iterdir():
            if path.name == "checkpoint.safetensors" or path.suffix == ".partial":  # all else is somebody's own
                path.unlink(missing_ok=True)

    def _partial(self, run: Run) -> Path:
        path = self.folder / f"{run.key}.partial"
        if path.is_symlink():
            raise OSError(f"{path} is a link: remove it; a store holds none.")
        path.mkdir(parents=True, exist_ok=True)
        return path
