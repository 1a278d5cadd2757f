"""Random numbers that are a run's own, whatever else the process does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch

# torch's generator on the CPU takes 32 bits: larger ones would repeat the numbers of these
MAX_SEED = 2**32 - 1
_LOCK = RLock()


def check_seed(seed: int) -> None:
    """Raise ValueError unless the seed is one of those that differ."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed={seed} is not a whole number from 0 to {MAX_SEED:,}.")


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """While the block lasts torch's generators are the caller's; then they are as before.

    Dropout and first weights take their numbers from them, and they are the whole process's: a
    second thread waits, or the threads would change each other's models. All CUDA devices, since
    torch.manual_seed seeds them all; none where CUDA is not at work yet.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with _LOCK, torch.random.fork_rng(devices=devices):
        yield
