"""The committed rows are those that the studies' Runs would give, and none is lost."""

import importlib

import pandas as pd
import pytest
import torch

from noisy_student import RandAugment, Recipe, build, train
from noisy_student.augment import OPS
from noisy_student.data import Images
from noisy_student.studies import ROOT, load_study, study_names
from noisy_student.tables import ROW_COLUMNS

TRAINING = ["key", "device", "accuracy", "validation_accuracy", "pseudo_accuracy", "kept"]
FINISHED = [name for name in study_names() if (ROOT / "results" / f"{name}.csv").exists()]
Pair = tuple[Images, Images]


@pytest.fixture(scope="module")
def archive() -> pd.DataFrame:
    return pd.read_csv(ROOT / "results" / "archive.csv")


@pytest.mark.parametrize("name", FINISHED)
def test_each_rows_key_is_that_of_its_run(name: str) -> None:
    study = load_study(name)
    rows = pd.read_csv(ROOT / "results" / f"{name}.csv")
    assert tuple(rows) == ROW_COLUMNS and set(rows.study) == {name}
    [data] = rows.data.unique()
    assert data.rpartition("-")[0] == study.data
    for row in rows.itertuples():  # an unknown variant is a KeyError
        run = study.runs[row.variant].throughout(seed=row.seed).bind(data, "")
        assert (run.key, run.model, run.labels, run.generation) == (
            row.key,
            row.model,
            row.labels,
            row.generation,
        )


@pytest.mark.parametrize("name", FINISHED)
def test_a_study_has_each_variant_and_seed_at_most_once(name: str) -> None:
    study = load_study(name)
    rows = pd.read_csv(ROOT / "results" / f"{name}.csv")
    found = list(zip(rows.variant, rows.seed, strict=True))
    asked = {(variant, seed) for variant in study.runs for seed in study.seeds[variant]}
    assert len(set(found)) == len(found) and set(found) <= asked


@pytest.mark.parametrize("name", FINISHED)
def test_a_row_has_the_scores_of_its_kind(name: str) -> None:
    study = load_study(name)
    rows = pd.read_csv(ROOT / "results" / f"{name}.csv")
    held_out = rows.variant.map(lambda variant: study.runs[variant].holdout > 0)
    assert (rows.accuracy.isna() == held_out).all()
    assert (rows.validation_accuracy.notna() == held_out).all()
    students = rows.generation > 0
    assert (rows.pseudo_accuracy.notna() == students).all() and (
        rows.kept.notna() == students
    ).all()
    assert rows.fit.between(0, 100).all() and rows.device.notna().all()


def test_each_row_of_the_archive_says_why(archive: pd.DataFrame) -> None:
    assert tuple(archive) == (*ROW_COLUMNS, "note", "settings")
    assert archive.study.isna().all()
    assert archive[["variant", "seed", "note", "settings", "key"]].notna().all(axis=None)
    assert archive.note.str.split().str.len().max() <= 20


def test_no_training_is_lost_or_told_twice(archive: pd.DataFrame) -> None:
    """Before there were studies there were 862 trainings in 1,155 rows; studies may share one."""
    rows = pd.concat(pd.read_csv(ROOT / "results" / f"{name}.csv") for name in FINISHED)
    taken = rows[rows.data.str.startswith("cifar10-jpeg-")][TRAINING].drop_duplicates()
    assert len(taken) >= 705 and len(archive) >= 157
    assert not pd.concat([taken, archive[TRAINING]]).duplicated().any()


# ------------------------------------------------------------ the original's two faults


@pytest.fixture
def original() -> Recipe:
    load_study("from_the_original")
    module = importlib.import_module("studies.from_the_original")
    return module.Original(epochs=4, batch_size=20, n=1, precision="fp32")


def trained(images: Images, recipe: Recipe) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = build("Convnet5", 2, dropout=recipe.dropout)
    train(model, images.images, images.labels, recipe, device="cpu", progress=False)
    return model.state_dict()


def test_evaluation_mode_ends_batch_norms_averages_after_the_first_epoch(
    tiny: Pair, original: Recipe
) -> None:
    one = trained(tiny[0], original.replace(epochs=1))
    faulty = trained(tiny[0], original.replace(evaluation_mode=True))
    sound = trained(tiny[0], original)
    counts = [name for name in one if name.endswith("num_batches_tracked")]
    assert counts
    for name in counts:
        assert faulty[name] == one[name] < sound[name]


def test_evaluation_mode_ends_dropout_after_the_first_epoch(tiny: Pair, original: Recipe) -> None:
    """Other random numbers for dropout alone: they change a model in training mode, no other."""

    def outputs(epoch: int, faulty: bool) -> list[torch.Tensor]:
        recipe = original.replace(n=0, evaluation_mode=faulty, dropout=0.5)
        torch.manual_seed(0)
        model = build("Convnet5", 2, dropout=0.5)
        model.train(recipe.is_noisy(epoch))
        images = tiny[0].images[:20].float()
        return [model(images) for _ in range(2)]

    for epoch, faulty, noisy in [(0, True, True), (1, True, False), (1, False, True)]:
        first, second = outputs(epoch, faulty)
        assert torch.equal(first, second) != noisy


def test_inert_equalize_is_the_only_op_that_does_nothing(original: Recipe) -> None:
    """Channels of full range, which at magnitude 0 Equalize alone changes."""
    images = torch.randint(0, 256, (60, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    images[:, :, 0, 0], images[:, :, 0, 1] = 0, 255  # AutoContrast has nothing to stretch
    images = images.to(torch.uint8)

    def changed(inert: bool) -> bool:
        augment = original.replace(n=14, m=0, inert_equalize=inert).augmentation()
        return not torch.equal(augment(images, torch.Generator().manual_seed(1)), images)

    assert changed(inert=False) and not changed(inert=True)
    faulty = original.replace(inert_equalize=True).augmentation()
    lost = RandAugment(1, 5).active & ~faulty.active
    assert [OPS[i] for i in lost.nonzero()] == ["Equalize"]
