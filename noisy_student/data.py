"""Images as uint8 tensors, from a named data set, a folder or an archive of a folder; and the
labelled/unlabelled split.

Everything ends as one :class:`Images`: N x 3 x H x W uint8 pixels, int64 labels (-1 where there is
none) and class names. Folders and archives of pictures are read in ``folders.py``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .files import write_whole
from .randomness import check_seed

NAMED = {
    "digits": "8x8 digits",
    "cifar10": "CIFAR-10",
    "cifar10-jpeg": "CIFAR-10 (JPEG copy)",
    "cifar100": "CIFAR-100",
    "svhn": "SVHN",
}


@dataclass(frozen=True)
class Images:
    """A data set in memory.

    images: uint8, N x 3 x H x W. labels: int64, N, in 0..len(classes)-1, or -1 where the label is
    not known. name: a short lower-case name; ``title`` is the one for people. bits: of 16, which
    16-bit pictures were read as using. Raises ValueError for other labels.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    bits: int = 16

    def __post_init__(self) -> None:
        lowest, highest = (
            (int(end) for end in self.labels.aminmax()) if len(self.labels) else (-1, -1)
        )
        if (
            self.labels.dtype != torch.int64
            or len(self.labels) != len(self.images)
            or lowest < -1
            or highest >= len(self.classes)
        ):
            raise ValueError(
                f"{len(self.labels):,} labels of {self.labels.dtype}, from {lowest} to {highest}, "
                f"for {len(self.images):,} images: give one torch.int64 for each, from 0 to "
                f"{len(self.classes) - 1}, or -1 where it is not known."
            )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        known = int((self.labels >= 0).sum())
        size = "x".join(map(str, self.images.shape[1:]))
        return (
            f"Images({self.title}: {len(self):,} of {size}, {known:,} with a label, "
            f"{len(self.classes)} classes)"
        )

    @property
    def title(self) -> str:
        return NAMED.get(self.name, self.name)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over pixels, labels, shape and class names: equal data, equal fingerprint. Taken
        at each use (a fraction of a second for CIFAR-10): a kept one would stay when the tensors
        are changed in place, and a run be stored as that of other images.
        """
        digest = hashlib.sha256(json.dumps([list(self.images.shape), list(self.classes)]).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


def data_key(train: Images, test: Images) -> str:
    """Name and fingerprint of a training and a test set together: what a Run knows of its data."""
    both = hashlib.sha256(f"{train.fingerprint}{test.fingerprint}".encode()).hexdigest()
    return f"{train.name}-{both[:16]}"


def check_classes(mine: Sequence[str | None], its: Sequence[str | None], me: str, it: str) -> None:
    """Raise ValueError for lists of class names, of ``me`` and ``it``, that differ in any way."""
    for i, names in enumerate(zip_longest(mine, its)):
        if names[0] != names[1]:
            raise ValueError(
                f"class {i} is {names[0]!r} of {me} and {names[1]!r} of {it}: "
                "give both the same classes."
            )


def check_test_set(train: Images, test: Images) -> None:
    """Raise ValueError unless a model of ``train`` can be scored on ``test``."""
    check_classes(train.classes, test.classes, "the training set", "the test set")
    shapes = ["x".join(map(str, part.images.shape[1:])) for part in (train, test)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the training images are {shapes[0]} and the test images {shapes[1]}: "
            "give both one size."
        )
    if not len(test):
        raise ValueError("the test set has no image: give it some.")
    if unknown := int((test.labels < 0).sum()):
        raise ValueError(
            f"{unknown:,} test images have no label: "
            "leave them out, or put them into the training set."
        )


def check_name(what: str, name: object, valid: Iterable[object]) -> None:
    """Raise ValueError for a name that is not among the valid ones, with the nearest of them."""
    names = [str(v) for v in valid]
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"valid: {', '.join(names)}."
        raise ValueError(f"unknown {what} {str(name)!r}; {hint}")


# ---------------------------------------------------------------------------------------- the split


@dataclass(frozen=True)
class Split:
    """Which training images count as labelled. Indices only, int64, in the order of the draw.

    The order makes splits nested: the labelled part of a larger split of the same seed begins with
    this one's.
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
                f"this split belongs to other data (fingerprint {self.fingerprint[:12]}, "
                f"but {train.title} has {train.fingerprint[:12]}): make a new one with split()."
            )

    def resize(self, train: Images, labeled: int | float) -> Split:
        """The split of the same draw with more or fewer labelled images; the smaller lies within
        the larger.
        """
        self.check(train)
        return self._resized(train, labeled)

    def _resized(self, train: Images, labeled: int | float) -> Split:
        known = int((train.labels >= 0).sum())
        if isinstance(labeled, float) and not 0 < labeled <= 1:
            raise ValueError(f"labeled={labeled} is not a fraction above 0 and up to 1.")
        count = round(labeled * known) if isinstance(labeled, float) else int(labeled)
        if count > known:
            raise ValueError(
                f"{count:,} labelled images wanted, but {train.title} has {known:,} with a label."
            )
        if count < len(train.classes):
            raise ValueError(
                f"{count:,} labelled images are fewer than the {len(train.classes)} classes of "
                f"{train.title}."
            )
        order = torch.cat([self.labeled, self.unlabeled])
        return Split(order[:count], order[count:], self.seed, self.fingerprint)

    def save(self, path: str | Path) -> None:
        """Write an .npz of indices; it appears whole or not at all."""
        content = BytesIO()
        np.savez(
            content,
            labeled=self.labeled.numpy(),
            unlabeled=self.unlabeled.numpy(),
            seed=self.seed,
            fingerprint=self.fingerprint,
            key=self.key,
        )
        write_whole(Path(path), content.getvalue())

    @staticmethod
    def load(path: str | Path, train: Images) -> Split:
        """Read a saved split of ``train``. Raises ValueError for a damaged file, or one of other
        data.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                labeled, unlabeled = (
                    torch.from_numpy(file[k].astype(np.int64)) for k in ("labeled", "unlabeled")
                )
                found = Split(labeled, unlabeled, int(file["seed"]), str(file["fingerprint"]))
                sound = found.key == str(file["key"])
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path} does not exist: make the split with data_split.ipynb or split()."
            ) from None
        except Exception as error:  # NumPy and zipfile raise a dozen kinds for altered bytes
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{path} is not a split, or is damaged ({reason}): make it again with split()."
            ) from error
        if not sound:
            raise ValueError(
                f"{path} is damaged (its checksum does not fit): make it again with split()."
            )
        found.check(train)
        return found


def split(train: Images, labeled: int | float = 5000, seed: int = 0) -> Split:
    """Draw ``labeled`` images (a count, or a fraction as a float) as the labelled part; the rest is
    unlabelled.

    Stratified: every class has its share of the labelled part, and at least one image. Nested: the
    5,000 of a seed are contained in its 6,000. Images without a label are always unlabelled. seed:
    0 to 2**32 - 1. Raises ValueError where it cannot be done.
    """
    check_seed(seed)
    order = torch.cat(
        [_stratified_order(train.labels, seed), (train.labels < 0).nonzero().flatten()]
    )
    return Split(order, order[:0], seed, train.fingerprint)._resized(train, labeled)


def _stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Indices of labelled images, of which every prefix is stratified (Webster's apportionment).

    The r-th image of a class of n, in random order, has rank (r + 1/2) / n; the first of each class
    comes before all.
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
    """Take a stratified ``fraction`` of the labelled images away as a test set, always the same:
    (remaining, test).
    """
    parts = held_out(train.labels, train.classes, train.title, fraction)
    return tuple(Images(train.images[i], train.labels[i], train.classes, train.name) for i in parts)  # type: ignore[return-value]


def held_out(
    labels: Tensor, classes: Sequence[str], title: str, fraction: float
) -> tuple[Tensor, Tensor]:
    """Indices, int64, of what :func:`hold_out` leaves and takes away; those without a label are at
    the end of the first.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"test_fraction={fraction} is not between 0 and 1.")
    order = _stratified_order(labels, seed=0)
    count = max(len(classes), math.floor(fraction * len(order) + 0.5))
    test, rest = order[:count].sort().values, order[count:].sort().values
    if len(gone := (torch.bincount(labels[rest], minlength=len(classes)) == 0).nonzero()):
        raise ValueError(
            f"{title}: a test set of {count} images would take every one of class "
            f"{classes[int(gone[0])]}: add some to it, or put a test set into test/<class>/."
        )
    return torch.cat([rest, (labels < 0).nonzero().flatten()]), test
