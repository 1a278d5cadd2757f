#!/usr/bin/env bash
# A class called "train" (the vehicle: CIFAR-100, Pascal VOC and COCO have it) leaks test images
# into the train split of datasets.
#
# Version: datasets 5.2.0.
# Expected: load_dataset("imagefolder") takes train/<class>/* and test/<class>/* as the two
#   splits, whatever the classes' names.
# Seen: a folder called train anywhere in a file's path puts it into the train split: test/train/*
#   is in both splits. And without the split folders, <class>/*, only the pictures of the class
#   train are left, and no labels:
#     classes bus, car, train, each 4 files in train/ and 2 in test/: 14 in the train split, not 12
#     the three class folders alone: 3 of 9 pictures, columns ['image']
# Why it matters: the model is trained on all the test images of a class, and nothing says so: of
#   CIFAR-100 the train split has 50,100 pictures in place of 50,000. Pass data_files={"train":
#   "train/**", "test": "test/**"}, or rename the class.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pillow==13.0.0
cd "$folder"

HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
from pathlib import Path

from datasets import Image, disable_progress_bars, load_dataset
from PIL import Image as Picture

disable_progress_bars()


def fill(folder: str, count: int) -> None:
    for name in ("bus", "car", "train"):
        Path(folder, name).mkdir(parents=True)
        for i in range(count):
            Picture.new("RGB", (8, 8)).save(Path(folder, name, f"{i}.png"))


fill("split/train", 4)
fill("split/test", 2)
splits = load_dataset("imagefolder", data_dir="split").cast_column("image", Image(decode=False))
paths = {
    name: {str(Path(image["path"]).relative_to(Path("split").resolve())) for image in part["image"]}
    for name, part in splits.items()
}
leaked = sorted(paths["train"] & paths["test"])
print(len(splits["train"]), "in the train split; in both:", leaked)
assert leaked == ["test/train/0.png", "test/train/1.png"] and len(splits["train"]) == 14

sane = load_dataset(
    "imagefolder", data_dir="split", data_files={"train": "train/**", "test": "test/**"}
)
assert {name: len(part) for name, part in sane.items()} == {"train": 12, "test": 6}

fill("flat", 3)
flat = load_dataset("imagefolder", data_dir="flat")
print({name: (len(part), part.column_names) for name, part in flat.items()})
assert len(flat["train"]) == 3 and flat["train"].column_names == ["image"]
PYTHON
