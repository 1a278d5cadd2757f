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
def own_random_numbers(device: torch.device | None = None) -> Iterator[None]:
    """While the block lasts torch's generator is the caller's; afterwards it is as it was before.

    Dropout and first weights take their numbers from it, and it is one for the whole process: a
    second thread waits, or the threads would change each other's models.
    """
    with (
        _LOCK,
        torch.random.fork_rng(
            devices=[device] if device is not None and device.type == "cuda" else []
        ),
    ):
        yield
