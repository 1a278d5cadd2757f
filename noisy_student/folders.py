"""Pictures in a folder, or in an archive of one, decoded in parallel into uint8 tensors and cached.

Nothing is ever unpacked to disk: archives are read in memory, so no path or link in them can lead
anywhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

from .data import NAMED, Images, held_out
from .doubles import digests, near_doubles
from .files import load_tensors, out_of_memory_said, save_tensors

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
PARTS = ("train", "test", "unlabeled")
# a larger picture is refused before it is decoded: a decompression bomb, or a mistake
MAX_PIXELS = 64_000_000
# of a JPEG that is decoded at a fraction of its size: phones make such of 108 and 200 million
MAX_JPEG_PIXELS = 256_000_000
MAX_ARCHIVE_BYTES = 8_000_000_000  # unpacked, in memory; less for small archives, see _read_archive
# to be raised when the pictures of a folder give other tensors: older caches are then not used
DECODER = 5
FOLDER_HINT = "put each class's images into train/<class>/"
LARGE_BYTES = 2**30  # what takes more than this is said before it is done

# a file's name inside the folder or archive -> where it is, or what it holds
Files = dict[str, Path | bytes]
_PILLOWS_LIMIT = Lock()


def load_folder(
    path: Path,
    root: Path,
    size: int,
    skip_unreadable: bool,
    test_fraction: float,
    drop_test_doubles: bool = False,
) -> tuple[Images, Images]:
    """See :func:`noisy_student.load`."""
    name = path.resolve().name.lower()
    for suffix in sorted(ARCHIVES, key=len, reverse=True):
        name = name.removesuffix(suffix)
    # which is the same whether read from its files or made anew
    if name in NAMED and name != "cifar10-jpeg":
        name = f"{name}-folder"  # whatever lies in a folder called cifar10, it is not the download
    packed = not path.is_dir()
    if packed and not path.name.lower().endswith(ARCHIVES):
        raise ValueError(f"{path} is neither a folder nor an archive ({', '.join(ARCHIVES)}).")
    if packed:
        return decode_once(
            name,
            path,
            lambda: arranged(path, *_read_archive(path)),
            [_sha256(path)],
            root,
            size,
            skip_unreadable,
            test_fraction,
            drop_test_doubles,
        )
    files, classes = arranged(path, *_list_folder(path))
    marks = [_mark(n, file) for n, file in files.items()]
    return decode_once(
        name,
        path,
        lambda: (files, classes),
        marks,
        root,
        size,
        skip_unreadable,
        test_fraction,
        drop_test_doubles,
    )


def decode_once(
    name: str,
    path: Path,
    read: Callable[[], tuple[Files, tuple[str, ...]]],
    marks: list[str],
    root: Path,
    size: int,
    skip_unreadable: bool = False,
    test_fraction: float = 0.2,
    drop_test_doubles: bool = False,
) -> tuple[Images, Images]:
    """What :func:`noisy_student.load` gives for what ``read`` does, from the cache if it is there.

    path: where they come from, for messages, and for the cache's name. marks: words that change
    with the files, for ``read`` is not called where the cache has them.
    """
    made_by = [DECODER, PIL.__version__, sorted(_formats()), marks]
    mark = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()
    # One cache for a folder and a size: where a picture has changed, it is replaced.
    place = hashlib.sha256(json.dumps([str(path.resolve()), size]).encode()).hexdigest()
    # a file's name has at most 255 bytes, a Korean letter 3
    cache = root / "cache" / f"{name[:60]}-{place[:16]}.safetensors"
    with out_of_memory_said(
        f"the pictures of {path}", f"give a smaller size than {size}, or fewer pictures"
    ):
        found = load_tensors(cache)
        fresh = not found or found[1].get("mark") != mark
        if found and not fresh and (faults := json.loads(found[1]["faults"])):
            # What could not be read is tried again: a disk or a network may have been away.
            files, scratch = read()[0], np.empty((3, size, size), np.uint8)
            fresh = any(
                not isinstance(_decode_into(scratch, files[n], size), str)
                for n in faults
                if n in files
            )
            if not fresh:
                _refuse_unreadable(path, faults, skip_unreadable)
        if fresh:
            found = _decode(path, name, *read(), size, skip_unreadable, root)
            found[1]["mark"] = mark
            save_tensors(cache, *found)
            found = load_tensors(cache) or found  # mapped: the decoded copy is given back
        assert found is not None
        return _parts(path, name, *found, test_fraction, fresh, drop_test_doubles)


def _parts(
    path: Path,
    name: str,
    tensors: dict[str, Tensor],
    facts: dict[str, str],
    test_fraction: float,
    near: bool,
    drop_test_doubles: bool,
) -> tuple[Images, Images]:
    """Training and test images of what was decoded; near: whether to look for near doubles too."""
    images, labels = tensors["images"], tensors["labels"]
    names, classes = json.loads(facts["names"]), tuple(json.loads(facts["classes"]))
    if facts["scale"]:
        tqdm.write(facts["scale"])
    tests = sum(n.startswith("test/") for n in names)  # they come first
    everything = torch.arange(len(names))
    train, test = (
        (everything[tests:], everything[:tests])
        if tests
        else held_out(labels, classes, name, test_fraction)
    )
    kept = _say_doubles(path, images, labels, names, train, test, near, drop_test_doubles)
    if lost := set(range(len(classes))) - set(labels[kept].tolist()):
        raise ValueError(
            f"{path}: without doubles of test pictures no training picture of the class "
            f"{classes[min(lost)]} is left: add some, or load without drop_test_doubles."
        )
    if tests and len(kept) == len(train):  # next to each other: no copy
        kept, test = slice(tests, None), slice(tests)  # type: ignore[assignment]
    bits = int(facts["bits"])
    return tuple(Images(images[i], labels[i], classes, name, bits) for i in (kept, test))  # type: ignore[return-value]


def _say_doubles(
    path: Path,
    images: Tensor,
    labels: Tensor,
    names: list[str],
    train: Tensor,
    test: Tensor,
    near: bool,
    drop: bool,
) -> Tensor:
    """Name pictures that are there twice where a score suffers, in a line.

    near: whether to look for nearly equal ones too: seconds for 60,000 pictures. Gives the training
    indices, without doubles of test pictures if ``drop``.
    """
    marks, said = digests(images), list[str]()
    training, tests = train.tolist(), test.tolist()
    tested = {marks[i]: i for i in reversed(tests)}
    if seen := [i for i in training if marks[i] in tested]:
        said.append(_in_both([names[i] for i in seen], names[tested[marks[seen[0]]]], drop))
    said += _in_two_classes(marks, labels.tolist(), names, training + tests)
    if near:
        learnt = {marks[i] for i in training}
        others = torch.tensor([i for i in tests if marks[i] not in learnt], dtype=torch.int64)
        if alike := near_doubles(images, train, others):
            mine, its = (names[i] for i in alike[0])
            said.append(
                f"{len(alike):,} of the test pictures are nearly equal to one of training, {mine} "
                f"(to {its}) first: if they show the same, the score is too good; remove them"
            )
    if said:
        tqdm.write(f"{path}: pictures that are there twice: {'; '.join(said)}.")
    if not drop:
        return train
    return torch.tensor([i for i in training if marks[i] not in tested], dtype=torch.int64)


def _in_both(seen: list[str], test: str, drop: bool) -> str:
    """A line on the training pictures that are test pictures too; test: what the first equals."""
    counts = {p: sum(n.startswith(f"{p}/") for n in seen) for p in ("train", "unlabeled")}
    count = " and ".join(f"{n:,} of {part}/" for part, n in counts.items() if n)
    then = "left out"
    if not drop:
        then = (
            "the score is too good, since they are learnt by heart; load(..., "
            "drop_test_doubles=True) leaves them out of training"
        )
    return f"{count} are test pictures too, {seen[0]} (the same as {test}) first: {then}"


def _in_two_classes(
    marks: list[bytes], labels: list[int], names: list[str], places: list[int]
) -> list[str]:
    """A line on equal pictures of different labels, if there are any."""
    owners: dict[bytes, list[int]] = {}
    for i in places:
        if labels[i] >= 0:
            owners.setdefault(marks[i], []).append(i)
    two = [group for group in owners.values() if len({labels[i] for i in group}) > 1]
    if not two:
        return []
    first, other = two[0][0], next(i for i in two[0] if labels[i] != labels[two[0][0]])
    return [
        f"{len(two):,} in two classes, {names[first]} (the same as {names[other]}) first: one of "
        "the labels is wrong, remove it"
    ]


def load_pictures(paths: Iterable[str | Path], size: int = 32, bits: int | None = None) -> Tensor:
    """Single pictures for :func:`noisy_student.predict`, uint8, N x 3 x size x size.

    They are read as :func:`noisy_student.load` reads its own. size: that of the images that the
    model was trained on. bits: how many of the 16 bits of 16-bit pictures are used, 8 to 16, as
    :func:`noisy_student.load` said of the training images if they were fewer than 16; None: as
    these pictures have it among them. Raises OSError for a picture that cannot be read, with its
    path, ValueError for a single path.
    """
    if isinstance(paths, str | Path):
        raise ValueError(f"{str(paths)!r} is one path: load_pictures takes a list of them.")
    if bits is not None and bits not in range(8, 17):
        raise ValueError(f"bits={bits!r} is not a whole number from 8 to 16, nor None.")
    found = [Path(path).expanduser() for path in paths]
    images, faults, _, scale = _decode_all([*map(str, found)], found, size, bits)
    for path, fault in faults.items():
        raise OSError(f"{path} cannot be read ({fault}): mend it, or leave it out.")
    if scale:
        tqdm.write(scale)
    return torch.from_numpy(images)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one that Windows puts into folders of pictures."""
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


