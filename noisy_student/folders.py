"""Pictures in a folder, or in an archive of one, decoded in parallel into uint8 tensors and cached.

Nothing is ever unpacked to disk: archives are read in memory, so no path or link in them can lead anywhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

from .data import NAMED, Images, hold_out
from .files import load_tensors, save_tensors

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
PARTS = ("train", "test", "unlabeled")
MAX_PIXELS = 64_000_000  # a larger picture is refused before it is decoded: a decompression bomb, or a mistake
MAX_ARCHIVE_BYTES = 8_000_000_000  # unpacked, in memory; less for small archives, see _read_archive
DECODER = 4  # to be raised when the pictures of a folder give other tensors: older caches are then not used
Image.init()  # all of Pillow's formats, not only the usual ones
FOLDER_HINT = "put each class's images into train/<class>/"

Files = dict[str, Path | bytes]  # a file's name inside the folder or archive -> where it is, or what it holds


def load_folder(path: Path, root: Path, size: int, skip_unreadable: bool, test_fraction: float) -> tuple[Images, Images]:
    """See :func:`noisy_student.data.load`."""
    name = path.resolve().name.lower()
    for suffix in sorted(ARCHIVES, key=len, reverse=True):
        name = name.removesuffix(suffix)
    if name in NAMED and name != "cifar10-jpeg":  # the same, read from its files or made anew
        name = f"{name}-folder"  # whatever lies in a folder called cifar10, it is not the download
    packed = not path.is_dir()
    if packed and not path.name.lower().endswith(ARCHIVES):
        raise ValueError(f"{path} is neither a folder nor an archive ({', '.join(ARCHIVES)}).")
    files, marks = (Files(), [_sha256(path)]) if packed else _list_folder(path)
    return decode_once(name, path, lambda: _read_archive(path) if packed else files, marks, root,
                       size, skip_unreadable, test_fraction)


def decode_once(name: str, path: Path, read: Callable[[], Files], marks: list[str], root: Path,
                size: int, skip_unreadable: bool = False, test_fraction: float = 0.2,
                ) -> tuple[Images, Images]:
    """What :func:`noisy_student.data.load` gives for the files that ``read`` returns.

    path: where they come from, for messages. marks: texts that change when the files do; ``read``
    is not called where the cache holds what was decoded under the same marks.
    """
    mark = hashlib.sha256(json.dumps([DECODER, PIL.__version__, size, skip_unreadable, marks]).encode()).hexdigest()
    cache = root / "cache" / f"{name[:60]}-{mark[:16]}.safetensors"  # a file's name has at most 255 bytes, a Korean letter 3
    if found := load_tensors(cache):
        tensors, facts = found
        classes = tuple(json.loads(facts["classes"]))
        parts = {p: Images(tensors[f"{p}.images"], tensors[f"{p}.labels"], classes, name) for p in PARTS if f"{p}.images" in tensors}
    else:
        parts, whole = _decode(path, name, read(), size, skip_unreadable)
        tensors = {f"{p}.{kind}": getattr(part, kind) for p, part in parts.items() for kind in ("images", "labels")}
        if whole:  # what could not be read may be mended
            save_tensors(cache, tensors, {"classes": json.dumps(parts["train"].classes)})
    train = parts["train"]
    train, test = (train, parts["test"]) if "test" in parts else hold_out(train, test_fraction)
    if "unlabeled" in parts:
        more = parts["unlabeled"]
        train = Images(torch.cat([train.images, more.images]), torch.cat([train.labels, more.labels]), train.classes, name)
    return train, test


def load_pictures(paths: Iterable[str | Path], size: int = 32) -> Tensor:
    """Single pictures as :func:`noisy_student.load` reads them, for :func:`noisy_student.predict`: uint8, N x 3 x size x size.

    size: that of the images that the model was trained on. Raises OSError for a picture that cannot be read, with its path,
    ValueError for a single path.
    """
    if isinstance(paths, str | Path):
        raise ValueError(f"{str(paths)!r} is one path: load_pictures takes a list of them.")
    paths = list(paths)
    images = np.empty((len(paths), 3, size, size), np.uint8)
    for path, image in zip(paths, images, strict=True):
        if fault := _decode_into(image, Path(path), size):
            raise OSError(f"{path} cannot be read ({fault}): mend it, or leave it out.")
    return torch.from_numpy(images)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or a system's own: Windows puts one of these into each folder of pictures that it shows."""
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


