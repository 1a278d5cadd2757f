"""Noisy Student self-training (Xie et al., 2020) of small image classifiers."""

from .augment import RandAugment
from .data import Images, Split, split
from .folders import load_pictures
from .models import MODELS, build
from .recipes import RECIPES, Recipe
from .runs import Run, run_all, run_variants
from .sources import load
from .store import Store
from .training import evaluate, predict, train

__version__ = "1.0.0"
__all__ = [
    "MODELS",
    "RECIPES",
    "Images",
    "RandAugment",
    "Recipe",
    "Run",
    "Split",
    "Store",
    "build",
    "evaluate",
    "figures",
    "load",
    "load_pictures",
    "predict",
    "run_all",
    "run_variants",
    "split",
    "train",
]
