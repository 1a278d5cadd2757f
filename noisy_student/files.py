"""Files that appear whole or not at all, with tensors as they were written.

Nothing that is read here can execute code.
"""

from __future__ import annotations

import errno
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

STALE_SECONDS = 3600.0
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    # torch's names and those of safetensors
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_whole(path: Path, *contents: bytes | memoryview) -> None:
    """Write a file, of one or more pieces, that appears whole or not at all; its folder is made if
    need be.

    Raises OSError that says why where it cannot be written. What a kill left of an earlier attempt
    is removed after an hour: until then it may be another process's, at work.
    """
    # not the process's number: two containers may have the same
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f".{escape(path.name)}.*.partial"):
            with suppress(FileNotFoundError):  # its process was faster
                if time.time() - old.lstat().st_mtime > STALE_SECONDS:
                    old.unlink()
        with partial.open("xb") as file:
            for content in contents:
                file.write(content)
        partial.replace(path)
    except OSError as error:
        size = sum(memoryview(content).nbytes for content in contents)
        need = (
            f": {size:,} bytes are needed there"
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            else ""
        )
        raise OSError(
            error.errno, f"{path} could not be written ({error.strerror}){need}"
        ) from error
    finally:
        # where it could not be written it may not be removable either: the error above says why
        with suppress(OSError):
            partial.unlink()


def check_writable(*folders: Path) -> None:
    """Raise OSError unless files can be written into each folder, which is made if need be: before
    hours of work, not after.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (probe := folder / f".{uuid4().hex}.partial").touch()
            probe.unlink()
        except OSError as error:
            raise OSError(
                error.errno,
                f"{folder} cannot be written to ({error.strerror}): give another folder",
            ) from error


def save_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
    """Write contiguous CPU tensors and facts about them, with a checksum over both, as safetensors,
    without a copy of them, which the library's own writer makes. Raises OSError as
    :func:`write_whole`, ValueError for a type of another kind.
    """
    header: dict[str, Any] = {"__metadata__": {**facts, "digest": _digest(tensors, facts)}}
    # the widest first: so all are aligned
    end, ordered = 0, sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    for name, tensor in ordered:
        if tensor.dtype not in TYPES:
            raise ValueError(
                f"{path}: {name} is of {tensor.dtype}, which is none of "
                f"{', '.join(map(str, TYPES))}."
            )
        header[name] = {
            "dtype": TYPES[tensor.dtype],
            "shape": [*tensor.shape],
            "data_offsets": [end, end := end + tensor.nbytes],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_whole(
        path, len(text).to_bytes(8, "little"), text, *(_bytes(tensor) for _, tensor in ordered)
    )


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The (tensors, facts) that save_tensors wrote; None where there is no file, or a damaged one.
    The tensors are mapped: what is changed in them does not reach the file.
    """
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
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


@contextmanager
def out_of_memory_said(what: str, advice: str) -> Iterator[None]:
    """Let Python's and torch's ways of saying that memory is out become one: MemoryError, in a
    sentence. what: plural.
    """
    try:
        yield
    # torch has a type of its own for a GPU, and none for the CPU
    except (MemoryError, RuntimeError) as error:
        words = ("not enough memory", "can't allocate memory", "Cannot allocate memory")
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
            word in str(error) for word in words
        ):
            raise MemoryError(f"{what} do not fit into memory: {advice}.") from error
        raise