def _list_folder(path: Path) -> tuple[Files, list[str]]:
    """The files in and below a folder, and the hidden folders there.

    Hidden files, linked folders and links that lead out of it are left out.
    """

    # pathlib's rglob would pass over such a folder, and over its pictures, without a word
    def refuse(error: OSError) -> None:
        raise OSError(
            f"{error.filename} cannot be read ({error.strerror}): "
            "make it readable, or move it elsewhere."
        ) from error

    home, files, links, hidden = path.resolve(), Files(), list[str](), list[str]()
    for folder, below, names in os.walk(path, onerror=refuse):
        inside = f"{Path(folder).relative_to(path).as_posix()}/".removeprefix("./")
        hidden += [inside + name for name in below if _hidden(name)]
        # a disk's own, for root alone
        below[:] = [name for name in below if not _hidden(name) and name != "lost+found"]
        for name in [*below, *names]:
            file = Path(folder, name)
            if _hidden(name):
                continue
            if file.is_file() and (not file.is_symlink() or file.resolve().is_relative_to(home)):
                files[inside + name] = file
            elif file.is_symlink():
                links.append(inside + name)
    if links:
        tqdm.write(
            f"{path}: not used: {len(links):,} links to folders, or out of it, {min(links)} "
            "first; put the pictures themselves there."
        )
    return files, hidden


