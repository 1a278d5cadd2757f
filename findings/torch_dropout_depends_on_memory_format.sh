#!/usr/bin/env bash
# torch drops other units, draws other noise and other first weights, from the same seed, where a
# tensor is channels last.
#
# Version: torch 2.13.0 (CPU; 2.15.0 does the same).
# Expected: channels_last is a promise about speed: same seed, same shape, same random numbers at
#   the same places.
# Seen: random numbers are dealt out in the order of memory, not of indices. With the same seed:
#     dropout:      the same decision for 52% of the units (chance: 50%)
#     rand_like:    the same numbers, at other places
#     kaiming_normal_: other weights for a layer that was channels last before
#   dropout2d, which draws one number a map, agrees.
# Why it matters: "we only turned on channels_last" changes every run that has dropout, so that
#   two runs of one seed no longer differ by the change alone: what looks like its effect may be
#   that of another seed. Compare over several.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" - <<'PYTHON'
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def both(
    draw: Callable[[Tensor], Tensor], shape: tuple[int, ...] = (2, 4, 5, 5)
) -> tuple[Tensor, Tensor]:
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        found.append(draw(torch.ones(shape).contiguous(memory_format=layout)).contiguous())
    return found[0], found[1]


plain, last = both(F.dropout)
agree = float(((plain == 0) == (last == 0)).float().mean())
print(f"dropout: the same decision for {agree:.0%} of the units")
assert 0.4 < agree < 0.6

plain, last = both(torch.rand_like)
print(
    "rand_like: same places",
    torch.equal(plain, last),
    "same numbers",
    torch.equal(plain.flatten().sort().values, last.flatten().sort().values),
)
assert not torch.equal(plain, last) and torch.equal(
    plain.flatten().sort().values, last.flatten().sort().values
)

plain, last = both(torch.nn.init.kaiming_normal_, (8, 4, 3, 3))
print("kaiming_normal_: same places", torch.equal(plain, last))
assert not torch.equal(plain, last)

assert torch.equal(*both(F.dropout2d))
PYTHON
