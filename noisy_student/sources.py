"""Where images come from: named data sets, which are fetched, and folders and archives."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm

from .data import NAMED, Images, check_name, hold_out
from .folders import Files, arranged, decode_once, load_folder

# how the JPEG copy is saved; by 9e all its files would differ
JPEG = {"libjpeg": "9d", "quality": 75, "subsampling": "4:2:0"}


def load(
    source: str | Path,
    root: str | Path = "data",
    *,
    size: int = 32,
    skip_unreadable: bool = False,
    test_fraction: float = 0.2,
    drop_test_doubles: bool = False,
) -> tuple[Images, Images]:
    """Training and test images of a named data set, a folder or an archive.

    source: "digits" (embedded, no download), "cifar10", "cifar100", "svhn" (fetched into ``root``),
    "cifar10-jpeg" (made of "cifar10": each picture saved as JPEG, once; needs the package jpeglib),
    or a folder, or a .zip/.tar[.gz|.xz|.bz2] of one, laid out as ``train/<class>/*``,
    ``test/<class>/*`` and optionally ``unlabeled/*``. Pictures are made RGB and ``size`` x ``size``
    (bilinear), decoded once, and cached in ``root/cache``. Images without a label stand at the end
    of the training images, with label -1. A folder without ``test/`` gives up a stratified
    ``test_fraction`` of ``train/``, the same in every call. What is transparent is laid on white;
    16-bit pictures have one scale, found from the brightest of all. Pictures that are both in
    training and test set, or in two classes, are said; ``drop_test_doubles`` leaves the first out
    of training, those of equal pixels, not the nearly equal ones.

    Raises ValueError or OSError, in one sentence, for data that cannot be used; an unreadable
    picture is named, and is left out only with ``skip_unreadable``.
    """
    if not isinstance(size, int) or not 16 <= size <= 512:
        raise ValueError(f"size={size!r} is not a whole number from 16 to 512.")
    root = Path(root).expanduser()
    if str(source) in NAMED:
        if drop_test_doubles or size != 32:
            option = "drop_test_doubles" if drop_test_doubles else f"size={size}"
            raise ValueError(
                f"{option} is for a folder or archive of images, not for {source}, "
                "whose images are 32 x 32."
            )
        if str(source) == "cifar10-jpeg":
            return _cifar10_jpeg(root)
        read = {"digits": _digits, "svhn": _svhn}.get(str(source), _cifar)
        return read(str(source), root)
    path = Path(source).expanduser()
    if not path.exists():
        if len(path.parts) == 1 and not path.suffix:
            check_name("data set", source, [*NAMED, "a path to a folder or archive of images"])
        raise FileNotFoundError(
            f"{path} does not exist: give a folder or archive of images, or one of "
            f"{', '.join(NAMED)}."
        )
    return load_folder(path, root, size, skip_unreadable, test_fraction, drop_test_doubles)


# ---------------------------------------------------------------------------------- named data sets


def _digits(name: str, root: Path) -> tuple[Images, Images]:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, enlarged to 32x32 RGB; 497 of them are
    the test set.
    """
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
        data = _fetch(
            name,
            root / cls.filename,
            cls.tgz_md5,
            lambda: cls(str(root), train=train, download=True),
        )
        pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return Images(pixels, torch.tensor(data.targets), tuple(data.classes), name)

    return part(True), part(False)


def _cifar10_jpeg(root: Path) -> tuple[Images, Images]:
    """CIFAR-10 with each picture saved as ``JPEG`` says: what :func:`load` gives for a folder or an
    archive ``cifar10-jpeg`` of the files <part>/<class>/NNNN.jpg. NNNN counts a class's pictures in
    the official order. The files are not kept. Raises ValueError without the package jpeglib.
    """
    from torchvision.datasets import CIFAR10

    def files() -> tuple[Files, tuple[str, ...]]:
        if find_spec("jpeglib") is None:  # asked before the download, not after
            raise ValueError(
                "'cifar10-jpeg' needs the package jpeglib, which is not installed: "
                "run pip install -e '.[jpeg]', or use 'cifar10'."
            )
        names, pixels = list[str](), list[np.ndarray]()
        for part, data in zip(("train", "test"), _cifar("cifar10", root), strict=True):
            numbers = [count() for _ in data.classes]
            names += [
                f"{part}/{data.classes[label]}/{next(numbers[label]):04d}.jpg"
                for label in data.labels.tolist()
            ]
            pixels.extend(data.images.permute(0, 2, 3, 1).numpy())
        pictures: Files = dict(zip(names, _as_jpeg(pixels), strict=True))
        return arranged(root / CIFAR10.filename, pictures, [])

    marks = [CIFAR10.tgz_md5, json.dumps(JPEG)]
    return decode_once("cifar10-jpeg", root / CIFAR10.filename, files, marks, root, 32)


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
    with (
        TemporaryDirectory() as folder,
        jpeglib.version(JPEG["libjpeg"]),
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
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
    return Images(torch.cat([train, extra]), labels, classes, name), Images(
        test, y_test, classes, name
    )


def _fetch(name: str, archive: Path, md5: str, get: Callable[[], Any]) -> Any:
    """``get()``, torchvision's download and md5 check, by one process at a time; what a download
    that failed, or was stopped, left behind is removed.
    """
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
                # in a folder that cannot be written there is none, and the error says so
                with suppress(OSError):
                    archive.unlink()
            if not isinstance(error, (OSError, RuntimeError, EOFError, tarfile.TarError)):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(
                f"{NAMED[name]} could not be fetched ({reason}): put {archive.name} into "
                f"{archive.parent} and run again, or use "
                f"'digits' or a folder of images, which need no download."
            ) from error
