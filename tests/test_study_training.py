"""Training what a study lacks, and training its cheapest rows again."""

from pathlib import Path

import pandas as pd
import pytest

from noisy_student import Images, Store, runs
from noisy_student.studies import load_study, train_study, verify
from noisy_student.tables import read_rows, write_rows

Pair = tuple[Images, Images]
STUDY = '''"""Does it learn?"""
from functools import partial

from noisy_student import Recipe, Run, figures

TEACHER = Run("Convnet5", 20, Recipe(epochs=EPOCHS, batch_size=10, n=0, precision="fp32"))
RUNS = {"alone": TEACHER, "student": Run("Convnet5", 20, TEACHER.recipe, (TEACHER,))}
SEEDS = {"alone": (0, 1), "student": (1,)}
BASELINE = "alone"
FIGURE = partial(figures.forest, baseline=BASELINE)
ANSWER = "It has {student}."
'''


def written(root: Path, epochs: int = 1) -> Path:
    (root / "studies").mkdir(exist_ok=True)
    path = root / "studies" / "learns.py"
    path.write_text(STUDY.replace("EPOCHS", str(epochs)))
    return path


def test_what_is_missing_is_trained_and_written(
    tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else: neither from the rows nor from the store is a run trained twice."""
    trained, real = [], runs.train
    monkeypatch.setattr(
        runs, "train", lambda *a, **k: (trained.append(k["title"]), real(*a, **k))[1]
    )
    study, store = load_study(written(tmp_path)), Store(tmp_path / "runs")
    options = {"device": "cpu", "progress": False, "root": tmp_path}
    rows = train_study(study, *tiny, store, **options)
    assert list(zip(rows.variant, rows.seed, strict=True)) == [
        ("alone", 0),
        ("alone", 1),
        ("student", 1),
    ]
    assert (
        len(trained) == 3 and set(rows.study) == {"learns"} and rows.accuracy.between(0, 100).all()
    )
    pd.testing.assert_frame_equal(read_rows(tmp_path / "results" / "learns.csv"), rows)

    write_rows(rows[rows.variant == "alone"], tmp_path / "results" / "learns.csv", study.runs)
    again = train_study(study, *tiny, Store(tmp_path / "other"), **options)
    times = ["seconds", "images_per_second"]
    pd.testing.assert_frame_equal(again.drop(columns=times), rows.drop(columns=times))
    assert len(trained) == 5, "the student in another store, with its teacher"

    longer = train_study(load_study(written(tmp_path, epochs=2)), *tiny, store, **options)
    assert set(longer.key).isdisjoint(rows.key) and len(longer) == 3, (
        "a variant that was changed is trained anew"
    )


def test_rows_of_other_images_are_not_replaced(tiny: Pair, tmp_path: Path) -> None:
    study = load_study(written(tmp_path))
    train_study(study, *tiny, Store(tmp_path / "runs"), root=tmp_path, device="cpu", progress=False)
    before = (tmp_path / "results" / "learns.csv").read_bytes()
    with pytest.raises(
        ValueError, match=r"the rows of the study learns are of the data tiny-.*, not tiny-"
    ):
        train_study(study, tiny[1], tiny[0], Store(tmp_path / "runs"), root=tmp_path)
    assert (tmp_path / "results" / "learns.csv").read_bytes() == before


def test_the_cheapest_rows_are_trained_again(tiny: Pair, tmp_path: Path) -> None:
    study = load_study(written(tmp_path))
    with pytest.raises(ValueError, match=r"learns has no rows of the data tiny-.*: make study"):
        verify(study, *tiny, root=tmp_path)
    rows = train_study(
        study, *tiny, Store(tmp_path / "runs"), root=tmp_path, device="cpu", progress=False
    )
    shifted = rows.assign(accuracy=rows.accuracy - 5, seconds=[2.0, 1.0, 0.5])
    write_rows(shifted, tmp_path / "results" / "learns.csv", study.runs)
    found = verify(study, *tiny, 2, tmp_path, device="cpu", progress=False)
    assert list(zip(found.variant, found.seed, strict=True)) == [("alone", 1), ("alone", 0)], (
        "a student needs its teacher too"
    )
    assert found.difference.tolist() == pytest.approx([5, 5]) and list(found.again) == list(
        rows.accuracy[[1, 0]]
    )
    with pytest.raises(ValueError, match="0 rows cannot be trained again"):
        verify(study, *tiny, 0, tmp_path)
    with pytest.raises(ValueError, match=r"has no rows of the data tiny-.*give it the images"):
        verify(study, tiny[1], tiny[0], 2, tmp_path)


def test_rows_of_another_training_than_the_study_says_are_not_shown(
    tiny: Pair, tmp_path: Path
) -> None:
    """And those of a seed or a variant that the study no longer has go when it is trained."""
    options = {"root": tmp_path, "device": "cpu", "progress": False}
    study, store = load_study(written(tmp_path)), Store(tmp_path / "runs")
    train_study(study, *tiny, store, **options)
    changed = load_study(written(tmp_path, epochs=2))
    with pytest.raises(ValueError, match="the row of 'alone', seed 0, is of another training"):
        changed.rows(tmp_path)
    path = written(tmp_path)
    path.write_text(path.read_text().replace("(0, 1)", "(1,)"))
    assert list(train_study(load_study(path), *tiny, store, **options).seed) == [1, 1]
