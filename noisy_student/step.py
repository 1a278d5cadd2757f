"""One optimizer step, as fast as the device allows."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .recipes import Recipe

Step = Callable[[Tensor, Tensor, float | Tensor], tuple[Tensor, Tensor]]
# graph, its inputs, its outputs
Recorded = tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], tuple[Tensor, Tensor]]


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bf16: with "auto" on recent GPUs, and on CPUs with AVX512-BF16 or AMX.

    Not faster everywhere: of two machines with two cores, AVX512-BF16 and no AMX, bf16 made
    Resnet9's step 1.4 to 1.9 times as fast as fp32 on one, and 0.8 times on the other.
    """
    if precision == "auto":
        if device.type == "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        return device.type == "cpu" and (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    return precision == "bf16"


def sgd(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD with Nesterov momentum, fused into one pass over the weights where there is that."""
    fused = next(model.parameters()).device.type != "mps"
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
        fused=fused,
    )


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe) -> Step:
    """One optimizer step as a function: (float images, target probabilities, learning rate) ->
    (loss, right predictions).
    """
    device = next(model.parameters()).device
    bf16 = uses_bf16(recipe.precision, device)

    def step(x: Tensor, y: Tensor, lr: float | Tensor) -> tuple[Tensor, Tensor]:
        optimizer.param_groups[0]["lr"] = lr
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach(), (logits.detach().argmax(1) == y.argmax(1)).sum()

    return step


def keep_freed_memory() -> None:
    """Have the C library keep what a step frees for the next one, in the whole process (glibc;
    elsewhere nothing is done).

    By default large blocks go back to the system, which hands them out again page by page, zeroed.
    Without that Resnet9 trains 1.2 times as fast in batches of 128 and 1.3 times in batches of 512,
    to the same bits, with up to 9% more memory at the peak (docs/speed.md). What other threads than
    the main one free, glibc keeps only in part.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    # musl has none
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(trim_threshold, -1)  # never
        mallopt(mmap_max, 0)


def make_step(model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe) -> Step:
    """The fastest step for the model's device: on CUDA a replayed graph, elsewhere
    :func:`plain_step` itself.

    To be called with batches of one size; what it returns is overwritten by the next call.
    """
    step, kind = plain_step(model, optimizer, recipe), next(model.parameters()).device.type
    if kind == "cpu":
        keep_freed_memory()
    return _replayed(step, model, optimizer) if kind == "cuda" else step


def _replayed(step: Step, model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """``step`` as a CUDA graph: one launch for hundreds, which take longer than the work itself."""
    graphs: dict[bool, Recorded] = {}

    def record(x: Tensor, y: Tensor) -> Recorded:  # with the device of x as the current one
        inputs = (x.clone(), y.clone(), torch.zeros((), device=x.device))
        # The calls that warm up change batch norm's averages and the momentum: both are put back.
        momenta = {
            p: s["momentum_buffer"].clone()
            for p, s in optimizer.state.items()
            if s.get("momentum_buffer") is not None
        }
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            outputs = step(*inputs)
        model.load_state_dict(kept)
        for parameter, state in optimizer.state.items():
            if (buffer := state.get("momentum_buffer")) is not None:
                buffer.copy_(momenta[parameter]) if parameter in momenta else buffer.zero_()
        return graph, inputs, outputs

    def replay(x: Tensor, y: Tensor, lr: float | Tensor) -> tuple[Tensor, Tensor]:
        mode = model.training
        if mode not in graphs:
            with torch.cuda.device(x.device):
                graphs[mode] = record(x, y)
        graph, inputs, outputs = graphs[mode]
        inputs[0].copy_(x)
        inputs[1].copy_(y)
        inputs[2].fill_(float(lr))
        graph.replay()
        return outputs

    return replay
