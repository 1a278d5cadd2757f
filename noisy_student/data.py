"""Images as uint8 tensors, from a named data set, a folder or an archive of a folder; and the labelled/unlabelled split.

Everything ends as one :class:`Images`: N x 3 x H x W uint8 pixels, int64 labels (-1 where there is none) and class
names. Folders and archives of pictures are read in ``folders.py``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from itertools import count, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm

from .files import write_whole
from .randomness import check_seed

NAMED = {"digits": "8x8 digits", "cifar10": "CIFAR-10", "cifar10-jpeg": "CIFAR-10 (JPEG copy)",
         "cifar100": "CIFAR-100", "svhn": "SVHN"}
JPEG = {"libjpeg": "9d", "quality": 75, "subsampling": "4:2:0"}  # by 9e: other pixels


@dataclass(frozen=True)
class Images:
    """A data set in memory.

    images: uint8, N x 3 x H x W. labels: int64, N, in 0..len(classes)-1, or -1 where the label is not known.
    name: a short lower-case name; ``title`` is the one for people. Raises ValueError for other labels.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        lowest, highest = (int(end) for end in self.labels.aminmax()) if len(self.labels) else (-1, -1)
        if self.labels.dtype != torch.int64 or len(self.labels) != len(self.images) or lowest < -1 or highest >= len(self.classes):
            raise ValueError(f"{len(self.labels):,} labels of {self.labels.dtype}, from {lowest} to {highest}, for {len(self.images):,} "
                             f"images: give one torch.int64 for each, from 0 to {len(self.classes) - 1}, or -1 where it is not known.")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        known = int((self.labels >= 0).sum())
        size = "x".join(map(str, self.images.shape[1:]))
        return f"Images({self.title}: {len(self):,} of {size}, {known:,} with a label, {len(self.classes)} classes)"

    @property
    def title(self) -> str:
        return NAMED.get(self.name, self.name)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over pixels, labels, shape and class names: equal data, equal fingerprint. Taken at each use (a fraction of a second
        for CIFAR-10): a kept one would stay when the tensors are changed in place, and a run be stored as that of other images."""
        digest = hashlib.sha256(json.dumps([list(self.images.shape), list(self.classes)]).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


def data_key(train: Images, test: Images) -> str:
    """Name and fingerprint of a training and a test set together: what a Run remembers of its data."""
    both = hashlib.sha256(f"{train.fingerprint}{test.fingerprint}".encode()).hexdigest()
    return f"{train.name}-{both[:16]}"


def check_classes(mine: Sequence[str | None], its: Sequence[str | None], me: str, it: str) -> None:
    """Raise ValueError for two lists of class names, of ``me`` and ``it``, that differ in a name, their order or their length."""
    for i, names in enumerate(zip_longest(mine, its)):
        if names[0] != names[1]:
            raise ValueError(f"class {i} is {names[0]!r} of {me} and {names[1]!r} of {it}: give both the same classes.")


def check_test_set(train: Images, test: Images) -> None:
    """Raise ValueError unless a model of ``train`` can be scored on ``test``."""
    check_classes(train.classes, test.classes, "the training set", "the test set")
    shapes = ["x".join(map(str, part.images.shape[1:])) for part in (train, test)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the training images are {shapes[0]} and the test images {shapes[1]}: give both one size.")
    if not len(test):
        raise ValueError("the test set has no image: give it some.")
    if unknown := int((test.labels < 0).sum()):
        raise ValueError(f"{unknown:,} test images have no label: leave them out, or put them into the training set.")


def check_name(what: str, name: object, valid: Iterable[object]) -> None:
    """Raise ValueError for a name that is not among the valid ones, with the nearest of them."""
    names = [str(v) for v in valid]
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"valid: {', '.join(names)}."
        raise ValueError(f"unknown {what} {str(name)!r}; {hint}")


def load(source: str | Path, root: str | Path = "data", *, size: int = 32, skip_unreadable: bool = False,
         test_fraction: float = 0.2) -> tuple[Images, Images]:
    """Training and test images of a named data set, a folder or an archive.

    source: "digits" (embedded, no download), "cifar10", "cifar100", "svhn" (fetched into ``root``),
    "cifar10-jpeg" ("cifar10" with each picture saved as JPEG; needs the package jpeglib), or a
    folder, or a .zip/.tar[.gz|.xz|.bz2] of one, laid out as ``train/<class>/*``, ``test/<class>/*`` and optionally
    ``unlabeled/*``. Pictures are made RGB and ``size`` x ``size`` (bilinear), decoded once, and cached in
    ``root/cache``. Images without a label stand at the end of the training images, with label -1. A folder without
    ``test/`` gives up a stratified ``test_fraction`` of ``train/``, the same in every call.

    Raises ValueError or OSError, in one sentence, for data that cannot be used; an unreadable picture is named, and
    is left out only with ``skip_unreadable``.
    """
    if not isinstance(size, int) or not 16 <= size <= 512:
        raise ValueError(f"size={size!r} is not a whole number from 16 to 512.")
    if str(source) == "cifar10-jpeg":
        return _cifar10_jpeg(Path(root), size)
    if str(source) in NAMED:
        read = {"digits": _digits, "svhn": _svhn}.get(str(source), _cifar)
        return read(str(source), Path(root))
    path = Path(source)
    if not path.exists():
        if len(path.parts) == 1 and not path.suffix:
            check_name("data set", source, [*NAMED, "a path to a folder or archive of images"])
        raise FileNotFoundError(f"{path} does not exist: give a folder or archive of images, or one of {', '.join(NAMED)}.")
    from .folders import load_folder

    return load_folder(path, Path(root), size, skip_unreadable, test_fraction)


# ---------------------------------------------------------------------------------------------- named data sets


def _digits(name: str, root: Path) -> tuple[Images, Images]:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, enlarged to 32x32 RGB; 497 of them are the test set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)
    large = torch.nn.functional.interpolate(small, size=32, mode="bilinear", align_corners=False)
    images = large.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target).long()
    return hold_out(Images(images, labels, tuple(map(str, range(10))), name), 497 / 1797)


def _cifar(name: str, root: Path) -> tuple[Images, Images]:
    from torchvision import datasets

    cls = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100

    def part(train: bool) -> Images:
        data = _fetch(name, root / cls.filename, cls.tgz_md5, lambda: cls(str(root), train=train, download=True))
        pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return Images(pixels, torch.tensor(data.targets), tuple(data.classes), name)

    return part(True), part(False)


def _cifar10_jpeg(root: Path, size: int) -> tuple[Images, Images]:
    """CIFAR-10 with each picture saved as ``JPEG`` says: what :func:`load` gives for a folder or an
    archive ``cifar10-jpeg`` of the files <part>/<class>/NNNN.jpg. NNNN counts a class's pictures in
    the official order. The files are not kept. Raises ValueError without the package jpeglib.
    """
    from torchvision.datasets import CIFAR10

    from .folders import decode_once

    def files() -> dict[str, Path | bytes]:
        if find_spec("jpeglib") is None:  # asked before the download, not after
            raise ValueError("'cifar10-jpeg' needs the package jpeglib, which is not installed: "
                             "run pip install -e '.[jpeg]', or use 'cifar10'.")
        names, pixels = list[str](), list[np.ndarray]()
        for part, data in zip(("train", "test"), _cifar("cifar10", root), strict=True):
            numbers = [count() for _ in data.classes]
            names += [f"{part}/{data.classes[label]}/{next(numbers[label]):04d}.jpg"
                      for label in data.labels.tolist()]
            pixels.extend(data.images.permute(0, 2, 3, 1).numpy())
        return dict(zip(names, _as_jpeg(pixels), strict=True))

    marks = [CIFAR10.tgz_md5, json.dumps(JPEG)]
    return decode_once("cifar10-jpeg", root / CIFAR10.filename, files, marks, root, size)


def _as_jpeg(pictures: Sequence[np.ndarray]) -> list[bytes]:
    """The JPEG file of each picture, uint8, H x W x 3, saved as ``JPEG`` says; in parallel."""
    import jpeglib

    def encode(pixels: np.ndarray) -> bytes:
        picture, path = jpeglib.from_spatial(pixels), Path(folder, uuid4().hex)
        picture.samp_factor = JPEG["subsampling"]
        picture.write_spatial(path, qt=JPEG["quality"])
        content = path.read_bytes()
        path.unlink()
        return content

    # jpeglib writes files only; a new one each, for to write over one takes 4 ms (ext4), not 0.3.
    # Its version is that of the whole process, and comes back at the end.
    with (TemporaryDirectory() as folder, jpeglib.version(JPEG["libjpeg"]),
          ThreadPoolExecutor(os.cpu_count()) as pool):
        encoding = pool.map(encode, pictures)
        return list(tqdm(encoding, "encoding JPEG", len(pictures), unit="image", leave=False))


def _svhn(name: str, root: Path) -> tuple[Images, Images]:
    from torchvision.datasets import SVHN

    def part(kind: str) -> tuple[Tensor, Tensor]:
        _, file, md5 = SVHN.split_list[kind]
        data = _fetch(name, root / file, md5, lambda: SVHN(str(root), split=kind, download=True))
        return torch.from_numpy(data.data), torch.from_numpy(data.labels).long()

    (train, y), (extra, _), (test, y_test) = part("train"), part("extra"), part("test")
    labels = torch.cat([y, torch.full((len(extra),), -1)])
    classes = tuple(map(str, range(10)))
    return Images(torch.cat([train, extra]), labels, classes, name), Images(test, y_test, classes, name)


def _fetch(name: str, archive: Path, md5: str, get: Callable[[], Any]) -> Any:
    """``get()``, torchvision's download and md5 check, by one process at a time; what a download that failed, or was
    stopped, left behind is removed."""
    from torchvision.datasets.utils import check_integrity

    archive.parent.mkdir(parents=True, exist_ok=True)
    writable = os.access(archive.parent, os.W_OK)  # if not, somebody has put the data there
    with FileLock(archive.with_name(f".{archive.name}.lock")) if writable else nullcontext():
        existed = archive.exists()
        if existed and not check_integrity(str(archive), md5):
            raise OSError(f"{archive} is damaged: its md5 is not {md5}; delete it and run again.")
        try:
            return get()
        except BaseException as error:
            if not existed:
                with suppress(OSError):  # in a folder that cannot be written there is none, and the error says so
                    archive.unlink()
            if not isinstance(error, (OSError, RuntimeError, EOFError, tarfile.TarError)):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(
                f"{NAMED[name]} could not be fetched ({reason}): put {archive.name} into {archive.parent} and run again, or use "
                f"'digits' or a folder of images, which need no download."
            ) from error


# ----------------------------------------------------------------------------------------------------- the split


@dataclass(frozen=True)
class Split:
    """Which training images count as labelled. Indices only, int64, in the order of the draw.

    The order makes splits nested: the labelled part of a larger split of the same seed begins with this one's.
    """

    labeled: Tensor
    unlabeled: Tensor
    seed: int
    fingerprint: str

    @property
    def key(self) -> str:
        """A short hash of what the split says."""
        digest = hashlib.sha256(f"{self.seed} {self.fingerprint} {len(self.labeled)}".encode())
        digest.update(torch.cat([self.labeled, self.unlabeled]).numpy().data)
        return digest.hexdigest()[:16]

    def check(self, train: Images) -> None:
        """Raise ValueError if this split was not made of ``train``."""
        if self.fingerprint != train.fingerprint:
            raise ValueError(
                f"this split belongs to other data (fingerprint {self.fingerprint[:12]}, but {train.title} has "
                f"{train.fingerprint[:12]}): make a new one with split()."
            )

    def resize(self, train: Images, labeled: int | float) -> Split:
        """The split of the same draw with more or fewer labelled images; the smaller lies within the larger."""
        self.check(train)
        return self._resized(train, labeled)

    def _resized(self, train: Images, labeled: int | float) -> Split:
        known = int((train.labels >= 0).sum())
        if isinstance(labeled, float) and not 0 < labeled <= 1:
            raise ValueError(f"labeled={labeled} is not a fraction above 0 and up to 1.")
        count = round(labeled * known) if isinstance(labeled, float) else int(labeled)
        if count > known:
            raise ValueError(f"{count:,} labelled images wanted, but {train.title} has {known:,} with a label.")
        if count < len(train.classes):
            raise ValueError(f"{count:,} labelled images are fewer than the {len(train.classes)} classes of {train.title}.")
        order = torch.cat([self.labeled, self.unlabeled])
        return Split(order[:count], order[count:], self.seed, self.fingerprint)

    def save(self, path: str | Path) -> None:
        """Write an .npz of indices; it appears whole or not at all."""
        content = BytesIO()
        np.savez(content, labeled=self.labeled.numpy(), unlabeled=self.unlabeled.numpy(), seed=self.seed,
                 fingerprint=self.fingerprint, key=self.key)
        write_whole(Path(path), content.getvalue())

    @staticmethod
    def load(path: str | Path, train: Images) -> Split:
        """Read a saved split of ``train``. Raises ValueError for a damaged file, or one of other data."""
        try:
            with np.load(path, allow_pickle=False) as file:
                labeled, unlabeled = (torch.from_numpy(file[k].astype(np.int64)) for k in ("labeled", "unlabeled"))
                found = Split(labeled, unlabeled, int(file["seed"]), str(file["fingerprint"]))
                sound = found.key == str(file["key"])
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} does not exist: make the split with data_split.ipynb or split().") from None
        except Exception as error:  # NumPy and zipfile raise a dozen kinds for altered bytes
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is not a split, or is damaged ({reason}): make it again with split().") from error
        if not sound:
            raise ValueError(f"{path} is damaged (its checksum does not fit): make it again with split().")
        found.check(train)
        return found


def split(train: Images, labeled: int | float = 5000, seed: int = 0) -> Split:
    """Draw ``labeled`` images (a count, or a fraction as a float) as the labelled part; the rest is unlabelled.

    Stratified: every class has its share of the labelled part, and at least one image. Nested: the 5,000 of a seed are
    contained in its 6,000. Images without a label are always unlabelled. seed: 0 to 2**32 - 1. Raises ValueError where it cannot be
    done.
    """
    check_seed(seed)
    order = torch.cat([_stratified_order(train.labels, seed), (train.labels < 0).nonzero().flatten()])
    return Split(order, order[:0], seed, train.fingerprint)._resized(train, labeled)


def _stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Indices of the labelled images, ordered so that every prefix is stratified (Webster's apportionment).

    The r-th image of a class of n, in random order, has rank (r + 1/2) / n; the first of each class comes before all.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    shuffled = shuffled[labels[shuffled] >= 0]
    rank = torch.empty(len(shuffled), dtype=torch.float64)
    for label in labels[shuffled].unique():
        members = (labels[shuffled] == label).nonzero().flatten()
        rank[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
        rank[members[0]] = -1.0
    return shuffled[rank.argsort(stable=True)]


def hold_out(train: Images, fraction: float) -> tuple[Images, Images]:
    """Take a stratified ``fraction`` of the labelled images away as a test set, always the same: (remaining, test)."""
    if not 0 < fraction < 1:
        raise ValueError(f"test_fraction={fraction} is not between 0 and 1.")
    order = _stratified_order(train.labels, seed=0)
    count = max(len(train.classes), math.floor(fraction * len(order) + 0.5))
    test, rest = order[:count].sort().values, order[count:].sort().values
    if len(gone := (torch.bincount(train.labels[rest], minlength=len(train.classes)) == 0).nonzero()):
        name = train.classes[int(gone[0])]
        raise ValueError(f"{train.title}: a test set of {count} images would take every one of class {name}: add some to it, or put a test "
                         "set into test/<class>/.")
    rest = torch.cat([rest, (train.labels < 0).nonzero().flatten()])
    return tuple(Images(train.images[i], train.labels[i], train.classes, train.name) for i in (rest, test))  # type: ignore[return-value]
