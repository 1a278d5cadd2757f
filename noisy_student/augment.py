"""RandAugment (Cubuk et al., 2020) on batches of uint8 images, and the random flip and crop.

Each of the 14 ops takes images (uint8, N x 3 x H x W) and one float magnitude per image, 0 to 10,
and returns new uint8 images on the same device (Identity: the same ones). They agree with
``torchvision.transforms.v2.functional``: to the bit where the arithmetic is integer, within 1 of
255 elsewhere, with nearest-neighbour interpolation and grey fill. What magnitude 10 means is the
top bin of torchvision's RandAugment.

Nothing here loops over images or waits for the device: which op an image gets is drawn on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import check_name

FILL = 128  # grey, as in the Noisy Student code; black borders would be a cue of their own
Op = Callable[[Tensor, Tensor], Tensor]


def chunk_size(images: Tensor) -> int:
    """How many of ``images`` to augment at once: of 32 x 32 pixels 1,024 on a CPU, which stay in
    its cache, and elsewhere 16,384, which keep a GPU busy. Of larger ones as many as have no more
    pixels than these: 16,384 of 224 x 224 would need 6.6 GB for the index of ``flip_crop`` alone.
    """
    most, (height, width) = 1024 if images.device.type == "cpu" else 16384, images.shape[2:]
    return min(most, max(1, most * 32 * 32 // (height * width)))


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """A copy that a CUDA GPU is not waited for; on Apple's the host might free ``drawn`` before it
    is read (pytorch issue 189690).
    """
    return drawn.to(device, non_blocking=device.type == "cuda")


# ------------------------------------------------------------------ colour: blends and value tables


def _blend(pixels: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor * pixels + (1 - factor) * other, clamped and truncated to uint8; factor is N x 1 x 1 x
    1.
    """
    return torch.addcmul(other * (1 - factor), pixels, factor).clamp_(0, 255).to(torch.uint8)


