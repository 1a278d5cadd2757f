"""Pictures that are there twice, in both sets or in two classes: equal ones, and nearly equal."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MOST_BITS, MOST_LEVELS = 4, 10.0  # apart: of 64 of the hash, and of 255 grey levels on average


def digests(images: Tensor) -> list[bytes]:
    """A hash of each picture's pixels. images: uint8, N x 3 x H x W."""
    return [hashlib.blake2b(image, digest_size=16).digest() for image in images.numpy()]


def difference_hashes(images: Tensor) -> Tensor:
    """N x 64 of 1 and -1: whether each of 8 x 8 places is brighter than its left neighbour (dHash,
    N. Krawetz, 2013).

    As imagehash.dhash(picture, 8). images: uint8, N x 3 x H x W.
    """

    def one(image: Tensor) -> np.ndarray:
        grey = (
            Image.fromarray(image.permute(1, 2, 0).numpy())
            .convert("L")
            .resize((9, 8), Image.Resampling.LANCZOS)
        )
        return np.diff(np.asarray(grey).astype(np.int16)).ravel() > 0

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return torch.from_numpy(np.stack(list(pool.map(one, images)))).float() * 2 - 1


def near_doubles(images: Tensor, train: Tensor, test: Tensor) -> list[tuple[int, int]]:
    """(index of a test picture, index of the training picture most like it) where the two are
    nearly equal: recompressed, or a shade brighter, not moved or turned. train, test: int64 indices
    into ``images``, uint8, N x 3 x H x W.
    """
    hashes, found = difference_hashes(images), list[tuple[int, int]]()
    for some in test.split(256):
        alike, at = (hashes[some] @ hashes[train].T).max(1)  # 64 less twice the bits apart
        for i, j in zip(
            some[alike >= 64 - 2 * MOST_BITS].tolist(),
            train[at[alike >= 64 - 2 * MOST_BITS]].tolist(),
            strict=True,
        ):
            if (images[i].int() - images[j].int()).abs().float().mean() <= MOST_LEVELS:
                found.append((i, j))
    return found
