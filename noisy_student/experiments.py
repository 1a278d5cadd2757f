"""The experiments, each a list of Runs for one seed; and the settings that decide them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from .data import NAMED, Images, Split, check_name
from .models import MODELS, plain_block
from .runs import PSEUDO, STUDENT_OPTIONS, Run, run_all
from .store import Store
from .training import Recipe, check_fields, pick_device

PROFILES = ("auto", "quick", "long", "full")


@dataclass(frozen=True)
class Settings:
    """Every hyper-parameter of the experiments."""

    supervised: Recipe  # for training on labels alone
    student: Recipe  # for training on labels and pseudo-labels
    seeds: tuple[int, ...] = (0, 1, 2)
    labels: int = 5000  # labelled images; all others are unlabelled
    chain: tuple[str, ...] = ("Convnet5", "Convnet6", "Resnet6", "Resnet9")  # each the teacher of the next
    kinds: tuple[str, ...] = ("soft", "hard")  # of pseudo-labels; further generations are of the first kind
    generations: int = 2  # further students of equal size after the chain's last
    threshold: float = 0.0  # pseudo-labels below this confidence are dropped; 0 keeps all
    balance: bool = False  # as many pseudo-labelled images in each class
    flip_average: bool = False  # teachers average image and mirror
    temperature: float = 1.0  # of soft pseudo-labels: below 1 sharpens them
    ensemble: int = 1  # trainings of the first teacher, whose mean prediction labels the images
    student_ensemble: int = 1  # the same for students that are teachers in their turn
    repeat_labels: int = 1  # how often a student's epoch sees each labelled image
    ablation_models: tuple[str, ...] = ("Convnet5", "Convnet6", "Resnet6", "Resnet9")  # trained without each noise as well
    grid_models: tuple[str, ...] = ("Convnet5", "Resnet9")
    grid_ns: tuple[int, ...] = (1, 2, 3, 5, 8, 11, 14)
    grid_ms: tuple[float, ...] = (1, 3, 5, 7, 9, 10)
    grid_seeds: int = 1  # the grid takes the first so many seeds
    label_counts: tuple[int, ...] = (5000, 6000, 7000, 8000, 9000, 10000, 20000, 30000, 40000, 50000)
    label_recipe_steps: float = 4.0  # at most so many times the optimizer steps of the supervised run, see label_counts()

    def __post_init__(self) -> None:
        at_least = {"labels": 2, "generations": 0, "ensemble": 1, "student_ensemble": 1, "grid_seeds": 1, "label_recipe_steps": 1}
        check_fields(self, {name: (least, math.inf) for name, least in at_least.items()})


_SHORT = Recipe(epochs=25, batch_size=64, n=1, m=5, dropout=0.2)  # short training wants little noise
_LONG = Recipe(epochs=200, n=2, m=10, dropout=0.2)
# Everywhere students see each label about as often as the supervised models do (full: three quarters); docs/recipe.md says how
# these were found.
_SETTINGS = {
    "quick": Settings(_SHORT, _SHORT.replace(epochs=9), seeds=(0,), generations=1, threshold=0.8, flip_average=True, ensemble=3,
                      repeat_labels=3, ablation_models=("Convnet5",), grid_models=("Convnet5",), grid_ns=(1, 3), grid_ms=(5, 10),
                      label_counts=(5000, 7000, 10000), label_recipe_steps=2),
    "quick, few images": Settings(_SHORT.replace(epochs=40, batch_size=20), _SHORT.replace(epochs=8, batch_size=20), labels=100,
                                  generations=1, flip_average=True, ensemble=3, repeat_labels=5, ablation_models=("Convnet5",),
                                  grid_models=("Convnet5",), grid_ns=(1, 2, 5), grid_ms=(2, 5, 10), label_counts=(100, 200, 400),
                                  label_recipe_steps=2),
    "long": Settings(_LONG, _LONG.replace(epochs=30, weight_decay=5e-4), seeds=(0,), kinds=("soft",), generations=1, flip_average=True,
                     ensemble=3, repeat_labels=6, ablation_models=("Convnet5",), grid_models=("Convnet5",), grid_ns=(1, 2, 3),
                     grid_ms=(5, 10), label_counts=(5000, 10000, 20000, 50000), label_recipe_steps=1.25),
    "full": Settings(_LONG, _LONG.replace(epochs=50, batch_size=512, lr=0.4, weight_decay=5e-4, n=1, m=5), seeds=(0, 1, 2, 3, 4),
                     generations=4, threshold=0.8, flip_average=True, ensemble=3, repeat_labels=3, label_recipe_steps=2),
}


def profile(name: str, train: Images, device: str | torch.device | None = None, labels: int | None = None) -> Settings:
    """The settings of a profile for these images: "quick" (minutes on a CPU), "long" (hours on one), "full" (for a GPU).

    "auto" takes full on a CUDA GPU and quick elsewhere. labels: how many labelled images; None: the profile's number. What
    does not fit the data (more labels than there are, too few epochs for few images, mirroring of digits) is adapted.
    Raises ValueError for an unknown name.
    """
    check_name("profile", name, PROFILES)
    if name == "auto":
        name = "full" if pick_device(device).type == "cuda" else "quick"
    few = name == "quick" and len(train) <= 5000
    settings = _SETTINGS["quick, few images" if few else name]
    known = int((train.labels >= 0).sum())
    if labels is None and known < len(train) and train.name not in NAMED:
        labels = known  # someone's own images, some without a label: all labels there are
    elif labels is None and (2 * settings.labels > known or settings.labels < 2 * len(train.classes)):
        labels = min(known, max(2 * len(train.classes), known // 10))  # leaves most for the students, and each class two labels
    if labels is not None and labels != settings.labels:
        settings = replace(settings, labels=labels, label_counts=tuple(labels * k for k in (1, 2, 4, 10)))
    if name == "full" and len(train) < 5000:  # in batches of 512 a student of the digits would take 1,500 steps, not 6,000
        settings = replace(settings, student=settings.student.replace(batch_size=128, lr=0.1))
    recipes = {"supervised": settings.supervised, "student": settings.student}
    if not few:  # smaller data, more epochs: about as many steps as on CIFAR-10
        for part, usual, count in (("supervised", 5000, settings.labels), ("student", 50_000, len(train))):
            epochs = round(recipes[part].epochs * min(10, max(1, usual / max(1, count))))
            recipes[part] = recipes[part].replace(epochs=epochs)
    if train.name in ("digits", "svhn"):  # a mirrored 2 is no 2
        recipes = {part: recipe.replace(flip=False, crop=recipe.crop // 2) for part, recipe in recipes.items()}
        settings = replace(settings, flip_average=False)
    counts = tuple(count for count in settings.label_counts if count <= known)
    return replace(settings, supervised=recipes["supervised"], student=recipes["student"], label_counts=counts)


def override(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Settings with some values changed; a value of None leaves the profile's.

    Names are those of Settings, ``supervised.<parameter>``, ``student.<parameter>``, or ``recipe.<parameter>`` for both.
    Each changes that value alone: ``labels`` leaves the epochs and ``label_counts`` as they are, which :func:`profile` fits to its own.
    Raises ValueError for an unknown name, with the nearest valid ones, for a value of the wrong kind, and for one that would
    be left unused: an ablation model outside the chain, a label count below ``labels``.
    """
    kinds, parameters = {f.name: str(f.type) for f in fields(Settings)}, [f.name for f in fields(Recipe)]
    for name, value in changes.items():
        head, dot, tail = name.partition(".")
        if dot and head in ("recipe", "supervised", "student"):
            check_name("recipe parameter", tail, parameters)
            targets = ("supervised", "student") if head == "recipe" else (head,)
            if value is not None:
                settings = replace(settings, **{t: getattr(settings, t).replace(**{tail: value}) for t in targets})
        else:
            check_name("setting", name, [*kinds, *(f"recipe.{parameter}" for parameter in parameters)])
            if value is not None:
                settings = replace(settings, **{name: _of_kind(kinds[name], name, value)})
    unused = sorted(set(settings.ablation_models) - set(settings.chain)) if changes.get("ablation_models") else []
    if unused:
        raise ValueError(f"ablation_models names {unused[0]}, which is not in the chain, {', '.join(settings.chain)}: add it there.")
    if changes.get("label_counts") and min(settings.label_counts) < settings.labels:
        raise ValueError(f"label_counts={list(settings.label_counts)} has a count below labels={settings.labels}: leave it out.")
    return settings


