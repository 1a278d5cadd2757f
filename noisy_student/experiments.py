"""The four experiments of the original on any images, each a dict from a variant's name to its Run.

The seed of their Runs is 0: :func:`~noisy_student.runs.run_variants` repeats them with others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import pandas as pd

from .augment import RandAugment
from .data import Images, check_name
from .models import MODELS
from .recipes import Method, Recipe, check_fields
from .runs import PSEUDO, Run

Variants = dict[str, Run]


@dataclass(frozen=True)
class Plan:
    """What the four experiments train. Raises ValueError for a value out of range."""

    method: Method
    labels: int = 5000  # labelled images; all others are unlabelled
    # each the teacher of the next
    chain: tuple[str, ...] = ("Convnet5", "Convnet6", "Resnet6", "Resnet9")
    kinds: tuple[str, ...] = PSEUDO  # of pseudo-labels; further generations are of the first kind
    generations: int = 1  # further students of equal size after the chain's last
    grid_models: tuple[str, ...] = ("Convnet5",)
    grid_ns: tuple[int, ...] = (1, 2, 3)
    grid_ms: tuple[float, ...] = (2, 5, 10)
    label_counts: tuple[int, ...] = ()  # empty: 1, 2 and 4 times ``labels``

    def __post_init__(self) -> None:
        check_fields(self, {"labels": (2, math.inf), "generations": (0, 100)})
        for name in ("chain", "grid_models", "kinds"):
            values = getattr(self, name)
            if not values or not isinstance(values, tuple):
                raise ValueError(f"{name}={values!r} is not a tuple of one name or more.")
            for value in values:
                check_name(
                    *(
                        ("pseudo-label kind", value, PSEUDO)
                        if name == "kinds"
                        else ("model", value, MODELS)
                    )
                )
        for n, m in product(self.grid_ns, self.grid_ms):
            RandAugment(n, m)  # raises what is wrong with them
        if self.label_counts and min(self.label_counts) < self.labels:
            raise ValueError(
                f"label_counts={self.label_counts} has a count below labels={self.labels}: "
                "leave it out."
            )

    def replace(self, changes: Mapping[str, Any]) -> Plan:
        """A copy with some values changed: fields of Plan, or what :meth:`Method.replace` knows.

        Raises ValueError for another name.
        """
        plan = self
        for name, value in changes.items():
            kinds = {f.name: str(f.type) for f in fields(self) if f.name != "method"}
            if name in kinds:
                many = kinds[name].startswith("tuple")
                value = (
                    tuple(value)
                    if many and isinstance(value, (list, tuple))
                    else (value,)
                    if many
                    else value
                )
                changed: dict[str, Any] = {name: value}
                plan = replace(plan, **changed)
            else:
                parts = ("supervised", "student")
                valid = [f.name for f in fields(Method) if f.name not in parts]
                recipes = [
                    f"{part}.{f.name}" for part in ("recipe", *parts) for f in fields(Recipe)
                ]
                check_name("hyper-parameter", name, [*kinds, *valid, *recipes])
                plan = replace(plan, method=plan.method.replace(**{name: value}))
        return plan


def default_labels(train: Images) -> int:
    """How many images are labelled where nobody says.

    All that have a label where others have none (one's own ``unlabeled/``), else 5,000; of fewer
    than twice as many a tenth, but at least two a class.
    """
    known = int((train.labels >= 0).sum())
    if known < len(train) and train.name != "svhn":  # whose extra images count as unlabelled
        return known
    return 5000 if known >= 10_000 else min(known, max(2 * len(train.classes), known // 10))


def alone(plan: Plan, model: str, labels: int | None = None, **recipe: Any) -> Run:
    """A model on labels alone."""
    return Run(model, labels or plan.labels, plan.method.supervised.replace(**recipe))


def student(plan: Plan, model: str, teachers: tuple[Run, ...], pseudo: str, **recipe: Any) -> Run:
    """A model that learns from the labels and from its teachers."""
    method = plan.method
    return Run(
        model,
        plan.labels,
        method.student.replace(**recipe),
        teachers,
        pseudo=pseudo,
        threshold=method.threshold,
        flip_average=method.flip_average,
        repeat_labels=method.repeat_labels,
    )


def grid(plan: Plan) -> Variants:
    """1. RandAugment's n and m: trained on 80% of the labels, scored on the other 20%."""
    return {
        f"{model}, RandAugment ({n}, {m:g})": replace(alone(plan, model, n=n, m=m), holdout=0.2)
        for model in plan.grid_models
        for n in plan.grid_ns
        for m in (plan.grid_ms if n else plan.grid_ms[:1])
    }


def baselines(plan: Plan) -> Variants:
    """2. Labels alone: every model of the chain, and the first and the last without each noise."""
    runs = {f"{model} on labels alone": alone(plan, model) for model in plan.chain}
    noises: dict[str, dict[str, Any]] = {
        "without RandAugment": {"n": 0},
        "without dropout": {"dropout": 0.0},
        "without either": {"n": 0, "dropout": 0.0},
    }
    for model in dict.fromkeys((plan.chain[0], plan.chain[-1])):
        runs |= {
            f"{model} on labels alone, {name}": alone(plan, model, **noise)
            for name, noise in noises.items()
        }
    return runs


def students(plan: Plan) -> Variants:
    """3. Noisy Student along the chain, with each kind of pseudo-labels; more of the last size."""
    runs = {f"{model} on labels alone": alone(plan, model) for model in plan.chain}
    for kind in plan.kinds:
        teachers = alone(plan, plan.chain[0]).members(plan.method.teachers)
        further = [plan.chain[-1]] * (plan.generations if kind == plan.kinds[0] else 0)
        for generation, model in enumerate((*plan.chain[1:], *further), 1):
            run = student(plan, model, teachers, kind)
            runs[f"{model}, {kind} student of {teachers[0].model}, generation {generation}"] = run
            teachers = (run,)
    return runs


def label_counts(plan: Plan) -> Variants:
    """4. The chain's last model on labels alone, by number of labels."""
    counts = plan.label_counts or tuple(plan.labels * k for k in (1, 2, 4))
    return {
        f"{plan.chain[-1]} on {count:,} labels": alone(plan, plan.chain[-1], count)
        for count in counts
        if count >= plan.labels
    }


EXPERIMENTS: dict[str, Callable[[Plan], Variants]] = {
    "grid": grid,
    "baselines": baselines,
    "students": students,
    "label_counts": label_counts,
}


def baseline_of(table: pd.DataFrame) -> dict[str, str]:
    """For each student's variant the first of the same model on as many labels alone.

    table: of run_variants.
    """
    rows = table[table.validation_accuracy.isna()].drop_duplicates("variant")
    alone = rows[rows.generation == 0].drop_duplicates(["model", "labels"])
    pairs = rows[rows.generation > 0].merge(
        alone[["model", "labels", "variant"]], on=["model", "labels"], suffixes=("", "_alone")
    )
    return dict(zip(pairs.variant, pairs.variant_alone, strict=True))


def possible(variants: Variants, train: Images) -> tuple[Variants, str]:
    """(those of the variants that these images can give, a sentence on the others, or nothing)."""
    known, classes = int((train.labels >= 0).sum()), len(train.classes)

    def reason(run: Run) -> str:
        if run.holdout and (run.held < 1 or run.labels - run.held < classes):
            return f"a fifth of {run.labels} labels cannot be held out from {classes} classes"
        return f"there are {known:,} labels" if run.labels > known else ""

    left_out = {name: why for name, run in variants.items() if (why := reason(run))}
    kept = {name: run for name, run in variants.items() if name not in left_out}
    if not left_out:
        return kept, ""
    first, why = next(iter(left_out.items()))
    return (
        kept,
        f"left out: {first}{f' and {len(left_out) - 1} more' if len(left_out) > 1 else ''} "
        f"({why}).",
    )
