"""Files that appear whole or not at all, and tensors in them that are what was written. Nothing read here can execute code."""

from __future__ import annotations

import errno
import hashlib
import json
import time
from contextlib import suppress
from glob import escape
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

STALE_SECONDS = 3600.0


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file that appears whole or not at all; its folder is made if need be.

    Raises OSError that says why where it cannot be written. What a kill left of an earlier attempt is removed
    after an hour: until then it may be another process's, at work.
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")  # not the process's number: two containers may have the same
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f".{escape(path.name)}.*.partial"):
            with suppress(FileNotFoundError):  # its process was faster
                if time.time() - old.lstat().st_mtime > STALE_SECONDS:
                    old.unlink()
        with partial.open("xb") as file:
            file.write(content)
        partial.replace(path)
    except OSError as error:
        need = f": {len(content):,} bytes are needed there" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        raise OSError(error.errno, f"{path} could not be written ({error.strerror}){need}") from error
    finally:
        with suppress(OSError):  # where it could not be written it may not be removable either: the error above says why
            partial.unlink()


def check_writable(*folders: Path) -> None:
    """Raise OSError unless files can be written into each folder, which is made if need be: before hours of work, not after."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (probe := folder / f".{uuid4().hex}.partial").touch()
            probe.unlink()
        except OSError as error:
            raise OSError(error.errno, f"{folder} cannot be written to ({error.strerror}): give another folder") from error


def save_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
    """Write contiguous CPU tensors and facts about them, with a checksum over both. Raises OSError as :func:`write_whole`."""
    write_whole(path, save(tensors, {**facts, "digest": _digest(tensors, facts)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The (tensors, facts) that save_tensors wrote; None where there is no file, or a damaged one."""
    try:
        with safe_open(path, "pt") as file:
            facts = dict(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return (tensors, facts) if facts.pop("digest") == _digest(tensors, facts) else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
        return None


def _digest(tensors: dict[str, Tensor], facts: dict[str, str]) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