def _of_kind(kind: str, name: str, value: Any) -> Any:
    """The value as a setting of this kind, "int" or "tuple[int, ...]" and the like; ValueError where it is none."""
    one = kind.removeprefix("tuple[").removesuffix(", ...]")
    values = tuple(value) if one != kind and isinstance(value, (list, tuple, range)) else (value,)
    wanted: Any = {"int": Integral, "float": Real, "str": str, "bool": bool}.get(one, Recipe)
    sound = all(isinstance(v, wanted) and (one == "bool" or not isinstance(v, bool)) for v in values)
    if sound and not values and name != "ablation_models":
        raise ValueError(f"{name}={value!r} is empty: one {one} or more is wanted.")
    if not sound:
        raise ValueError(f"{name}={value!r} is not of the right kind: {'a list of ' if one != kind else ''}{one} is wanted.")
    if name != "chain" and len(set(values)) < len(values):
        raise ValueError(f"{name}={list(values)!r} names a value twice: give each once.")
    for model in values if name in ("chain", "ablation_models", "grid_models") else ():
        check_name("model", model, MODELS)
    for pseudo in values if name == "kinds" else ():
        check_name("pseudo-label kind", pseudo, PSEUDO[1:])
    return values if one != kind else value


# ---------------------------------------------------------------------------------------------------- experiments


