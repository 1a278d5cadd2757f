"""The four small networks: two plain ones, two with residual branches. All end in pooling, dropout
and one linear layer.

Parameters with 10 classes: Convnet5 104,042, Convnet6 113,322, Resnet6 215,146, Resnet9 317,930.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .data import check_name


def conv_bn(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """A convolution that keeps the size but for the stride; the batch norm has the bias."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def conv_bn_relu(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return conv_bn(inputs, outputs, stride).append(nn.ReLU(inplace=True))


class Residual(nn.Module):
    """relu(shortcut(x) + branch(x)); in training the branch is skipped at rate ``drop``."""

    def __init__(self, shortcut: nn.Module, branch: nn.Module, drop: float) -> None:
        super().__init__()
        self.shortcut, self.branch, self.depth = shortcut, branch, nn.Identity()
        if drop:
            from torchvision.ops import StochasticDepth  # here: it takes 1.7 s to import

            self.depth = StochasticDepth(drop, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.shortcut(x) + self.depth(self.branch(x)))


def parallel_block(inputs: int, outputs: int, stride: int, drop: float) -> Residual:
    """Two 3x3 convolutions side by side, summed: Resnet6's block."""
    return Residual(conv_bn(inputs, outputs, stride), conv_bn(inputs, outputs, stride), drop)


def basic_block(inputs: int, outputs: int, stride: int, drop: float) -> Residual:
    """Two 3x3 convolutions beside a shortcut (He et al., 2016), 1x1 where the shape changes."""
    same = inputs == outputs and stride == 1
    shortcut = nn.Identity() if same else conv_bn(inputs, outputs, stride, kernel=1)
    branch = conv_bn_relu(inputs, outputs, stride).extend(conv_bn(outputs, outputs))
    return Residual(shortcut, branch, drop)


def plain_block(inputs: int, outputs: int, stride: int, drop: float) -> nn.Module:
    """One 3x3 convolution; without a shortcut there is nothing to skip."""
    return conv_bn_relu(inputs, outputs, stride)


# The strides of the stem's convolutions, of 32 channels each, and the block of which three follow.
MODELS: dict[str, tuple[tuple[int, ...], Callable[[int, int, int, float], nn.Module]]] = {
    "Convnet5": ((2,), plain_block),
    "Convnet6": ((1, 2), plain_block),
    "Resnet6": ((1, 2), parallel_block),
    "Resnet9": ((1, 2), basic_block),
}


def build(
    model_name: str, num_classes: int = 10, *, dropout: float = 0.5, stochastic_depth: float = 0.0
) -> nn.Module:
    """A freshly initialised model: float images N x 3 x H x W (H, W >= 16) -> logits N x
    num_classes.

    dropout: the probability before the linear layer. stochastic_depth: the probability that an
    image skips the last residual branch; it grows linearly from the first (Huang et al., 2016), and
    plain networks have none. Uses torch's global random state. Raises ValueError for an unknown
    name, a probability outside 0..1 or 1 itself, or a single class.
    """
    check_name("model", model_name, MODELS)
    for name, value in {"dropout": dropout, "stochastic_depth": stochastic_depth}.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value} is not a probability from 0 up to, not including, 1.")
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes}: a classifier needs two classes or more.")
    strides, block = MODELS[model_name]
    shapes = ((32, 32, 1), (32, 64, 2), (64, 128, 2))  # inputs, outputs and stride of each block
    blocks = [block(*shape, stochastic_depth * k / 3) for k, shape in enumerate(shapes, 1)]
    stem = [
        conv_bn_relu(inputs, 32, stride) for inputs, stride in zip((3, 32), strides, strict=False)
    ]
    model = nn.Sequential(
        *stem,
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(128, num_classes),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
