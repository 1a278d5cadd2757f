"""Pictures in a folder, or in an archive of one, decoded in parallel into uint8 tensors and cached.

Nothing is ever unpacked to disk: archives are read in memory, so no path or link in them can lead anywhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from .data import NAMED, Images, hold_out

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
PARTS = ("train", "test", "unlabeled")
MAX_PIXELS = 64_000_000  # a larger picture is refused before it is decoded: a decompression bomb, or a mistake
MAX_ARCHIVE_BYTES = 8_000_000_000  # unpacked, in memory
UNSOUND = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError, RuntimeError)
FOLDER_HINT = "put each class's images into train/<class>/"

Files = dict[str, Path | bytes]  # a file's name inside the folder or archive -> where it is, or what it holds


def load_folder(path: Path, root: Path, size: int, skip_unreadable: bool, test_fraction: float) -> tuple[Images, Images]:
    """See :func:`noisy_student.data.load`."""
    name = path.resolve().name.lower()
    for suffix in sorted(ARCHIVES, key=len, reverse=True):
        name = name.removesuffix(suffix)
    name = f"{name}-folder" if name in NAMED else name  # whatever lies in a folder called cifar10, it is not the download
    files, marks = _list_folder(path) if path.is_dir() else _read_archive(path)
    cache = root / "cache" / f"{name}-{_digest(size, skip_unreadable, marks)[:16]}.safetensors"
    parts = _read_cache(cache, name)
    if parts is None:
        parts = _decode(path, name, files, size, skip_unreadable)
        _write_cache(cache, parts)
    train = parts["train"]
    train, test = (train, parts["test"]) if "test" in parts else hold_out(train, test_fraction)
    if "unlabeled" in parts:
        more = parts["unlabeled"]
        train = Images(torch.cat([train.images, more.images]), torch.cat([train.labels, more.labels]), train.classes, name)
    return train, test


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _list_folder(path: Path) -> tuple[Files, list[str]]:
    """The files of a folder, hidden ones and links that lead out of it left out; and marks that change with them."""
    home, files, marks = path.resolve(), Files(), []
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        hidden = any(part.startswith(".") for part in inside.parts)
        if not hidden and file.is_file() and file.resolve().is_relative_to(home):
            files[inside.as_posix()] = file
            marks.append(f"{inside.as_posix()} {file.stat().st_size} {file.stat().st_mtime_ns}")
    return files, marks


def _read_archive(path: Path) -> tuple[Files, list[str]]:
    if not path.name.lower().endswith(ARCHIVES):
        raise ValueError(f"{path} is neither a folder nor an archive ({', '.join(ARCHIVES)}).")
    files, total = Files(), 0
    try:
        for inside, size, content in _members(path):
            total += size
            if total > MAX_ARCHIVE_BYTES:
                break
            if not any(part.startswith(".") for part in inside.split("/")):
                files[inside] = content()
    except UNSOUND as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
        raise OSError(f"{path} is not a sound archive ({reason}): fetch or make it again.") from error
    if total > MAX_ARCHIVE_BYTES:
        raise OSError(f"{path} unpacks to more than {MAX_ARCHIVE_BYTES:,} bytes: unpack it and give the folder instead.")
    return files, [hashlib.sha256(path.read_bytes()).hexdigest()]


def _members(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    """(name, unpacked bytes, function that reads it) of each regular file in an archive; links are not followed."""
    if path.name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield info.filename, info.file_size, partial(archive.read, info)
    else:
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield member.name.removeprefix("./"), member.size, content.read


def _decode(path: Path, name: str, files: Files, size: int, skip_unreadable: bool) -> dict[str, Images]:
    """Check the layout, then decode every picture, in parallel, with a progress bar."""
    tops = {n.split("/")[0] for n in files}
    if "train" not in tops and len(tops) == 1:  # the layout may lie one folder down, as archives often have it
        files = {n.partition("/")[2]: v for n, v in files.items()}
    files = {n.replace("unlabelled/", "unlabeled/", 1) if n.startswith("unlabelled/") else n: v for n, v in files.items()}
    names = sorted(n for n in files if n.split("/")[0] in PARTS)
    if odd := sorted({n.split("/")[0] for n in files if "/" in n} - {*PARTS, "__MACOSX"}):
        tqdm.write(f"{path}: not used: {', '.join(f'{o}/' for o in odd)} (the parts are {', '.join(f'{p}/' for p in PARTS)}).")
    classes = _classes(path, names)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(lambda n: _decode_one(files[n], size), names)
        pixels, bad = [], []
        for n, result in zip(names, tqdm(decoded, f"decoding {name}", len(names), unit="image", leave=False), strict=True):
            pixels.append(result if isinstance(result, np.ndarray) else None)
            if not isinstance(result, np.ndarray):
                bad.append(f"{n} ({result})")
    if bad and not skip_unreadable:
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise OSError(f"{path} holds an image that cannot be read: {bad[0]}{more}; mend it, or pass skip_unreadable=True.")
    parts = {}
    for part in PARTS:
        kept = [(n, p) for n, p in zip(names, pixels, strict=True) if n.startswith(f"{part}/") and p is not None]
        if kept:
            images = torch.from_numpy(np.stack([p for _, p in kept])).permute(0, 3, 1, 2).contiguous()
            labels = [-1 if part == "unlabeled" else classes.index(n.split("/")[1]) for n, _ in kept]
            parts[part] = Images(images, torch.tensor(labels), classes, name)
    if len(parts.get("train", Images(torch.empty(0), torch.empty(0), (), "")).labels.unique()) < len(classes):
        raise ValueError(f"{path} has a class without a readable training image: {FOLDER_HINT}.")
    return parts


def _classes(path: Path, names: list[str]) -> tuple[str, ...]:
    """Class names, sorted. Raises ValueError unless train/ holds two or more, none empty, and test/ no others."""
    found = {part: {n.split("/")[1] for n in names if n.startswith(f"{part}/") and n.count("/") >= 2} for part in PARTS}
    folders = {p.name for p in _train_folder(path).iterdir() if p.is_dir()} if path.is_dir() and _train_folder(path).is_dir() else set()
    empty = sorted(f for f in folders - found["train"] if not f.startswith("."))
    if empty:
        raise ValueError(f"{path} has a class without images: {', '.join(empty)}; add some, or remove the empty folder.")
    if astray := [n for n in names if not n.startswith("unlabeled/") and n.count("/") < 2]:
        raise ValueError(f"{path} has a file that lies in no class's folder: {astray[0]}; {FOLDER_HINT}.")
    if len(found["train"]) < 2:
        had = f"only the class {found['train'].pop()!r}" if found["train"] else "no classes"
        raise ValueError(f"{path} has {had} in train/: {FOLDER_HINT}, for two classes or more.")
    if found["test"] - found["train"]:
        odd = ", ".join(sorted(found["test"] - found["train"]))
        raise ValueError(f"{path} has classes in test/ that train/ lacks: {odd}.")
    return tuple(sorted(found["train"]))


def _train_folder(path: Path) -> Path:
    inner = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return inner[0] / "train" if len(inner) == 1 and not (path / "train").exists() else path / "train"


def _decode_one(source: Path | bytes, size: int) -> np.ndarray | str:
    """One picture as size x size x 3 uint8, or in a few words why it cannot be read."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}"
            image.draft("RGB", (size, size))  # JPEG: decode at a fraction of a large picture's size
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # Pillow would clip 16-bit grey to its darkest 256 values
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            elif upright.mode in ("I", "F"):
                return f"its {upright.mode} pixels of 32 bits have no fixed range"
            rgb = upright.convert("RGBA" if "transparency" in upright.info else "RGB").convert("RGB")
            return np.asarray(rgb if rgb.size == (size, size) else rgb.resize((size, size), Image.Resampling.BILINEAR))
    except Exception as error:  # Pillow's decoders raise many kinds for broken files
        return " ".join(str(error).split()) or type(error).__name__


