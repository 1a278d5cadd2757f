"""Noisy Student self-training (Xie et al., 2020) of small image classifiers."""

from . import experiments, figures
from .augment import RandAugment
from .data import Images, Split, load, split
from .folders import load_pictures
from .models import MODELS, build
from .runs import Run, run_all
from .store import Store
from .training import Recipe, evaluate, predict, train

__version__ = "1.0.0"
__all__ = [
    "MODELS", "Images", "RandAugment", "Recipe", "Run", "Split", "Store", "build", "evaluate", "experiments", "figures",
    "load", "load_pictures", "predict", "run_all", "split", "train",
]