def grid(settings: Settings, seed: int) -> list[Run]:
    """1. RandAugment's n and m: trained on 80% of the labels, scored on the other 20%; the test set is not used."""
    if seed not in settings.seeds[: settings.grid_seeds]:
        return []
    return [
        Run(model, settings.labels, settings.supervised.replace(n=n, m=m), seed=seed, holdout=0.2)
        for model in settings.grid_models for n in settings.grid_ns for m in (settings.grid_ms if n else settings.grid_ms[:1])
    ]  # no ops have no magnitude: one run, not one with other chance for each


def baselines(settings: Settings, seed: int) -> list[Run]:
    """2. Labels alone: with all noise; for ``ablation_models`` also without RandAugment, without dropout, without either."""
    noises: list[dict[str, float]] = [{}, {"n": 0}, {"dropout": 0.0}, {"n": 0, "dropout": 0.0}]
    return [
        Run(model, settings.labels, settings.supervised.replace(**noise), seed=seed)
        for model in settings.chain for noise in (noises if model in settings.ablation_models else noises[:1])
    ]


def students(settings: Settings, seed: int) -> list[Run]:
    """3. Noisy Student along the chain, with each kind of pseudo-labels."""
    first = Run(settings.chain[0], settings.labels, settings.supervised, seed=seed)
    return [first, *(run for kind in settings.kinds for run in _descend(settings, first, settings.chain[1:], kind))]


def generations(settings: Settings, seed: int) -> list[Run]:
    """3b. Further students of the size of the chain's last one."""
    kind = settings.kinds[0]
    chain = students(replace(settings, kinds=(kind,)), seed)
    return [*chain, *_descend(settings, chain[-1], [settings.chain[-1]] * settings.generations, kind)]


def label_counts(settings: Settings, seed: int) -> list[Run]:
    """4. The chain's last model on the labels alone, by number of labels: ``labels``, and the larger ``label_counts``.

    More labels train for fewer epochs: steps grow with the labels up to ``label_recipe_steps`` times those of the
    smallest, which bounds the cost. Where that bound is low, many labels are trained too briefly to be a fair reference.
    """
    runs = []
    for count in (settings.labels, *(c for c in settings.label_counts if c > settings.labels)):
        ratio = count / settings.labels
        epochs = max(1, round(settings.supervised.epochs * min(1.0, settings.label_recipe_steps / ratio)))
        runs.append(Run(settings.chain[-1], count, settings.supervised.replace(epochs=epochs), seed=seed))
    return runs