def _mark(name: str, file: Path | bytes) -> str:
    """What changes with a file."""
    status = Path(file).stat()  # type: ignore[arg-type]
    # ctime: copies keep the original's time, some tools set it
    return f"{name} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _read_archive(path: Path) -> tuple[Files, list[str]]:
    """The files of an archive, hidden ones left out, and the hidden folders.

    It is checked to its end. Raises OSError for a damaged one.
    """
    files, total, hidden = Files(), 0, dict[str, None]()
    # pictures hardly shrink: more is a bomb
    most = min(MAX_ARCHIVE_BYTES, max(500_000_000, 20 * path.stat().st_size))
    try:
        for inside, size, content in _members(path):
            if total + size > most:
                total += size
                break
            # hidden ones too: an altered name must not hide a picture from its checksum
            read = content()
            total += len(read)  # a hard link has no size of its own
            *above, last = inside.split("/")
            if at := [i for i, folder in enumerate(above) if _hidden(folder)]:
                hidden["/".join(above[: at[0] + 1])] = None
            elif not _hidden(last):
                files[inside] = read
    # zipfile, tarfile and the decompressors raise a dozen kinds for altered bytes
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(
            f"{path} is not a sound archive ({reason.rstrip(':')}): fetch or make it again."
        ) from error
    if total > most:
        raise OSError(
            f"{path} unpacks to more than {most:,} bytes: unpack it and give the folder instead."
        )
    return files, [*hidden]


class _Header(tarfile.TarInfo):
    """tarfile takes a bad header, but for the first, for the archive's end; here it is an error."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} after {tar.offset:,} bytes") from error


def _open_zip(path: Path) -> zipfile.ZipFile:
    """Names of unknown encoding are read as UTF-8, Korean (EUC-KR), or CP437, the format's own."""
    for encoding in ("utf-8", "euc_kr"):
        with suppress(UnicodeDecodeError):
            return zipfile.ZipFile(path, metadata_encoding=encoding)
    return zipfile.ZipFile(path)


