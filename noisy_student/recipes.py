"""How a model is trained: Recipe, and four named ones, each for labels alone and for students."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Self

import torch

from .augment import RandAugment
from .data import Images, check_name

SCHEDULES = ("triangular", "constant")
PRECISIONS = ("auto", "bf16", "fp32")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a model is trained, except the data and the seed. Noise included.

    Raises ValueError for a value out of range. ``replace`` makes a changed copy, with names
    checked.
    """

    epochs: int = 100  # passes over the training images
    min_steps: int = 0  # where ``epochs`` give fewer optimizer steps, so many passes as give these
    batch_size: int = 128  # images a step; fewer where there are fewer images
    lr: float = 0.1  # the schedule's highest learning rate
    schedule: str = "triangular"  # up over the first quarter, then down to 0; or constant
    momentum: float = 0.9  # Nesterov momentum of SGD
    weight_decay: float = 1e-3  # L2 penalty
    label_smoothing: float = 0.0  # share of each target spread evenly over the classes
    n: int = 2  # RandAugment: ops an image, 0 to 14; 0 turns it off
    m: float = 10.0  # RandAugment: bound of the magnitudes, 0 to 10
    flip: bool = True  # mirror half of the images
    crop: int = 4  # shift by up to so many pixels
    dropout: float = 0.5  # before the linear layer
    stochastic_depth: float = 0.0  # probability to skip the last residual branch
    ema: float = 0.0  # decay of the exponential average of the weights; 0 turns it off
    precision: str = "auto"  # bf16 where the device computes in it, else fp32

    def __post_init__(self) -> None:
        check_fields(self, _RANGES, "recipe: ")
        check_name("schedule", self.schedule, SCHEDULES)
        check_name("precision", self.precision, PRECISIONS)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed. Raises ValueError for an unknown name."""
        names = [field.name for field in fields(self)]
        for name in changes:
            check_name("recipe parameter", name, names)
        return replace(self, **changes)

    def lr_at(self, progress: float) -> float:
        """The learning rate of the step in whose middle ``progress``, 0 to 1, is reached.

        Triangular: slanted triangular learning rates (Howard and Ruder 2018, eq. 3) with a quarter
        of the way up.
        """
        if self.schedule == "constant":
            return self.lr
        return self.lr * min(progress / 0.25, (1 - progress) / 0.75)

    def epochs_for(self, images: int) -> int:
        """``epochs``, or more where these give ``images`` images fewer than ``min_steps``."""
        steps = max(1, images // self.batch_size)
        return max(self.epochs, math.ceil(self.min_steps / steps))

    def augmentation(self) -> RandAugment:
        """The RandAugment of this recipe."""
        return RandAugment(self.n, self.m)

    def is_noisy(self, epoch: int) -> bool:
        """Whether the model is in training mode in this epoch; a study of a fault may say no."""
        return True


_RANGES = {
    "epochs": (1, 100_000),
    "min_steps": (0, 10_000_000),
    "batch_size": (2, 100_000),
    "lr": (1e-9, 1e6),
    "momentum": (0, 0.9999),
    "weight_decay": (0, 1),
    "label_smoothing": (0, 0.99),
    "n": (0, 14),
    "m": (0, 10),
    "crop": (0, 512),
    "dropout": (0, 0.99),
    "stochastic_depth": (0, 0.99),
    "ema": (0, 0.99999),
}


def check_fields(value: Any, ranges: Mapping[str, tuple[float, float]], where: str = "") -> None:
    """Make a frozen dataclass's numbers plain ints and floats. ValueError for wrong values.

    1 and 1.0, or 0.0 and -0.0, are equal, but would give Runs of different keys; NumPy's numbers
    have none.
    """
    numbers: dict[str, Any] = {"int": Integral, "float": Real}
    for field in fields(value):
        name, found = field.name, getattr(value, field.name)
        kind = getattr(field.type, "__name__", field.type)  # a text, or the type itself
        low, high = ranges.get(name, (-math.inf, math.inf))
        if kind == "bool" and not isinstance(found, bool):
            raise ValueError(f"{where}{name}={found!r} is neither True nor False.")
        if wanted := numbers.get(str(kind)):
            if isinstance(found, bool) or not isinstance(found, wanted) or not low <= found <= high:
                span = f"from {low:,}" + ("" if high == math.inf else f" to {high:,}")
                point = (
                    ", without a point or an exponent"
                    if kind == "int" and isinstance(found, float)
                    else ""
                )
                raise ValueError(
                    f"{where}{name}={found!r} is not a {'whole ' if kind == 'int' else ''}number "
                    f"{span}{point}."
                )
            object.__setattr__(value, name, int(found) if kind == "int" else float(found) + 0.0)


# ------------------------------------------------------------------------------------ named recipes


@dataclass(frozen=True)
class Method:
    """A recipe for labels alone, one for students, and how these learn from teachers."""

    supervised: Recipe
    student: Recipe
    teachers: int = 3  # trainings of the first teacher, whose mean prediction labels the images
    threshold: float = 0.0
    flip_average: bool = True
    repeat_labels: int = 1

    def __post_init__(self) -> None:
        check_fields(self, {"teachers": (1, 1000), "threshold": (0, 1), "repeat_labels": (1, 1000)})

    def replace(self, **changes: Any) -> Method:
        """A copy with some values changed: fields of Method, "supervised.epochs", "student.n", or
        "recipe.n" for both recipes.

        Raises ValueError for an unknown name, with the nearest valid ones.
        """
        method = self
        for name, value in changes.items():
            part, dot, parameter = name.partition(".")
            if dot:
                # of Recipe.replace the parameter
                check_name("recipe", part, ("recipe", "supervised", "student"))
                parts = ("supervised", "student") if part == "recipe" else (part,)
                method = replace(
                    method, **{p: getattr(method, p).replace(**{parameter: value}) for p in parts}
                )
            else:
                check_name("hyper-parameter", name, [f.name for f in fields(self)])
                method = replace(method, **{name: value})
        return method


# short training wants little noise
_SHORT = Recipe(epochs=25, min_steps=1500, batch_size=64, n=1, m=5, dropout=0.2)
_LONG = Recipe(epochs=200, min_steps=6000, n=2, m=10, dropout=0.2)
_SMALL = Recipe(epochs=40, min_steps=2000, batch_size=20, n=1, m=5, dropout=0.2)
# Everywhere students see each label about as often as the models on labels alone (full: three
# quarters); docs/recipe.md says how these were found.
RECIPES = {
    # up to 5,000 images
    "small": Method(_SMALL, _SMALL.replace(epochs=8, min_steps=1000), repeat_labels=5),
    # minutes on a CPU
    "quick": Method(_SHORT, _SHORT.replace(epochs=9), threshold=0.8, repeat_labels=3),
    # hours on a CPU
    "long": Method(_LONG, _LONG.replace(epochs=30, weight_decay=5e-4), repeat_labels=6),
    "full": Method(
        _LONG,
        _LONG.replace(
            epochs=50, min_steps=2000, batch_size=512, lr=0.4, weight_decay=5e-4, n=1, m=5
        ),
        threshold=0.8,
        repeat_labels=3,
    ),  # a GPU
}


def named_recipe(name: str, train: Images, device: torch.device) -> Method:
    """One of RECIPES; "auto" takes "small" for up to 5,000 training images, else "full" on a CUDA
    GPU and "quick" elsewhere.

    Digits are not mirrored, by the images or by the teachers: a mirrored 2 is no 2. Raises
    ValueError for an unknown name.
    """
    check_name("recipe", name, ("auto", *RECIPES))
    if name == "auto":
        name = "small" if len(train) <= 5000 else "full" if device.type == "cuda" else "quick"
    method = RECIPES[name]
    if train.name in ("digits", "svhn"):
        method = method.replace(**{"recipe.flip": False, "recipe.crop": 2, "flip_average": False})
    return method