def road(settings: Settings, seed: int) -> list[Run]:
    """5. On labels alone, from the original's recipe and its faults to ours, one step after the other, at equal epochs."""
    ours = settings.supervised
    recipe = Recipe.original(faults=True).replace(epochs=ours.epochs, precision=ours.precision)
    steps = [(), ("fault_eval",), ("fault_equalize",), ("lr", "schedule", "batch_size", "momentum", "weight_decay"), ("flip", "crop"),
             ("n", "m"), tuple(f.name for f in fields(Recipe))]
    recipes = []
    for names in steps:
        recipe = recipe.replace(**{name: getattr(ours, name) for name in names})
        recipes.append(recipe)
    return [Run(model, settings.labels, recipe, seed=seed) for model in (settings.chain[0], settings.chain[-1]) for recipe in recipes]


def student_ablation(settings: Settings, seed: int) -> list[Run]:
    """6. What each part of Noisy Student is worth: a student as large as its teacher, with one part changed at a time.

    The paper's section 4 asks the same of the noise, of soft and hard labels, of balancing.
    """
    teacher = Run(settings.chain[-1], settings.labels, settings.supervised, seed=seed)
    (ours,) = _descend(settings, teacher, [teacher.model], settings.kinds[0])
    noises: list[dict[str, Any]] = [{"n": 0}, {"dropout": 0.0}, {"n": 0, "dropout": 0.0},
                                    {"n": 0, "dropout": 0.0, "flip": False, "crop": 0}]
    if MODELS[teacher.model][1] is not plain_block:  # which has no branch to skip
        noises.append({"stochastic_depth": 0.0 if ours.recipe.stochastic_depth else 0.2})
    options: dict[str, Any] = {
        "threshold": 0.0 if ours.threshold else 0.8, "balance": not ours.balance,
        "flip_average": not ours.flip_average, "ensemble": 1 if ours.ensemble > 1 else 3,
        "repeat_labels": 1 if ours.repeat_labels > 1 else 3}
    return [teacher, ours, *(replace(ours, recipe=ours.recipe.replace(**noise)) for noise in noises),
            *_descend(settings, teacher, [teacher.model], "hard" if ours.pseudo == "soft" else "soft"),
            *(replace(ours, **{name: value}) for name, value in options.items())]


FOUR = {"grid": grid, "baselines": baselines, "students": students, "generations": generations, "label_counts": label_counts}
EXPERIMENTS = {**FOUR, "road": road, "student_ablation": student_ablation}


def _descend(settings: Settings, teacher: Run, models: Sequence[str], kind: str) -> list[Run]:
    """Students, each the teacher of the next."""
    options, runs = {name: getattr(settings, name) for name in STUDENT_OPTIONS}, list[Run]()
    if kind == "hard":
        options["temperature"] = 1.0  # of soft labels: a hard student is the same Run whatever it is
    for model in models:
        # Two numbers: a teacher trained on few labels varies most from one training to the next, and costs least.
        options["ensemble"] = settings.student_ensemble if teacher.teacher else settings.ensemble
        teacher = Run(model, settings.labels, settings.student, teacher, kind, seed=teacher.seed, **options)
        runs.append(teacher)
    return runs


def experiment_runs(name: str, settings: Settings) -> list[Run]:
    """The Runs of an experiment for all seeds, each once. Raises ValueError for an unknown name, model or value."""
    check_name("experiment", name, EXPERIMENTS)
    return list(dict.fromkeys(run for seed in settings.seeds for run in EXPERIMENTS[name](settings, seed)))


def run_experiment(name: str, settings: Settings, train: Images, test: Images, store: Store | str | Path = "runs", *,
                   saved_split: Split | None = None, device: str | torch.device | None = None, workers: int = 1,
                   progress: bool = True) -> pd.DataFrame:
    """Run one experiment for all seeds; the table of :func:`noisy_student.run_all` with a column "experiment" first."""
    table = run_all(experiment_runs(name, settings), train, test, store, saved_split=saved_split, device=device, workers=workers,
                    progress=progress)
    table.insert(0, "experiment", name)
    return table
