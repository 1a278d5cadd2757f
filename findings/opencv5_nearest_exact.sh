#!/usr/bin/env bash
# OpenCV's "bit exact" nearest-neighbour resize gives other pixels in 5.0 than in 4.13: only now
# those of Pillow.
#
# Versions: opencv-python-headless 4.13.0.92 and 5.0.0.93, Pillow 13.0.0, numpy 2.4.6.
# Expected: INTER_NEAREST_EXACT exists to give the same pixels everywhere (its documentation names
#   Pillow, scikit-image and Matlab), so that a new version of OpenCV changes none of them.
# Seen: of 9,384 pairs of sizes (2..69 to 1..138) 4.13 differs from Pillow in 1,854, and 5.0 in
#   none. Where it differs, whole columns are the other one of two neighbours that are equally
#   near. From 8 pixels to 12:
#     4.13.0: [0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 7]   1,854 of 9,384 differ from Pillow; 32 to 48: 5
#     5.0.0:  [0, 1, 1, 2, 2, 3, 4, 5, 5, 6, 7, 7]   0 of 9,384 differ from Pillow; 32 to 48: 0
# Why it matters: a data set prepared with one version and a model served with the other see
#   pictures, masks and label maps that are shifted by a pixel in places, for common sizes too (32
#   to 48). Prepare both with one version, or with Pillow.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" numpy==2.4.6 pillow==13.0.0

for opencv in 4.13.0.92 5.0.0.93; do
    "${pip[@]}" "opencv-python-headless==$opencv"
    "$folder/venv/bin/python" - <<'PYTHON'
import cv2
import numpy as np
from PIL import Image


def both(size: int, to: int) -> tuple[list[int], list[int]]:
    row = np.arange(size, dtype=np.uint8)[None].repeat(4, 0)
    pillow = Image.fromarray(row).resize((to, 4), Image.Resampling.NEAREST)
    return np.asarray(pillow)[0].tolist(), cv2.resize(
        row, (to, 4), interpolation=cv2.INTER_NEAREST_EXACT
    )[0].tolist()


pairs = [(size, to) for size in range(2, 70) for to in range(1, 139)]
differ = sum(pillow != opencv for pillow, opencv in (both(*pair) for pair in pairs))
print(
    f"{cv2.__version__}: {both(8, 12)[1]}   {differ:,} of {len(pairs):,} differ from Pillow;"
    f" 32 to 48: {np.not_equal(*both(32, 48)).sum()}"
)
if cv2.__version__ == "4.13.0":
    assert differ > 1000 and np.not_equal(*both(32, 48)).any()
else:
    assert differ == 0
PYTHON
done
