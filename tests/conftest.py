import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from noisy_student.data import Images


@pytest.fixture
def tiny() -> tuple[Images, Images]:
    """60 training and 20 test images of 16x16 in two classes that a mean tells apart."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Images:
        labels = torch.arange(count) % 2
        noise = torch.randint(0, 100, (count, 3, 16, 16), generator=generator)
        return Images(
            (noise + 150 * labels.view(-1, 1, 1, 1)).to(torch.uint8),
            labels,
            ("dark", "light"),
            "tiny",
        )

    return part(60), part(20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of images: two classes, three test images each, PNG of 20x24."""
    rng = np.random.default_rng(0)
    for part, count in {"train": 6, "test": 3}.items():
        for c, name in enumerate(("cat", "dog")):
            path = tmp_path / "photos" / part / name
            path.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (24, 20, 3), dtype=np.uint8) + np.uint8(120 * c)
                Image.fromarray(pixels).save(path / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def evil(tmp_path: Path) -> Iterator[bytes]:
    """A pickle that leaves a file when it is loaded; fails the test that has loaded it."""

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "pwned",)

    content = pickle.dumps(Evil())
    pickle.loads(content)
    (tmp_path / "pwned").unlink()
    yield content
    assert not (tmp_path / "pwned").exists()
