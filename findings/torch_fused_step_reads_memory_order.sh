#!/usr/bin/env bash
# torch's fused optimizers, after a checkpoint, add the momentum of other weights where the model
# is channels last.
#
# Version: torch 2.13.0 (CPU; 2.15.0 does the same).
# Expected: memory layout is a matter of speed: a checkpoint may hold its tensors in any, and
#   fused=True gives the step that fused=False gives, or refuses.
# Seen: load_state_dict keeps the layout of the saved momentum. The fused step walks through
#   weight and momentum side by side in memory, without a look at their strides. Where one is
#   channels last and the other not, weights get one another's momentum, without a word. Largest
#   difference to a run that was not interrupted, after two more steps of weights around 1:
#     SGD  fused=False 0.0000   fused=True 1.0556
#     Adam fused=False 0.0000   fused=True 0.2654
# Why it matters: safetensors takes no channels-last tensors, so checkpoints are made contiguous;
#   and to(channels_last) after resuming does the same. The resumed training goes on with a worse
#   model, and looks sound. Give each loaded buffer its weight's layout:
#   torch.empty_like(weight).copy_(buffer).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" - <<'PYTHON'
from functools import partial

import torch

OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "Adam": partial(torch.optim.Adam, lr=0.1),
}


def trained(make: partial, fused: bool, saved: bool, mend: bool = False) -> torch.Tensor:
    """Channels-last weights after four steps; ``saved``: through a contiguous checkpoint."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.randn(8, 4, 3, 3, generator=generator).to(memory_format=torch.channels_last)

    weight = draw().requires_grad_()
    optimizer = make([weight], fused=fused)
    for step in range(4):
        weight.grad = draw()
        optimizer.step()
        if step == 1 and saved:
            checkpoint = optimizer.state_dict()
            checkpoint["state"][0] = {
                name: value.contiguous() for name, value in checkpoint["state"][0].items()
            }
            optimizer = make([weight], fused=fused)
            optimizer.load_state_dict(checkpoint)
            if mend:
                state = optimizer.state[weight]
                state.update(
                    {
                        name: torch.empty_like(weight).copy_(value)
                        for name, value in state.items()
                        if value.shape == weight.shape
                    }
                )
    return weight.detach()


for name, make in OPTIMIZERS.items():
    differ = {
        fused: float((trained(make, fused, True) - trained(make, fused, False)).abs().max())
        for fused in (False, True)
    }
    print(name, {f"fused={fused}": round(difference, 4) for fused, difference in differ.items()})
    assert differ[False] == 0 and differ[True] > 0.1
    assert torch.equal(trained(make, True, True, mend=True), trained(make, True, False))
PYTHON
