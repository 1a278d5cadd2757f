import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as T
from scipy import stats
from sklearn.datasets import load_sample_image
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from noisy_student.augment import (
    GEOMETRY,
    OPS,
    SIGNED,
    RandAugment,
    apply_op,
    chunk_size,
    flip_crop,
)

BLENDS = {"Color", "Contrast", "Brightness", "Sharpness"}


def pictures(height: int, width: int) -> torch.Tensor:
    """Noise, smooth images, one flat image, and crops of a photograph."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (4, 3, height, width), dtype=torch.uint8, generator=generator)
    smooth = F.interpolate(
        torch.rand(4, 3, 5, 5, generator=generator), (height, width), mode="bilinear"
    )
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    crops = torch.stack(
        [photo[:, 40 * i : 40 * i + height, 60 * i : 60 * i + width] for i in range(6)]
    )
    return torch.cat(
        [
            noise,
            (smooth * 255).to(torch.uint8),
            torch.full((1, 3, height, width), 77, dtype=torch.uint8),
            crops,
        ]
    )


def reference(name: str, images: torch.Tensor, m: float) -> torch.Tensor:
    """The same op by torchvision."""
    height, width = images.shape[2:]
    colour = {
        "Color": T.adjust_saturation,
        "Contrast": T.adjust_contrast,
        "Brightness": T.adjust_brightness,
        "Sharpness": T.adjust_sharpness,
    }
    affine = {
        "angle": 0.0,
        "translate": [0, 0],
        "scale": 1.0,
        "shear": [0.0, 0.0],
        "interpolation": InterpolationMode.NEAREST,
        "fill": 128,
    }
    degrees = math.degrees(math.atan(0.03 * m))
    if name in colour:
        return colour[name](images, 1 + 0.09 * m)
    if name == "Solarize":
        # torchvision refuses thresholds above 255
        return T.solarize(images, 256 - 25.6 * m) if m > 0.04 else images
    if name == "Rotate":
        return T.rotate(images, 3 * m, interpolation=InterpolationMode.NEAREST, fill=128)
    return {
        "Identity": lambda: images,
        "AutoContrast": lambda: T.autocontrast(images),
        "Equalize": lambda: T.equalize(images),
        "Posterize": lambda: T.posterize(images, round(8 - 0.4 * m)),
        "ShearX": lambda: T.affine(images, **affine | {"shear": [degrees, 0.0], "center": [0, 0]}),
        "ShearY": lambda: T.affine(images, **affine | {"shear": [0.0, degrees], "center": [0, 0]}),
        "TranslateX": lambda: T.affine(
            images, **affine | {"translate": [int(m * 15 / 331 * width), 0]}
        ),
        "TranslateY": lambda: T.affine(
            images, **affine | {"translate": [0, int(m * 15 / 331 * height)]}
        ),
    }[name]()


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (33, 48)])
@pytest.mark.parametrize("name", OPS)
def test_op_agrees_with_torchvision(name: str, size: tuple[int, int]) -> None:
    images = pictures(*size)
    before = images.clone()
    magnitudes = np.random.default_rng(0).uniform(-10 if name in SIGNED else 0, 10, 25)
    for m in [0, 10, *magnitudes]:
        ours, theirs = apply_op(images, name, float(m)), reference(name, images, float(m))
        difference = (ours.int() - theirs.int()).abs()
        if name in BLENDS:
            assert difference.max() <= 1, m
        # exact; in a warp, a pixel whose source lies half-way between two may round either way
        else:
            assert (difference > 0).float().mean() <= (1e-3 if name in GEOMETRY else 0), m
    assert torch.equal(images, before)


def test_ops_without_direction_ignore_the_sign() -> None:
    images = pictures(32, 32)
    for name in set(OPS) - SIGNED:
        assert torch.equal(apply_op(images, name, -7), apply_op(images, name, 7)), name


def test_magnitude_is_per_image() -> None:
    images = pictures(32, 32)
    m = torch.linspace(0, 10, len(images))
    for name in OPS:
        one_by_one = torch.cat(
            [apply_op(images[i : i + 1], name, float(m[i])) for i in range(len(images))]
        )
        assert torch.equal(apply_op(images, name, m), one_by_one), name


@pytest.mark.parametrize("n", [1, 3])
def test_randaugment_draws_ops_uniformly(n: int) -> None:
    """On flat grey, the share of images that an op leaves alone is known from torchvision, and so
    that of n drawn from all 14.
    """
    flat = torch.full((8000, 3, 16, 16), 128, dtype=torch.uint8)
    out = RandAugment(n, 10)(flat, torch.Generator().manual_seed(0))
    unchanged = int((out == 128).flatten(1).all(1).sum())
    magnitudes = np.arange(0.05, 10, 0.1)
    shares = []
    for name in OPS:
        signs = (-1, 1) if name in SIGNED else (1,)
        shares.append(
            np.mean(
                [
                    torch.equal(reference(name, flat[:1], s * m), flat[:1])
                    for m in magnitudes
                    for s in signs
                ]
            )
        )
    assert stats.binomtest(unchanged, 8000, float(np.mean(shares)) ** n).pvalue > 1e-3


def test_magnitudes_are_uniform_up_to_m_either_way() -> None:
    """As TranslateX shows them: its shift of up to 15 m pixels, of an image 331 wide, is that of a
    white column in black.
    """
    image = torch.zeros(6000, 3, 1, 331, dtype=torch.uint8)
    image[..., 165] = 255

    class Shift(RandAugment):
        inert = frozenset(OPS) - {"TranslateX"}

    out = Shift(1, 6)(image, torch.Generator().manual_seed(0))
    shifts = 165 - (out[:, 0, 0] == 255).float().argmax(1)
    assert stats.binomtest(int((shifts != 0).sum()), 6000, 1 / len(OPS)).pvalue > 1e-3
    assert stats.kstest(shifts[shifts != 0], stats.uniform(-90, 180).cdf).pvalue > 1e-3


def test_randaugment_is_decided_by_the_generator() -> None:
    images = pictures(32, 32)
    a, b, c = (RandAugment(3, 9)(images, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(RandAugment(0, 9)(images), images)
    assert a.shape == images.shape and a.dtype == torch.uint8


@pytest.mark.parametrize(("n", "m"), [(-1, 5), (15, 5), (2, -1), (2, 10.1), (1.5, 5)])
def test_randaugment_out_of_range(n: float, m: float) -> None:
    with pytest.raises(ValueError, match="is not a"):
        RandAugment(n, m)  # type: ignore[arg-type]


def test_bad_images_and_names() -> None:
    with pytest.raises(TypeError, match="not uint8"):
        RandAugment(1, 1)(torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="N x 3 x H x W"):
        RandAugment(1, 1)(torch.zeros(2, 16, 16, 3, dtype=torch.uint8))
    with pytest.raises(TypeError, match="not uint8"):
        apply_op(torch.zeros(2, 3, 16, 16), "Brightness", 1)
    with pytest.raises(TypeError, match="are a ndarray, not a torch tensor"):
        RandAugment(1, 1)(np.zeros((2, 3, 16, 16), np.uint8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="did you mean Equalize"):
        apply_op(pictures(16, 16), "equalise", 1)


def test_flip_crop_takes_a_window_of_the_reflected_image() -> None:
    images = pictures(20, 24)
    out = flip_crop(images, True, 3, torch.Generator().manual_seed(0)).numpy()
    mirrored = 0
    for image, result in zip(images.numpy(), out, strict=True):
        padded = np.pad(image, ((0, 0), (3, 3), (3, 3)), mode="reflect")
        windows = [padded[:, y : y + 20, x : x + 24] for y in range(7) for x in range(7)]
        plain = any(np.array_equal(result, w) for w in windows)
        flipped = any(np.array_equal(result, w[:, :, ::-1]) for w in windows)
        assert plain or flipped
        mirrored += flipped and not plain
    assert mirrored > 0
    assert torch.equal(flip_crop(images, False, 0), images)


def test_crops_are_uniform() -> None:
    """Where the middle pixel comes from, of 4,000 copies of an image whose pixels are numbered."""
    image = torch.arange(256).to(torch.uint8).view(1, 1, 16, 16).expand(4000, 3, 16, 16)
    middle = flip_crop(image, False, 2, torch.Generator().manual_seed(0))[:, 0, 8, 8].int()
    row, column = middle // 16 - 6, middle % 16 - 6
    assert row.min() == column.min() == 0 and row.max() == column.max() == 4
    assert stats.chisquare(torch.bincount(5 * row + column, minlength=25)).pvalue > 1e-3


def test_flip_is_a_fair_coin() -> None:
    image = torch.arange(16, dtype=torch.uint8).expand(4000, 3, 16, 16)
    flipped = int(
        (flip_crop(image, True, 0, torch.Generator().manual_seed(0))[:, 0, 0, 0] == 15).sum()
    )
    assert stats.binomtest(flipped, 4000, 0.5).pvalue > 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_no_wait_for_the_device() -> None:
    images = pictures(32, 32).cuda()
    RandAugment(5, 10)(images)
    torch.cuda.set_sync_debug_mode("error")
    try:
        flip_crop(RandAugment(5, 10)(images), True, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("device", "side", "count"),
    [
        ("meta", 8, 16384),
        ("meta", 32, 16384),
        ("meta", 64, 4096),
        ("meta", 224, 334),
        ("meta", 5000, 1),
        ("cpu", 8, 1024),
        ("cpu", 32, 1024),
        ("cpu", 128, 64),
    ],
)
def test_larger_images_are_augmented_in_smaller_chunks(device: str, side: int, count: int) -> None:
    """So that memory does not grow with them."""
    assert chunk_size(torch.empty(1, 3, side, side, dtype=torch.uint8, device=device)) == count


@pytest.mark.parametrize("name", OPS)
def test_directions_and_magnitude_10_are_those_of_torchvisions_randaugment(name: str) -> None:
    images, theirs = pictures(32, 32), v2.RandAugment()
    top, signed = v2.RandAugment._AUGMENTATION_SPACE[name]
    assert (name in SIGNED) == signed
    for sign in (1, -1) if signed else (1,):
        level = sign * float(top(31, 32, 32)[-1]) if top(31, 32, 32) is not None else 0.0
        wanted = theirs._apply_image_or_video_transform(
            images, name, level, InterpolationMode.NEAREST, {torch.Tensor: [128.0] * 3}
        )
        difference = (apply_op(images, name, sign * 10).int() - wanted.int()).abs()
        assert (
            difference.max() <= 1
            if name in BLENDS
            else (difference > 0).float().mean() <= (1e-3 if name in GEOMETRY else 0)
        )
