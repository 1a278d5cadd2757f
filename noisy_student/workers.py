"""Several runs at once on one machine: helpers that work through one list on one store."""

from __future__ import annotations

import io
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from uuid import uuid4

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm.auto import tqdm

from .files import write_whole

PREFIX = "noisy_student-"  # of the temporary folders


def default_workers(device: torch.device) -> int:
    """One a thread on a CPU, at most 4; one on a GPU.

    `make bench` measures what that is worth on a CPU (rows "4 runs").
    """
    return min(4, torch.get_num_threads()) if device.type == "cpu" else 1


@contextmanager
def helpers(count: int, task: Callable[..., object], *arguments: object) -> Iterator[None]:
    """While the block lasts, ``count`` processes run ``task(*arguments)``."""
    # a fork would copy torch's thread pool in an unusable state
    context = multiprocessing.get_context("spawn")
    with _shared_folder() as folder:
        processes = [
            context.Process(target=_help, args=(folder,), daemon=True) for _ in range(count)
        ]
        # Python's own process; started later, it may lift the block of signals
        resource_tracker.ensure_running()
        try:
            # Inherited: Ctrl-C, the end of a batch job and a closed terminal are sent to all
            # processes at once, but the caller ends the helpers, and each of them sees to the
            # folder if the caller dies: they are there before the first image is written.
            before = signal.pthread_sigmask(
                signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
            )
            try:
                for process in processes:
                    process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            content = io.BytesIO()
            _Pickler(content, folder).dump((task, arguments))
            # Through the pipe, as a process's argument, it would have to wait for each helper: on
            # two cores 1.9 s for one, 5.7 s for three.
            write_whole(Path(folder) / "task", content.getbuffer())
            yield
        finally:
            started = [process for process in processes if process.pid is not None]
            for process in started:  # when the block ends all is done, or has failed
                process.kill()
            for process in started:
                process.join()


@contextmanager
def _shared_folder() -> Iterator[str]:
    """A temporary folder, only this user's, that the next call removes if this process dies.

    Its lock, which the system then frees, lies beside it.
    """
    base = Path(tempfile.gettempdir())
    for path in base.glob(f"{PREFIX}*.lock"):
        # another user's, or of a living process: not ours to remove
        with suppress(OSError, Timeout), FileLock(path, timeout=0):
            _remove(path.with_suffix(""))
    folder = base / f"{PREFIX}{uuid4().hex}"
    with FileLock(f"{folder}.lock"):
        try:
            folder.mkdir(mode=0o700)
            yield str(folder)
        finally:
            _remove(folder)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    Path(f"{folder}.lock").unlink(missing_ok=True)


class _Pickler(pickle.Pickler):
    """Writes large tensors to files, which all helpers, and the caller from now on, map.

    One copy for all; torch's own way of sharing needs /dev/shm, which containers keep small.
    """

    def __init__(self, stream: io.BytesIO, folder: str) -> None:
        super().__init__(stream)
        self.folder = Path(folder)

    def persistent_id(self, value: object) -> tuple[str, torch.dtype, tuple[int, ...]] | None:
        if not isinstance(value, Tensor) or value.nbytes < 2**20:
            return None
        path = self.folder / str(len(list(self.folder.iterdir())))
        write_whole(path, value.contiguous().view(-1).view(torch.uint8).numpy().data)
        found = str(path), value.dtype, tuple(value.shape)
        # the same values: the caller's own copy, 184 MB of CIFAR-10, is given back
        value.data = _mapped(*found)
        return found


def _mapped(path: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_file(path, size=math.prod(shape), dtype=dtype).view(shape)


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, found: tuple[str, torch.dtype, tuple[int, ...]]) -> Tensor:
        return _mapped(*found)


def _help(folder: str) -> None:
    threading.Thread(target=_end_with_the_caller, args=(folder,), daemon=True).start()
    # its usual lock is a semaphore, which Python would report as leaked when the helper is ended
    tqdm.set_lock(threading.RLock())
    # the caller writes the images first, and ends its helpers if it cannot
    while not (Path(folder) / "task").exists():
        time.sleep(0.02)
    try:
        with (Path(folder) / "task").open("rb") as file:
            task, arguments = _Unpickler(file).load()
    # torch's is the second, where the caller has died and the folder is already removed
    except (OSError, RuntimeError):
        if Path(folder).exists():
            raise
        os._exit(1)
    try:
        task(*arguments)
    except Exception:  # the caller comes to the same run next, and says what is wrong with it
        os._exit(1)


def _end_with_the_caller(folder: str) -> None:
    """Of a caller who was killed, and so could not end the helpers nor remove what they map."""
    caller = multiprocessing.parent_process()
    if caller is not None:
        caller.join()
        _remove(Path(folder))
        os._exit(1)