def _walk(path: Path) -> Iterator[Path]:
    """All that lies in a folder, and in those below it; hidden ones are left out, and linked folders not entered."""

    def refuse(error: OSError) -> None:  # pathlib's rglob would pass over such a folder, and over its pictures, without a word
        raise OSError(f"{error.filename} cannot be read ({error.strerror}): make it readable, or move it elsewhere.") from error

    for folder, below, names in os.walk(path, onerror=refuse):
        below[:] = [name for name in below if not _hidden(name) and name != "lost+found"]  # a disk's own, for root alone
        yield from (Path(folder, name) for name in [*below, *names] if not _hidden(name))


def _list_folder(path: Path) -> tuple[Files, list[str]]:
    """The files of a folder, hidden ones, linked folders and links that lead out of it left out; and marks that change with them."""
    home, files, links = path.resolve(), Files(), list[str]()
    marks = [str(home)]
    for file in sorted(_walk(path)):
        inside = file.relative_to(path)
        if file.is_file() and file.resolve().is_relative_to(home):
            files[inside.as_posix()] = file
            status = file.stat()  # ctime too: copies keep the time of the original, and some tools set it
            marks.append(f"{inside.as_posix()} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}")
        elif file.is_symlink():
            links.append(inside.as_posix())
    if links:
        tqdm.write(f"{path}: not used: {len(links):,} links to folders, or out of it, {links[0]} first; put the pictures themselves there.")
    return files, marks


def _read_archive(path: Path) -> Files:
    """The files of an archive, hidden ones left out; checked to its end. Raises OSError for a damaged one."""
    files, total = Files(), 0
    most = min(MAX_ARCHIVE_BYTES, max(500_000_000, 20 * path.stat().st_size))  # pictures hardly shrink: more is a bomb
    try:
        for inside, size, content in _members(path):
            if total + size > most:
                total += size
                break
            read = content()  # hidden ones too: an altered name must not hide a picture from its checksum
            total += len(read)  # a hard link has no size of its own
            if not any(map(_hidden, inside.split("/"))):
                files[inside] = read
    except Exception as error:  # zipfile, tarfile and the decompressors raise a dozen kinds for altered bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"{path} is not a sound archive ({reason.rstrip(':')}): fetch or make it again.") from error
    if total > most:
        raise OSError(f"{path} unpacks to more than {most:,} bytes: unpack it and give the folder instead.")
    return files


class _Header(tarfile.TarInfo):
    """tarfile takes every bad header but the first for the end of the archive; here it is an error."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} after {tar.offset:,} bytes") from error


def _open_zip(path: Path) -> zipfile.ZipFile:
    """Names that do not say how they are written are taken for UTF-8, then for Korean (EUC-KR), then for CP437, the format's own."""
    for encoding in ("utf-8", "euc_kr"):
        with suppress(UnicodeDecodeError):
            return zipfile.ZipFile(path, metadata_encoding=encoding)
    return zipfile.ZipFile(path)