def _grey(pixels: Tensor) -> Tensor:
    """ITU-R 601 luma, rounded down: float, N x 1 x H x W."""
    red, green, blue = pixels.unbind(1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_().unsqueeze(1)


def brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Factor 1 + 0.09 * magnitude; negative magnitudes darken."""
    return images.float().mul_(_column(1 + 0.09 * magnitude)).clamp_(0, 255).to(torch.uint8)


def color(images: Tensor, magnitude: Tensor) -> Tensor:
    """Saturation by 1 + 0.09 * magnitude."""
    pixels = images.float()
    return _blend(pixels, _grey(pixels), _column(1 + 0.09 * magnitude))


def contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Distance from the mean grey by 1 + 0.09 * magnitude."""
    pixels = images.float()
    return _blend(
        pixels, _grey(pixels).mean((1, 2, 3), keepdim=True), _column(1 + 0.09 * magnitude)
    )


def sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with a 3x3 smoothing (5 amid 1, over 13) by 1 + 0.09 * magnitude; the border stays."""
    pixels = images.float()
    rows = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = pixels[..., 1:-1, 1:-1]
    smooth = box.add_(inner, alpha=4).div_(13).round_()
    out = images.clone()
    out[..., 1:-1, 1:-1] = (
        torch.addcmul(inner, smooth.sub_(inner), _column(-0.09 * magnitude))
        .clamp_(0, 255)
        .to(torch.uint8)
    )
    return out


def posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Keep the highest 8 - 0.4 * magnitude bits, rounded: 8 at 0, 4 at 10."""
    dropped = (0.4 * magnitude).round().to(torch.int32)
    return images & _column(-(2**dropped) & 255).to(torch.uint8)


def solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Invert the values at or above 256 - 25.6 * magnitude: none at 0, all at 10."""
    threshold = torch.ceil(256 - 25.6 * magnitude).clamp_(0, 256)
    # Comparing two full uint8 tensors, and inverting by xor, is 4.5 times faster than
    # broadcasting and torch.where.
    full = _column(threshold.clamp(max=255).to(torch.uint8)).expand_as(images).contiguous()
    inverted = (images >= full).view(torch.uint8) * _column((threshold < 256).to(torch.uint8) * 255)
    return images ^ inverted


def auto_contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a channel of one value stays."""
    low, high = (
        f(images, (2, 3)).view(*images.shape[:2], 1, 1).float() for f in (torch.amin, torch.amax)
    )
    flat = low == high
    scale = torch.where(flat, 1.0, (high - low) * (1 / 255))
    return (
        images.float().sub_(torch.where(flat, 0.0, low)).div_(scale).clamp_(0, 255).to(torch.uint8)
    )


def _bincount(values: Tensor, length: int) -> Tensor:
    """How often each of 0..length-1 occurs; on a GPU torch.bincount would wait for the device."""
    if values.device.type == "cpu":
        return torch.bincount(values, minlength=length)
    ones = torch.ones(1, dtype=torch.int64, device=values.device).expand(len(values))
    return torch.zeros(length, dtype=torch.int64, device=values.device).scatter_add_(
        0, values.long(), ones
    )


def equalize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Flatten each channel's histogram, by a table of 256 values a channel (PIL's integer rule)."""
    rows = images.flatten(2).flatten(0, 1)  # one row per image and channel
    count, pixels = rows.shape
    index = (
        rows.int()
        .add_(torch.arange(0, count * 256, 256, device=rows.device, dtype=torch.int32).unsqueeze(1))
        .view(-1)
    )
    # exact, and divides faster than integers
    histogram = _bincount(index, count * 256).view(count, 256).float()
    last = histogram.gather(1, rows.amax(1, keepdim=True).long())
    step = ((pixels - last) / 255).floor_()
    before = histogram.cumsum(1).sub_(histogram)
    table = before.add_((step / 2).floor_()).div_(step.clamp(min=1)).floor_().clamp_(0, 255)
    table = torch.where(step == 0, torch.arange(256.0, device=rows.device), table).to(torch.uint8)
    return table.view(-1).index_select(0, index).view_as(images)


# ------------------------------------------------------------------------------- geometry: one warp


def _warp(images: Tensor, theta: Tensor) -> Tensor:
    """Nearest-neighbour affine warp with grey fill.

    theta: float, N x 2 x 3, maps an output pixel's (x, y, 1), in pixels from the centre, to the
    input's (x, y).
    """
    count, channels, height, width = images.shape
    x = torch.arange(width, device=images.device, dtype=torch.float32) - (width - 1) / 2
    y = (
        torch.arange(height, device=images.device, dtype=torch.float32) - (height - 1) / 2
    ).unsqueeze(1)
    a = theta.view(count, 6, 1, 1)
    source_x = (x * a[:, 0]).add(y * a[:, 1]).add_(a[:, 2] + (width - 1) / 2).round_()
    source_y = (x * a[:, 3]).add(y * a[:, 4]).add_(a[:, 5] + (height - 1) / 2).round_()
    # Whatever lies outside comes from a border of grey: half the time of masking it.
    bordered = F.pad(images, (1, 1, 1, 1), value=FILL).flatten(2)
    index = (
        source_y.clamp_(-1, height).add_(1).mul_(width + 2).add_(source_x.clamp_(-1, width)).add_(1)
    )
    index = index.int().long().view(count, 1, -1).expand(-1, channels, -1)
    return bordered.gather(2, index).view_as(images)


GEOMETRY = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


def _theta(op: Tensor, magnitude: Tensor, height: int, width: int) -> Tensor:
    """The maps of geometric ops for :func:`_warp`, N x 2 x 3. op: int64, N, each image's place in
    GEOMETRY.

    A unit of magnitude is 3 degrees, anticlockwise; or a shear of 0.03, about the top left corner
    as torchvision's RandAugment does; or 15/331 of the width or height, in whole pixels, rounded
    towards zero.
    """
    # 0 but for an image's own op
    angle, shear_x, shear_y, x, y = (magnitude * F.one_hot(op, len(GEOMETRY)).T).unbind()
    angle, shear_x, shear_y = angle * (3 * math.pi / 180), 0.03 * shear_x, 0.03 * shear_y
    x, y = (x * (15 / 331 * width)).trunc(), (y * (15 / 331 * height)).trunc()
    cos, sin = angle.cos(), angle.sin()
    rows = (
        cos,
        shear_x - sin,
        shear_x * (height / 2) - x,
        sin + shear_y,
        cos,
        shear_y * (width / 2) - y,
    )
    return torch.stack(rows, 1).view(-1, 2, 3)


COLOUR: dict[str, Op] = {
    "Identity": lambda images, magnitude: images,
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Solarize": solarize,
    "Color": color,
    "Posterize": posterize,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
}
SIGNED = {*GEOMETRY, "Color", "Contrast", "Brightness", "Sharpness"}
OPS = [*COLOUR, *GEOMETRY]
_HAS_SIGN = torch.tensor([name in SIGNED for name in OPS])


def apply_op(images: Tensor, name: str, magnitude: float | Tensor) -> Tensor:
    """One named op on uint8 images, N x 3 x H x W; magnitude: 0 to 10, negative for the other
    direction where there is one.
    """
    check_images(images)
    check_name("op", name, OPS)
    magnitude = (
        torch.as_tensor(magnitude, dtype=torch.float32).expand(len(images)).to(images.device)
    )
    if name in COLOUR:
        return COLOUR[name](images, magnitude if name in SIGNED else magnitude.abs())
    op = torch.full((len(images),), GEOMETRY.index(name), device=images.device)
    return _warp(images, _theta(op, magnitude, *images.shape[2:]))


# ----------------------------------------------------------------------------------- random choices


class RandAugment:
    """For each image n ops, drawn uniformly with replacement, each with a magnitude uniform in 0..m
    and a random sign.

    n: 0 to 14 ops. m: 0 to 10, the bound of the magnitudes. Calling it on uint8 images (N x 3 x H x
    W) returns new images of the same shape on the same device; with n=0 those that it was given.
    ``generator`` is a CPU generator; without one, torch's own is used. Source: Cubuk et al. 2020,
    with the uniform magnitudes that torchvision's ``RandAugment`` leaves out.
    """

    inert: frozenset[str] = frozenset({"Identity"})  # ops that, when drawn, do nothing

    def __init__(self, n: int, m: float) -> None:
        if not isinstance(n, int) or not 0 <= n <= 14:
            raise ValueError(f"n={n} is not a whole number of ops from 0 to 14.")
        if not 0 <= m <= 10:
            raise ValueError(f"m={m} is not a magnitude from 0 to 10.")
        self.n, self.m = n, m
        self.active = torch.tensor([name not in self.inert for name in OPS])

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        check_images(images)
        out = images
        for _ in range(self.n):
            out = self._round(out, generator)
        return out

    def _round(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """One op for each image: sorted by op, a slice each; the geometric ones share a warp."""
        count, (height, width), device = len(images), images.shape[2:], images.device
        drawn = torch.randint(len(OPS), (count,), generator=generator)
        magnitude = torch.rand(count, generator=generator) * self.m
        signed = torch.where(torch.rand(count, generator=generator) < 0.5, -magnitude, magnitude)
        order = drawn.argsort(stable=True)
        level = (torch.where(_HAS_SIGN[drawn], signed, magnitude) * self.active[drawn])[order]
        sizes = torch.bincount(drawn, minlength=len(OPS)).tolist()
        first = sum(sizes[: len(COLOUR)])  # of the geometric ones
        theta = _theta(drawn[order][first:] - len(COLOUR), level[first:], height, width)
        # Three copies to the device in all; an image moves by its rows, not pixel by pixel.
        order, level, theta = (_to_device(t, device) for t in (order, level, theta))
        arranged = images.index_select(0, order)
        slices = zip(COLOUR.items(), arranged.split(sizes), level.split(sizes), strict=False)
        parts = [
            part if name in self.inert else op(part, own)
            for (name, op), part, own in slices
            if len(part)
        ]
        if len(theta):
            parts.append(_warp(arranged[first:], theta))
        return torch.cat(parts).index_select(0, order.argsort())


def flip_crop(
    images: Tensor, flip: bool, crop: int, generator: torch.Generator | None = None
) -> Tensor:
    """Mirror half of the images, and shift each by up to ``crop`` pixels each way, its border
    reflected.
    """
    check_crop(crop, images)
    count, channels, height, width = images.shape
    shift = torch.randint(2 * crop + 1, (2, count, 1), generator=generator) - crop
    mirror = ((torch.rand(count, 1, generator=generator) < 0.5) & flip).to(torch.int64)
    shift, mirror = (_to_device(drawn, images.device) for drawn in (shift, mirror))
    # Each output row and column names the input's it comes from; |.| reflects at 0 and at the end.
    row = torch.arange(height, device=images.device) + shift[0]
    column = torch.arange(width, device=images.device) + shift[1]
    row, column = (
        size - 1 - (size - 1 - index.abs()).abs()
        for index, size in ((row, height), (column, width))
    )
    column = column + mirror * (column.flip(1) - column)
    index = (row.unsqueeze(2) * width + column.unsqueeze(1)).view(count, 1, -1)
    return images.flatten(2).gather(2, index.expand(-1, channels, -1)).view_as(images)


def check_crop(crop: int, images: Tensor, where: str = "") -> None:
    """Raise ValueError unless ``images``, which are checked too, can be shifted by ``crop`` pixels
    and reflected.
    """
    check_images(images)
    height, width = images.shape[2:]
    if not 0 <= crop < min(height, width):
        raise ValueError(
            f"{where}crop={crop} is not a number of pixels from 0 to {min(height, width) - 1}, "
            f"which images of {height}x{width} allow: change recipe.crop."
        )


def check_images(images: Tensor) -> None:
    """Raise TypeError or ValueError unless ``images`` are uint8, N x 3 x H x W."""
    if not isinstance(images, Tensor):
        raise TypeError(
            f"images are a {type(images).__name__}, not a torch tensor: "
            "torch.from_numpy makes one of an array."
        )
    if images.dtype != torch.uint8:
        raise TypeError(f"images are {images.dtype}, not uint8 with values from 0 to 255.")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}, not N x 3 x H x W.")
