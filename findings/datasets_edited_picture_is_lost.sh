#!/usr/bin/env bash
# Hugging Face's datasets stores a picture that was changed in place as it was before the change.
#
# Versions: datasets 5.2.0, Pillow 13.0.0.
# Expected: what goes into an Image column are the pixels of the picture that is handed over.
# Seen: of a Pillow picture that still knows its file, the file is stored, not the pixels.
#   Pillow's operations that work in place (thumbnail, paste, putpixel, ImageDraw) leave that
#   name, so what they did is lost; those that return a new picture do not.
#     thumbnail((32, 32)) of a 64 x 64 file: stored as (64, 64)
#     painted black by paste, in from_dict and in map: mean pixel 128.1, that of the file
#     the same picture after copy(): mean pixel 0.0
# Why it matters: pictures are shrunk with thumbnail before training, boxes are painted over as an
#   augmentation (Cutout) or to hide faces and stamps that give the class away: the data set then
#   holds the originals. Hand over picture.copy().
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    datasets==5.2.0 pillow==13.0.0 numpy==2.4.6
cd "$folder"

HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import numpy as np
from datasets import Dataset, Features, Image, disable_progress_bars
from PIL import Image as Picture

disable_progress_bars()
Picture.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
    "picture.png"
)


def stored(picture: Picture.Image | str) -> Dataset:
    return Dataset.from_dict({"image": [picture]}, features=Features({"image": Image()}))


def mean(dataset: Dataset) -> float:
    return float(np.asarray(dataset[0]["image"]).mean())


def paint(row: dict) -> dict:
    row["image"].paste((0, 0, 0), (0, 0, 64, 64))
    return row


small, black = Picture.open("picture.png"), Picture.open("picture.png")
small.thumbnail((32, 32))
paint({"image": black})
sizes = small.size, stored(small)[0]["image"].size
means = mean(stored(black)), mean(stored("picture.png").map(paint)), mean(stored(black.copy()))
print(
    "thumbnail", *sizes, "painted black: from_dict {:.1f}, map {:.1f}, a copy {:.1f}".format(*means)
)
assert sizes == ((32, 32), (64, 64))
assert means[0] > 100 and means[1] > 100 and means[2] == 0
PYTHON