def _members(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    """(name, unpacked bytes, function that reads it) of each regular file in an archive; symbolic links are not followed."""
    if path.name.lower().endswith(".zip"):
        with _open_zip(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield info.filename.removeprefix("./"), info.file_size, partial(archive.read, info)
    else:
        with tarfile.open(path, tarinfo=_Header) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() or member.islnk() else None  # a hard link: to another member
                if content is not None:
                    yield member.name.removeprefix("./"), member.size, content.read
            while rest := tar.fileobj.read(2**20):  # gzip and xz compare checksums at their end only
                if rest.strip(b"\0"):
                    raise tarfile.ReadError("data after its end")


def _decode(path: Path, name: str, files: Files, size: int, skip_unreadable: bool) -> tuple[dict[str, Images], bool]:
    """Check the layout, then decode every picture, in parallel, with a progress bar: (the parts, whether all could be read)."""
    if ill := [n for n in files if any(unicodedata.category(c) in ("Cc", "Cs") for c in n)]:
        raise ValueError(f"{path} has a name that is not UTF-8, or holds a control character: {ill[0]!a}; rename it.")
    normal = {unicodedata.normalize("NFC", n): v for n, v in files.items()}  # macOS may write the same name in two ways
    if len(normal) < len(files):
        twice = next(n for n in files if n not in normal)
        raise ValueError(f"{path} has two files called {twice}, in two Unicode forms; rename one.")
    files = normal
    tops, layout = {n.split("/")[0] for n in files if "/" in n}, path
    below = {n.partition("/")[2]: v for n, v in files.items() if "/" in n}
    if len(tops) == 1 and "train" not in tops and any(n.startswith("train/") for n in below):  # one folder down, as in many archives
        files, layout = below, path / tops.pop()
    if not any(n.startswith("unlabeled/") for n in files):
        files = {n.replace("unlabelled/", "unlabeled/", 1) if n.startswith("unlabelled/") else n: v for n, v in files.items()}
    names = sorted(n for n in files if n.split("/")[0] in PARTS)
    if odd := sorted({n.split("/")[0] for n in files if "/" in n} - {*PARTS, "__MACOSX"}):
        tqdm.write(f"{path}: not used: {', '.join(f'{o}/' for o in odd)} (the parts are {', '.join(f'{p}/' for p in PARTS)}).")
    classes = _classes(path, layout, names)
    images = np.empty((len(names), 3, size, size), np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoding = pool.map(lambda n, image: _decode_into(image, files[n], size), names, images)
        faults = list(tqdm(decoding, f"decoding {name}", len(names), unit="image", leave=False))
    bad = [f"{n} ({why})" for n, why in zip(names, faults, strict=True) if why]
    if bad:
        more = f", and {len(bad) - 10:,} more" if len(bad) > 10 else ""
        fault = f"{path} holds {'an image' if len(bad) == 1 else f'{len(bad):,} images'} that cannot be read: {', '.join(bad[:10])}{more}"
        if not skip_unreadable:
            raise OSError(f"{fault}; mend {'it' if len(bad) == 1 else 'them'}, or pass skip_unreadable=True (--skip-unreadable; "
                          "SKIP_UNREADABLE = True in a notebook).")
        tqdm.write(f"{fault}: left out.")
    parts = {}
    for part in PARTS:
        kept = [i for i, n in enumerate(names) if n.startswith(f"{part}/") and not faults[i]]
        if kept:
            labels = [-1 if part == "unlabeled" else classes.index(names[i].split("/")[1]) for i in kept]
            parts[part] = Images(torch.from_numpy(images[kept]), torch.tensor(labels), classes, name)
    for part, instead in {"test": "a part of train/ is held out", "unlabeled": "a part of train/ plays the unlabelled one"}.items():
        if part not in parts and any(n.startswith(f"{part}/") for n in names):
            raise ValueError(f"{path} has no readable image in {part}/: mend them, or remove it, and {instead}.")
    if "train" not in parts or len(parts["train"].labels.unique()) < len(classes):
        raise ValueError(f"{path} has a class without a readable training image: {FOLDER_HINT}.")
    return parts, not bad


def _classes(path: Path, layout: Path, names: list[str]) -> tuple[str, ...]:
    """Class names, sorted; layout: where train/ lies. Raises ValueError unless it holds two or more, none empty, and test/ no others."""
    found = {part: {n.split("/")[1] for n in names if n.startswith(f"{part}/") and n.count("/") >= 2} for part in PARTS}
    folders = {unicodedata.normalize("NFC", p.name) for p in layout.glob("train/*/")}  # none in an archive
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


def _decode_into(image: np.ndarray, source: Path | bytes, size: int) -> str | None:
    """Write one picture into ``image``, uint8, 3 x size x size; returns in a few words why it cannot be read."""
    try:
        formats = [name for name in Image.ID if name != "EPS"]  # PostScript is a program, and Pillow would have it run
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return f"{picture.width} x {picture.height} pixels are more than {MAX_PIXELS:,}"
            picture.draft("RGB", (size, size))  # JPEG: decode at a fraction of a large picture's size
            upright = ImageOps.exif_transpose(picture)
            # Pillow would clip 16-bit grey to its darkest 256 values; that of PGM files it holds in 32 bits.
            if upright.mode.startswith("I;16") or (upright.mode, picture.format) == ("I", "PPM"):
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            elif upright.mode in ("I", "F"):
                return f"its {upright.mode} pixels of 32 bits have no fixed range"
            # Through RGBA the pixels are the same, and Pillow does not warn of a palette whose colours have an opacity each.
            rgb = upright.convert("RGBA" if "transparency" in upright.info else "RGB").convert("RGB")
            rgb = rgb if rgb.size == (size, size) else rgb.resize((size, size), Image.Resampling.BILINEAR)
            image[:] = np.asarray(rgb).transpose(2, 0, 1)
            return None
    except UnidentifiedImageError:
        return "no format that Pillow reads"
    except Exception as error:  # Pillow's decoders raise many kinds for broken files
        return " ".join(str(error).split()) or type(error).__name__