def _content_digest(parts: dict[str, Images]) -> str:
    return _digest(*[[part, images.fingerprint] for part, images in sorted(parts.items())])


def _write_cache(cache: Path, parts: dict[str, Images]) -> None:
    tensors: dict[str, Tensor] = {}
    for part, images in parts.items():
        tensors |= {f"{part}.images": images.images, f"{part}.labels": images.labels}
    meta = {"classes": json.dumps(parts["train"].classes), "digest": _content_digest(parts)}
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, temporary, meta)
        temporary.replace(cache)
    except (OSError, SafetensorError) as error:
        raise OSError(f"the decoded images could not be cached in {cache} ({error}): free space there, or give another root.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _read_cache(cache: Path, name: str) -> dict[str, Images] | None:
    """The decoded images, or None where there is no cache, or a damaged one: it is then made again."""
    if not cache.exists():
        return None
    try:
        with safe_open(cache, "pt") as file:
            meta, keys = file.metadata(), file.keys()
            classes = tuple(json.loads(meta["classes"]))
            parts = {
                part: Images(file.get_tensor(f"{part}.images"), file.get_tensor(f"{part}.labels"), classes, name)
                for part in PARTS if f"{part}.images" in keys
            }
            return parts if meta["digest"] == _content_digest(parts) else None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError):
        return None