def _members(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    """(name, unpacked bytes, function that reads it) of each file in an archive, links left out."""
    if path.name.lower().endswith(".zip"):
        with _open_zip(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield (
                        info.filename.removeprefix("./"),
                        info.file_size,
                        partial(archive.read, info),
                    )
    else:
        with tarfile.open(path, tarinfo=_Header) as tar:
            for member in tar:
                # a hard link: to another member
                content = tar.extractfile(member) if member.isfile() or member.islnk() else None
                if content is not None:
                    yield member.name.removeprefix("./"), member.size, content.read
            # gzip and xz compare checksums at their end only
            while rest := tar.fileobj.read(2**20):
                if rest.strip(b"\0"):
                    raise tarfile.ReadError("data after its end")


def arranged(path: Path, files: Files, hidden: list[str]) -> tuple[Files, tuple[str, ...]]:
    """Check the layout: (pictures by their names in it, such as train/cat/1.png; class names).

    Both are sorted: test/ comes first.
    """
    if ill := [n for n in files if any(unicodedata.category(c) in ("Cc", "Cs") for c in n)]:
        raise ValueError(
            f"{path} has a name that is not UTF-8, or holds a control character: "
            f"{ill[0]!a}; rename it."
        )
    # macOS may write the same name in two ways
    normal = {unicodedata.normalize("NFC", n): v for n, v in files.items()}
    if len(normal) < len(files):
        twice = next(n for n in files if n not in normal)
        raise ValueError(f"{path} has two files called {twice}, in two Unicode forms; rename one.")
    files = normal
    tops, layout = {n.split("/")[0] for n in files if "/" in n}, path
    below = {n.partition("/")[2]: v for n, v in files.items() if "/" in n}
    # one folder down, as in many archives
    if len(tops) == 1 and "train" not in tops and any(n.startswith("train/") for n in below):
        files, layout = below, path / tops.pop()
        hidden = [n.partition("/")[2] for n in hidden]
    if not any(n.startswith("unlabeled/") for n in files):
        files = {
            n.replace("unlabelled/", "unlabeled/", 1) if n.startswith("unlabelled/") else n: v
            for n, v in files.items()
        }
    if odd := sorted({n.split("/")[0] for n in files if "/" in n} - {*PARTS, "__MACOSX"}):
        unused, used = (", ".join(f"{name}/" for name in names) for names in (odd, PARTS))
        tqdm.write(f"{path}: not used: {unused} (the parts are {used}).")
    if dotted := sorted(
        n for n in hidden if n.count("/") == 1 and n.split("/")[0] in (*PARTS, "unlabelled")
    ):
        named = ", ".join(f"{n}/" for n in dotted[:10]) + ", ..." * (len(dotted) > 10)
        tqdm.write(f"{path}: not used: hidden folders, {named}: rename what is a class.")
    files = {n: files[n] for n in sorted(files) if n.split("/")[0] in PARTS}
    return files, _classes(path, layout, [*files])


def _decode(
    path: Path,
    name: str,
    files: Files,
    classes: tuple[str, ...],
    size: int,
    skip_unreadable: bool,
    root: Path,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors "images" and "labels", in the order of names; names, classes, faults and scale."""
    _check_room(path, root, len(files), size)
    names = [*files]
    images, faults, bits, scale = _decode_all(names, [*files.values()], size, None, name)
    if faults:
        _refuse_unreadable(path, faults, skip_unreadable)
    kept = [i for i, n in enumerate(names) if n not in faults]
    for to, i in enumerate(kept) if faults else ():  # close the gaps, without a copy
        images[to] = images[i]
    names = [names[i] for i in kept]
    labels = torch.tensor(
        [-1 if n.startswith("unlabeled/") else classes.index(n.split("/")[1]) for n in names],
        dtype=torch.int64,
    )
    for part, instead in {
        "test": "a part of train/ is held out",
        "unlabeled": "a part of train/ plays the unlabelled one",
    }.items():
        if any(n.startswith(f"{part}/") for n in files) and not any(
            n.startswith(f"{part}/") for n in names
        ):
            raise ValueError(
                f"{path} has no readable image in {part}/: mend them, or remove it, and {instead}."
            )
    if len({n.split("/")[1] for n in names if n.startswith("train/")}) < len(classes):
        raise ValueError(f"{path} has a class without a readable training image: {FOLDER_HINT}.")
    said = {
        "names": json.dumps(names),
        "classes": json.dumps(classes),
        "faults": json.dumps(faults),
        "scale": f"{path}: {scale}" if scale else "",
        "bits": str(bits),
    }
    return {"images": torch.from_numpy(images[: len(kept)]), "labels": labels}, said


def _check_room(path: Path, root: Path, count: int, size: int) -> None:
    """Say where ``count`` pictures take much memory; raise OSError where the disk is too full."""
    need = count * 3 * size**2
    take = f"{path}: {count:,} pictures of {size} x {size} take {need:,} bytes"
    there = next(p for p in (root.resolve(), *root.resolve().parents) if p.exists())
    if need > LARGE_BYTES:
        tqdm.write(f"{take} of memory, and as many on disk in {root / 'cache'}.")
    if need > (free := shutil.disk_usage(there).free):
        raise OSError(
            f"{take} on disk, and {there} has {free:,} free: make room, or give another root "
            "(--root) or a smaller size."
        )


def _refuse_unreadable(path: Path, faults: dict[str, str], skip: bool) -> None:
    """Raise OSError for pictures that cannot be read, with the reasons; if ``skip`` only say so."""
    bad = [f"{n} ({why})" for n, why in faults.items()]
    more = f", and {len(bad) - 10:,} more" if len(bad) > 10 else ""
    count = "an image" if len(bad) == 1 else f"{len(bad):,} images"
    fault = f"{path} holds {count} that cannot be read: {', '.join(bad[:10])}{more}"
    if not skip:
        raise OSError(
            f"{fault}; mend {'it' if len(bad) == 1 else 'them'}, or pass skip_unreadable=True "
            "(--skip-unreadable; SKIP_UNREADABLE = True in a notebook)."
        )
    tqdm.write(f"{fault}: left out.")


def _classes(path: Path, layout: Path, names: list[str]) -> tuple[str, ...]:
    """Class names, sorted; layout: where train/ lies.

    Raises ValueError unless that holds two or more, none empty, and test/ no others.
    """
    found = {
        part: {n.split("/")[1] for n in names if n.startswith(f"{part}/") and n.count("/") >= 2}
        for part in PARTS
    }
    # none in an archive
    folders = {unicodedata.normalize("NFC", p.name) for p in layout.glob("train/*/")}
    empty = sorted(f for f in folders - found["train"] if not f.startswith("."))
    if empty:
        raise ValueError(
            f"{path} has a class without images: {', '.join(empty)}; "
            "add some, or remove the empty folder."
        )
    if astray := [n for n in names if not n.startswith("unlabeled/") and n.count("/") < 2]:
        hint = (
            FOLDER_HINT
            if astray[-1].startswith("train/")
            else (
                "put each class's test images into test/<class>/, and those of no known class, "
                "which cannot be scored, into unlabeled/"
            )
        )
        raise ValueError(f"{path} has a file that lies in no class's folder: {astray[-1]}; {hint}.")
    if len(found["train"]) < 2:
        had = f"only the class {found['train'].pop()!r}" if found["train"] else "no classes"
        raise ValueError(f"{path} has {had} in train/: {FOLDER_HINT}, for two classes or more.")
    if found["test"] - found["train"]:
        odd = ", ".join(sorted(found["test"] - found["train"]))
        raise ValueError(f"{path} has classes in test/ that train/ lacks: {odd}.")
    return tuple(sorted(found["train"]))


@contextmanager
def _large_jpegs() -> Iterator[None]:
    """Our limits in place of Pillow's, which ignores a JPEG's fraction and warns of large ones.

    It is the whole process's: a second thread waits.
    """
    with _PILLOWS_LIMIT:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_JPEG_PIXELS
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _formats() -> list[str]:
    """All that Pillow reads, not only the usual ones; PostScript is a program that it would run."""
    Image.init()  # once; what another plugin adds later is in the list too
    return [name for name in Image.ID if name != "EPS"]


def _decode_all(
    names: Sequence[str],
    sources: Sequence[Path | bytes],
    size: int,
    bits: int | None,
    title: str | None = None,
) -> tuple[np.ndarray, dict[str, str], int, str]:
    """Pictures, decoded in parallel, with a progress bar if there is a title.

    Gives (uint8, N x 3 x size x size; why some, by name, cannot be read; the bits of 16-bit ones; a
    line where these were not read as of 16).

    bits: how many of their 16 bits such pictures use, 8 to 16; None: as many as the brightest of
    all has. Cameras, scanners and microscopes give 10 to 14, and these taken for 16 would be nearly
    black.
    """
    images = np.empty((len(names), 3, size, size), np.uint8)
    with _large_jpegs(), ThreadPoolExecutor(os.cpu_count()) as pool:
        decoding = pool.map(
            lambda source, image: _decode_into(image, source, size, bits or 16), sources, images
        )
        found = list(
            tqdm(
                decoding,
                f"decoding {title}",
                len(names),
                unit="image",
                leave=False,
                disable=title is None,
            )
        )
        deep = {i: peak for i, peak in enumerate(found) if isinstance(peak, int)}
        bits = bits or max(8, max(deep.values(), default=2**16 - 1).bit_length())
        if bits < 16:
            list(pool.map(lambda i: _decode_into(images[i], sources[i], size, bits), deep))
    faults = {n: why for n, why in zip(names, found, strict=True) if isinstance(why, str)}
    if not deep or bits == 16:
        return images, faults, 16, ""
    scale = (
        f"{len(deep):,} 16-bit pictures, {names[min(deep)]} first, are read as of {bits} bits, "
        f"since none is brighter than {max(deep.values()):,}: "
        f"load_pictures(..., bits={bits}) reads others alike"
    )
    return images, faults, bits, scale


def _decode_into(
    image: np.ndarray, source: Path | bytes, size: int, bits: int = 16
) -> str | int | None:
    """Write one picture, what is transparent laid on white, into ``image``, uint8, 3 x size x size.

    bits: how many of its 16 bits a 16-bit picture uses. Returns in a few words why it cannot be
    read; of a 16-bit one its highest value (of colours, of which Pillow reads the upper 8 bits, the
    highest that it can be); None of others.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=_formats()) as picture:
            width, height = picture.size
            # JPEG: decode at a fraction of a large picture's size
            picture.draft("RGB", (size, size))
            # which is held whole all the same
            fraction = picture.size != (width, height) and not picture.info.get("progressive")
            if width * height > (most := MAX_JPEG_PIXELS if fraction else MAX_PIXELS):
                return f"{width} x {height} pixels are more than {most:,}"
            rgb, peak = _upright_rgb(picture, bits)
            if rgb.size != (size, size):
                rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
            image[:] = np.asarray(rgb).transpose(2, 0, 1)
            return peak
    except UnidentifiedImageError:
        return "no format that Pillow reads"
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds for broken files
        return " ".join(str(error).split()) or type(error).__name__


def _upright_rgb(picture: Image.Image, bits: int) -> tuple[Image.Image, int | None]:
    """The picture turned upright, on white, of 8 bits a value; the highest value of a 16-bit one.

    Raises ValueError for 32 bits.
    """
    depth = _depth(picture)
    upright = ImageOps.exif_transpose(picture)
    clear, peak = upright.info.get("transparency"), None
    if upright.has_transparency_data and not upright.mode.startswith("I"):
        # PNG gives it in the file's depth, Pillow wants 8 bits
        if depth != 8 and clear is not None and upright.mode != "P":
            levels = [
                value >> 8 if depth == 16 else value * 255 // (2**depth - 1)
                for value in np.ravel(clear).tolist()
            ]
            upright.info["transparency"] = tuple(levels) if upright.mode == "RGB" else levels[0]
        upright = upright.convert("RGBA")
    # Pillow would clip 16-bit grey to its darkest 256 values; that of PGM files it holds in 32
    # bits, in their own scale.
    if (upright.mode, picture.format) == ("I", "PPM"):
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    elif upright.mode.startswith("I;16"):
        grey = np.asarray(upright)
        white = grey == clear if isinstance(clear, int) else np.zeros_like(grey, bool)
        peak = int(grey[~white].max(initial=0))
        seen = np.where(white, 255, (grey >> (bits - 8)).clip(max=255))
        upright = Image.fromarray(seen.astype(np.uint8))
    elif upright.mode in ("I", "F"):
        raise ValueError(f"its {upright.mode} pixels of 32 bits have no fixed range")
    elif depth == 16 and upright.mode in ("RGB", "RGBA"):
        peak = 256 * int(np.asarray(upright)[..., :3].max()) + 255
        highest = max(1, 2 ** (bits - 8) - 1)
        bright = [min(255, value * 255 // highest) for value in range(256)]
        upright = upright.point(bright * 3 + [*range(256)] * (upright.mode == "RGBA"))
    if upright.mode == "RGBA":
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return upright.convert("RGB"), peak


def _depth(picture: Image.Image) -> int:
    """Bits a value in a PNG or TIFF file that has not been read yet; 8 for other formats."""
    tile = getattr(picture, "tile", None) if picture.format in ("PNG", "TIFF") else None
    raw = str(tile[0][3]) if tile else ""
    return next(
        (depth for mark, depth in {";16": 16, "L;2": 2, "L;4": 4}.items() if mark in raw),
        1 if picture.mode == "1" else 8,
    )
