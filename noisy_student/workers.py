"""Several runs at once on one machine: helper processes that work through the same list of runs on the same store."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def default_workers(device: torch.device) -> int:
    """One a thread on a CPU, at most 4; one on a GPU. `make bench` measures what that is worth (rows "4 runs")."""
    return min(4, torch.get_num_threads()) if device.type == "cpu" else 1


@contextmanager
def helpers(count: int, task: Callable[..., object], *arguments: object) -> Iterator[None]:
    """While the block lasts, ``count`` processes run ``task(*arguments)``."""
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's thread pool in an unusable state
    processes = []
    try:
        content = pickle.dumps((task, arguments))  # by value: torch's own way needs /dev/shm, which containers keep small
        for _ in range(count):
            process = context.Process(target=_help, args=(content,), daemon=True)
            process.start()
            processes.append(process)
        del content
        yield
    finally:
        for process in processes:  # when the block ends all is done, or has failed
            process.terminate()
            process.join()


def _help(content: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's, who ends the helpers
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    task, arguments = pickle.loads(content)
    try:
        task(*arguments)
    except Exception:  # the caller comes to the same run next, and says what is wrong with it
        os._exit(1)


def _end_with_the_caller() -> None:
    caller = multiprocessing.parent_process()
    if caller is not None:
        caller.join()
        os._exit(1)
