"""One training: the loop, and predictions without noise."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from .augment import check_images, chunk_size, flip_crop
from .data import check_name
from .randomness import check_seed, own_random_numbers
from .recipes import Recipe
from .step import Step, make_step, sgd, uses_bf16

History = list[dict[str, float]]
State = dict[str, Tensor]


# ------------------------------------------------------------------------------------------- device


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The named device, or the best there is: CUDA, Apple MPS, CPU.

    Raises ValueError where it is not to be had.
    """
    if name is None:
        has_mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
        check_name("device", device.type, ("cuda", "mps", "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {str(name)!r} cannot be used here ({str(error).splitlines()[0]}); try 'cpu'."
        ) from error
    return device


def device_title(device: torch.device) -> str:
    """The device in words, for tables and figures."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    # on a shared machine not all are ours
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{ours}-core CPU"


# --------------------------------------------------------------------------------------------- loop


def probabilities(targets: Tensor, classes: int) -> Tensor:
    """Targets as probabilities, float32, N x classes.

    Class indices become one-hot; probabilities are checked.
    """
    if targets.ndim == 1:
        if targets.is_floating_point():
            raise ValueError(
                "targets are a row of floats: class indices are whole numbers, probabilities N x "
                "classes."
            )
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
            raise ValueError(
                f"targets run from {int(targets.min())} to {int(targets.max())}, not within "
                f"0..{classes - 1}."
            )
        return F.one_hot(targets.long(), classes).float()
    sums = targets.float().sum(1)
    if (
        targets.shape[1:] != (classes,)
        or (targets < 0).any()
        or not torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    ):
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} are not probabilities over {classes} classes."
        )
    return targets.float()


def normalise(images: Tensor) -> Tensor:
    """uint8 to floats of about unit variance: (x - 127.5) / 64, for any data; channels last."""
    return images.contiguous(memory_format=torch.channels_last).float().sub_(127.5).div_(64)


def batches(
    images: Tensor, chosen: Tensor, targets: Tensor, recipe: Recipe, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled batches with input noise; what does not fill the last is left out.

    chosen: int64, the places in ``images`` of the images to train on; targets: one for each of
    them. As many batches are augmented at once as ``chunk_size`` images hold, and at least one:
    they share the cost of an op's launch.
    """
    augment = recipe.augmentation()
    size = min(recipe.batch_size, len(chosen))
    order = torch.randperm(len(chosen), generator=generator)[: len(chosen) // size * size].to(
        images.device
    )
    for part in order.split(max(1, chunk_size(images) // size) * size):
        noisy = augment(
            flip_crop(images.index_select(0, chosen[part]), recipe.flip, recipe.crop, generator),
            generator,
        )
        yield from zip(noisy.split(size), targets.index_select(0, part).split(size), strict=True)


def train(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    *,
    chosen: Tensor | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    title: str = "training",
    progress: bool = True,
    resume: tuple[State, History] | None = None,
    checkpoint: Callable[[Callable[[], State], History], None] | None = None,
) -> History:
    """Train ``model`` in place by SGD with Nesterov momentum.

    Returns one dict an epoch: epoch, loss, accuracy, lr, seconds. images: uint8, N x 3 x H x W.
    chosen: int64, the places of those to train on; by default all. (A copy of them in place of
    ``chosen`` would take up to as much memory again.) targets: class indices or probabilities (x
    classes), one for each of these. ``seed``, 0 to 2**32 - 1, decides order and noise; torch's
    random state, on the CPU and on a CUDA device, is left as it was, and a training in another
    thread waits for this one. On a CPU the C library keeps what is freed from then on
    (:func:`~noisy_student.step.keep_freed_memory`). After each epoch ``checkpoint`` is called with
    a function that copies the state of that moment, and with the history: all that ``resume`` needs
    to go on from there to the same weights (on a CPU to the bit). Raises ValueError for another
    seed, for an ``ema`` too slow for so few steps, and unless there is one target for each image;
    FloatingPointError when the loss is no longer finite.
    """
    check_images(images)
    check_seed(seed)
    device, mode = pick_device(device), model.training
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    classes = [m for m in model.modules() if isinstance(m, nn.Linear)][-1].out_features
    targets = probabilities(targets.cpu(), classes).to(device)
    chosen = (torch.arange(len(images)) if chosen is None else chosen).to(device)
    if not 0 < len(chosen) == len(targets):
        raise ValueError(
            f"{len(targets):,} targets for {len(chosen):,} images: "
            "train needs images, and a target for each."
        )
    size, epochs = min(recipe.batch_size, len(chosen)), recipe.epochs_for(len(chosen))
    steps = len(chosen) // size
    optimizer, average = sgd(model, recipe), _average(model, recipe.ema, steps * epochs, title)
    images, history = images.to(device), []
    if resume is not None:
        _restore(model, optimizer, average, resume[0])
        history = list(resume[1])
    step = make_step(model, optimizer, recipe)
    update = None if average is None else partial(average.update_parameters, model)
    bar = tqdm(
        range(len(history), epochs),
        title,
        epochs,
        initial=len(history),
        leave=False,
        disable=not progress,
        unit="epoch",
    )
    with own_random_numbers():
        for epoch in bar:
            model.train(recipe.is_noisy(epoch))
            # own seed an epoch: nothing to save
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            torch.manual_seed(seed * 1_000_003 + epoch)  # dropout and stochastic depth
            noisy = batches(images, chosen, targets, recipe, generator)
            # of a step's middle: never 0
            rates = [recipe.lr_at((epoch + (i + 0.5) / steps) / epochs) for i in range(steps)]
            found = _epoch(step, zip(noisy, rates, strict=True), update)
            if not math.isfinite(found["loss"]):
                raise FloatingPointError(
                    f"{title}: the loss is {found['loss']} in epoch {epoch + 1} at learning rate "
                    f"{found['lr']:.3g}: lower recipe.lr."
                )
            history.append({"epoch": epoch + 1} | found)
            bar.set_postfix(
                loss=f"{found['loss']:.3f}",
                accuracy=f"{found['accuracy']:.1f}%",
                images_per_s=f"{steps * size / found['seconds']:,.0f}",
            )
            if checkpoint is not None and epoch + 1 < epochs:
                checkpoint(partial(_state, model, optimizer, average), history)
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    model.train(mode)
    return history


def _epoch(
    step: Step,
    noisy: Iterable[tuple[tuple[Tensor, Tensor], float]],
    update: Callable[[], None] | None,
) -> dict[str, float]:
    """A step with each batch at its rate, ``update`` after it; a row of History but for epoch."""
    start, seen, total, correct = time.perf_counter(), 0, torch.tensor(0.0), torch.tensor(0.0)
    for (x, y), lr in noisy:
        loss, right = step(normalise(x), y, lr)
        if update is not None:
            update()
        total = total + loss * len(x)
        correct = correct + right
        seen += len(x)
    return {
        "loss": float(total) / seen,  # the epoch's one wait for the device
        "accuracy": 100 * float(correct) / seen,
        "lr": lr,
        "seconds": time.perf_counter() - start,
    }


def _average(model: nn.Module, ema: float, steps: int, title: str) -> AveragedModel | None:
    """The exponential average of the weights, None without ``ema``. Raises ValueError where the
    random initial weights would be more than 1% of it after ``steps``.
    """
    if ema**steps > 0.01:
        most = math.floor(1000 * 0.01 ** (1 / steps)) / 1000
        raise ValueError(
            f"{title}: ema={ema:g} averages over about the last {1 / (1 - ema):,.0f} steps of only "
            f"{steps:,}, random initial weights among them: lower recipe.ema to at most {most:g}."
        )
    if not ema:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True)


def _state(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel | None
) -> State:
    """Model, momentum and averaged weights as one flat dict of tensors on the CPU."""
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    # By parameter: the order of optimizer.state is that in which a former resume filled it.
    buffers = (
        optimizer.state[p].get("momentum_buffer") for p in optimizer.param_groups[0]["params"]
    )
    state |= {f"momentum.{i}": buffer for i, buffer in enumerate(buffers) if buffer is not None}
    state |= (
        {f"average.{k}": v for k, v in average.state_dict().items()} if average is not None else {}
    )
    return {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}


def _restore(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel | None, state: State
) -> None:
    def part(name: str) -> State:
        return {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}

    model.load_state_dict(part("model"))
    if average is not None:
        average.load_state_dict(part("average"))
    for index, buffer in part("momentum").items():
        parameter = optimizer.param_groups[0]["params"][int(index)]
        # The parameter's own memory format: the fused step walks both through memory side by side.
        optimizer.state[parameter]["momentum_buffer"] = (
            torch.empty_like(parameter).copy_(buffer).detach()
        )


# -------------------------------------------------------------------------------------- predictions


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Tensor,
    *,
    flip: bool = False,
    batch_size: int | None = None,
    precision: str = "fp32",
    device: str | torch.device | None = None,
) -> Tensor:
    """Class probabilities, float32, N x classes, on the CPU, without noise.

    flip: averages image and mirror. batch_size: None takes 64 on a CPU, and elsewhere as many as
    have a million pixels. Of batches of 500, 250, 100 and 64 the last were the fastest on a CPU's
    core, 1.7 times the first, with the same bits and 100 MB less. The model is left on ``device``,
    in the mode (train or eval) in which it was found. Raises ValueError for images of another size
    than a store's model learnt from, of which it gets fewer right, without a word;
    FloatingPointError for predictions that are not finite.
    """
    check_images(images)
    if (size := getattr(model, "image_size", None)) and size != [*images.shape[2:]]:
        wrong, right = (" x ".join(map(str, sides)) for sides in (images.shape[2:], size))
        raise ValueError(
            f"images of {wrong} for a model that learnt from images of {right}: give it such "
            "(size= of load, load_pictures)."
        )
    device, mode = pick_device(device), model.training
    model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    parts = []
    if batch_size is None:
        batch_size = (
            64 if device.type == "cpu" else max(1, 10**6 // (images.shape[2] * images.shape[3]))
        )
    for batch in images.split(batch_size):
        views = [batch, batch.flip(3)] if flip else [batch]
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(precision, device)):
            logits = [model(normalise(view.to(device))).float() for view in views]
        parts.append(torch.stack(logits).softmax(2).mean(0))
    model.train(mode)
    if not torch.isfinite(found := torch.cat(parts).cpu()).all():
        raise FloatingPointError(
            "the model's predictions are not finite: its training went astray; lower recipe.lr."
        )
    return found


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    flip: bool = False,
    device: str | torch.device | None = None,
) -> float:
    """Accuracy in percent, without noise. labels: class indices, one an image.

    Raises ValueError for other shapes, and for images without a label, -1.
    """
    if labels.shape != (len(images),) or not len(labels):
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} for {len(images):,} images: evaluate needs "
            "images, and a label for each."
        )
    if missing := int((labels < 0).sum()):
        raise ValueError(
            f"{missing:,} of {len(labels):,} images have no label: evaluate those that have one."
        )
    return (
        100
        * int((predict(model, images, flip=flip, device=device).argmax(1) == labels.cpu()).sum())
        / len(labels)
    )
