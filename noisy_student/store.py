"""The store of finished runs, and of the checkpoints of unfinished ones.

An entry is a folder named by the Run's key: ``run.json`` (the Run and its result), ``history.csv``
(a row per epoch), ``model.safetensors``, and ``SHA256SUMS`` over the three. It is built in
``<key>.partial``, where the checkpoint lies, and appears whole by one rename. Nothing that is read
here can execute code.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import safetensors.torch
from filelock import FileLock, Timeout
from torch import nn
from tqdm.auto import tqdm

from .data import check_classes
from .files import load_tensors, save_tensors, write_whole
from .models import build
from .randomness import own_random_numbers
from .revision import git_revision
from .training import History, State

VERSION = 4  # to be raised when the code changes what a Run gives; older entries are then set aside
FILES = ("run.json", "history.csv", "model.safetensors")
# all else in an entry is somebody's own
SCRATCH = re.compile(r"checkpoint\.safetensors|\.[\w.]+\.[0-9a-f]{32}\.partial")


class Keyed(Protocol):
    """A Run, of which the store needs the key alone."""

    @property
    def key(self) -> str: ...


class DamagedError(OSError):
    """An entry that is not there, or not what was committed."""


class Store:
    """Finished runs in a folder; any number of processes may share it."""

    def __init__(self, folder: str | Path = "runs") -> None:
        self.folder = Path(folder).expanduser()
        self._revision_said = False

    def find(self, run: Keyed) -> dict[str, Any] | None:
        """The record of a finished run; None where there is no sound one of this version."""
        try:
            record = self.record(run.key)
        except DamagedError:
            return None
        if record.get("version") != VERSION:
            return None
        # it may have been killed between rename and clean-up
        _remove_scratch(self.folder / run.key)
        self._say_revision(run.key, record)
        return record

    def _say_revision(self, key: str, record: dict[str, Any]) -> None:
        """Once: an entry of other code is used all the same, since only VERSION says that the code
        gives other results.
        """
        theirs = (record.get("made_with") or {}).get("git")
        if not self._revision_said and theirs and (mine := git_revision()) and theirs != mine:
            self._revision_said = True
            tqdm.write(
                f"{self.folder / key} was made by revision {theirs} of the code, this is {mine}: "
                "such entries are used as they are; "
                "for trainings of this code alone give another store."
            )

    def set_aside(self, run: Keyed) -> None:
        """Move an entry that ``find`` did not take out of the way; for the holder of the run's
        lock.

        Raises ValueError for an entry of a newer version of the package, which may be in use.
        """
        entry, reason = self.folder / run.key, "damaged"
        if not entry.exists():
            return
        try:
            version = self.record(run.key).get("version")
            if isinstance(version, int) and version > VERSION:
                raise ValueError(
                    f"{entry} is from version {version}, newer than this one, {VERSION}: update, "
                    "or give another store."
                )
            reason = f"from version {version}"
        except DamagedError:
            pass
        aside = entry.rename(self.folder / f"{run.key}.{reason.replace(' ', '-')}-{time.time_ns()}")
        tqdm.write(f"{entry} is {reason}: set aside as {aside.name}; the run is trained again.")

    def record(self, key: str) -> dict[str, Any]:
        """What ``run.json`` of a finished run holds: run, result (with confusion counts, true class
        by predicted), made_with.
        """
        return self._entry(key)[0]

    def history(self, *keys: str) -> pd.DataFrame:
        """A row per run and epoch: key, epoch, loss, accuracy (percent, noisy), lr, seconds."""
        if not keys:
            raise ValueError("history of no runs: give the key of one or more.")
        tables = {key: pd.read_csv(BytesIO(self._entry(key)[1]["history.csv"])) for key in keys}
        return pd.concat(tables, names=["key", None]).reset_index("key")

    def model(self, key: str, classes: Sequence[str] | None = None) -> nn.Module:
        """The trained model of a finished run, in evaluation mode.

        It knows what it learnt from: ``image_size``, (height, width), of which ``predict`` refuses
        any other, and ``classes``, the names of its outputs in their order; both None where an
        earlier version trained it. classes: names that its outputs are to be given; ValueError
        where they are others, as after a class was added to a folder.
        """
        record, contents = self._entry(key)
        result, recipe = record["result"], record["run"]["recipe"]
        names: Any = tuple(result["classes"]) if result.get("classes") else None
        count = len(result["confusion"])
        if classes is not None:
            # of an earlier version's entry their number alone
            known = names or [*classes, *[None] * count][:count]
            check_classes(known, classes, f"the model {key}", "the names given")
        # a caller's random numbers do not depend on what was in the store
        with own_random_numbers():
            model = build(
                record["run"]["model"],
                count,
                dropout=recipe["dropout"],
                stochastic_depth=recipe["stochastic_depth"],
            )
        model.load_state_dict(safetensors.torch.load(contents["model.safetensors"]))
        model.image_size, model.classes = result.get("image_size"), names
        model.bits = result.get("bits", 16)
        return model.eval()

    def _entry(self, key: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        """(record, files) of an entry, checked each time: a student may come hours later."""
        entry = self.folder / key
        if not entry.exists():
            raise DamagedError(
                f"{entry} is not there: run it, or take its key from run_all's table (a Run's own "
                "lacks the images)."
            )
        try:
            contents = {name: (entry / name).read_bytes() for name in FILES}
            sums = json.loads((entry / "SHA256SUMS").read_bytes())
            if {
                name: hashlib.sha256(content).hexdigest() for name, content in contents.items()
            } == sums:
                record = json.loads(contents["run.json"])
                if record.get("key") != key:
                    raise DamagedError(
                        f"{entry} holds another run, {record.get('key')}: "
                        "run it again, it is then trained anew."
                    )
                result = record.get("result") or {}
                result["confusion"] = _dense(result.get("confusion"))
                return record, contents
        except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
            pass
        raise DamagedError(f"{entry} is damaged: run it again, it is then trained anew.")

    @contextmanager
    def lock(self, run: Keyed) -> Iterator[bool]:
        """True if this process may train the run now; the lock of one that dies is freed."""
        with self._lock(run.key) as mine:
            yield mine

    @contextmanager
    def _lock(self, key: str) -> Iterator[bool]:
        (self.folder / ".locks").mkdir(parents=True, exist_ok=True)
        with suppress(Timeout), FileLock(self.folder / ".locks" / key, timeout=0):
            yield True
            return
        yield False

    def save_checkpoint(
        self, run: Keyed, state: State, history: History, made_with: dict[str, Any]
    ) -> None:
        facts = {
            "key": run.key,
            "version": str(VERSION),
            "history": json.dumps(history),
            "made_with": json.dumps(made_with),
        }
        save_tensors(self._partial(run) / "checkpoint.safetensors", state, facts)

    def load_checkpoint(self, run: Keyed) -> tuple[State, History, dict[str, Any]] | None:
        """(state, history, made_with) of a killed training; None without a sound checkpoint."""
        found = load_tensors(self._partial(run) / "checkpoint.safetensors")
        if found is None or (found[1]["key"], found[1]["version"]) != (run.key, str(VERSION)):
            return None
        return found[0], json.loads(found[1]["history"]), json.loads(found[1]["made_with"])

    def commit(self, run: Keyed, record: dict[str, Any], history: History, weights: State) -> None:
        """Make the entry of a finished run appear, whole, by one rename. Raises OSError where it
        cannot be written.
        """
        partial, result = self._partial(run), record["result"]
        record = {
            "version": VERSION,
            **record,
            "result": {**result, "confusion": _sparse(result["confusion"])},
        }
        contents = dict(
            zip(
                FILES,
                [
                    json.dumps(record, indent=1).encode(),
                    pd.DataFrame(history).to_csv(index=False).encode(),
                    safetensors.torch.save(weights),
                ],
                strict=True,
            )
        )
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        contents["SHA256SUMS"] = json.dumps(sums, indent=1).encode()
        for name, content in contents.items():
            write_whole(partial / name, content)
        _remove_scratch(partial.rename(self.folder / run.key))

    def unfinished(self, wanted: Iterable[Keyed] = ()) -> list[Path]:
        """Folders of trainings that were begun, that nobody is at, and that are not among
        ``wanted``: checkpoints which may never be asked for.
        """
        keys, found = {run.key for run in wanted}, []
        for path in sorted(self.folder.glob("*.partial")):
            with self._lock(path.stem) as free:
                if free and path.stem not in keys and path.is_dir() and not path.is_symlink():
                    found.append(path)
        return found

    def tidy(self) -> list[Path]:
        """Remove the :meth:`unfinished` trainings; gives their folders. A folder that holds more
        than the store's own files stays.
        """
        gone = []
        for path in self.unfinished():
            with self._lock(path.stem) as free:
                if free:
                    _remove_scratch(path)
                    for name in (*FILES, "SHA256SUMS"):
                        (path / name).unlink(missing_ok=True)
                    with suppress(OSError):  # not empty
                        path.rmdir()
                        gone.append(path)
        return gone

    def _partial(self, run: Keyed) -> Path:
        path = self.folder / f"{run.key}.partial"
        if path.is_symlink():
            raise OSError(f"{path} is a link: remove it; a store holds none.")
        path.mkdir(parents=True, exist_ok=True)
        return path


def _remove_scratch(entry: Path) -> None:
    """Remove the checkpoint, and what a kill left of writing; not before the entry is there, which
    needs neither.
    """
    for path in entry.iterdir():
        if SCRATCH.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _sparse(counts: list[list[int]]) -> dict[str, Any]:
    """Confusion counts as their size and what is not 0: of 1,000 classes nearly all are."""
    cells = {
        f"{i} {j}": count for i, row in enumerate(counts) for j, count in enumerate(row) if count
    }
    return {"classes": len(counts), "counts": cells}


def _dense(counts: Any) -> Any:
    """The rows of :func:`_sparse` counts; rows, which earlier versions wrote, as they are."""
    if not isinstance(counts, dict):
        return counts
    rows = [[0] * counts["classes"] for _ in range(counts["classes"])]
    for cell, count in counts["counts"].items():
        i, j = map(int, cell.split())
        rows[i][j] = count
    return rows
