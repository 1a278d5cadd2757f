"""What the notebooks and the command line say of finished runs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from noisy_student import Images, Recipe, Run, Store, predict, report, run_variants, split

RECIPE = Recipe(epochs=1, batch_size=10, n=0, crop=0)


@pytest.fixture
def finished(tiny: tuple[Images, Images], tmp_path: Path) -> tuple[pd.DataFrame, Store]:
    plain = Run("Convnet5", 10, RECIPE)
    student = Run("Convnet5", 10, RECIPE, (plain,))
    return run_variants(
        {"alone": plain, "student": student}, [0, 1], *tiny, tmp_path, progress=False
    ), Store(tmp_path)


def test_summary(finished: tuple[pd.DataFrame, Store], tiny: tuple[Images, Images]) -> None:
    table, _ = finished
    shown = report.summary(table, tiny[1])
    a, b = (table[table.variant == name].accuracy.to_numpy() for name in ("alone", "student"))
    assert shown.index.tolist() == ["alone", "student"]
    assert shown["accuracy, %"]["alone"].startswith(f"{a.mean():.1f} ± ")
    assert shown["over labels alone, points"].tolist()[0] == ""
    assert shown["over labels alone, points"]["student"].split(" ± ")[
        0
    ] == f"{(b - a).mean():+.1f}".replace("-0.0", "0.0")
    # 10 labels, and 60 images, in batches of 10
    assert shown["optimizer steps"].tolist() == ["1", "6"]
    assert shown["pseudo-labels kept"].tolist() == ["", "100%"] and shown["seeds"].tolist() == [
        2,
        2,
    ]
    assert "balanced accuracy, %" not in shown


def test_summary_of_unequal_classes_and_unknown_labels(
    tiny: tuple[Images, Images], tmp_path: Path
) -> None:
    train, test = tiny
    hidden = Images(
        train.images, torch.where(torch.arange(60) < 20, train.labels, -1), train.classes, "hidden"
    )
    few = Images(test.images[:13], torch.tensor([0] * 10 + [1] * 3), test.classes, "hidden")
    plain = Run("Convnet5", 10, RECIPE)
    table = run_variants(
        {"alone": plain, "student": Run("Convnet5", 10, RECIPE, (plain,))},
        [0],
        hidden,
        few,
        tmp_path,
        progress=False,
    )
    shown = report.summary(table, few)
    guess = predict(Store(tmp_path).model(table.key[0]), few.images).argmax(1)
    assert (
        shown["balanced accuracy, %"]["alone"]
        == f"{100 * balanced_accuracy_score(few.labels, guess):.1f}"
    )
    # of the ten whose label is known
    assert shown["of these right"].tolist() == ["", table.pseudo_accuracy.map("{:.1f}%".format)[1]]
    counts = report.confusion_of(table.iloc[0], Store(tmp_path))
    assert np.array_equal(counts.sum(1), [10, 3]) and counts.trace() == int(
        (guess == few.labels).sum()
    )


def test_by_confidence() -> None:
    probabilities = torch.tensor(
        [
            [0.4, 0.3, 0.3],
            [0.7, 0.2, 0.1],
            [0.1, 0.79, 0.11],
            [0.97, 0.03, 0.0],
            [0.96, 0.04, 0.0],
            [0.0, 0.0, 1.0],
        ]
    )
    labels = torch.tensor([0, 0, 0, 0, -1, 1])
    shown = report.by_confidence(probabilities, labels)
    assert shown.index.tolist() == ["0% to 50%", "50% to 80%", "80% to 95%", "95% to 100%"]
    assert shown.images.tolist() == [1, 2, 0, 3]  # an end belongs to the group below it
    assert (
        shown["right, %"].tolist()[:2] == [100, 50]
        and np.isnan(shown["right, %"].iloc[2])
        and shown["right, %"].iloc[3] == 50
    )
    assert report.by_confidence(probabilities, torch.full((6,), -1))["right, %"].isna().all()


def test_saved_split(
    tiny: tuple[Images, Images], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = tiny
    path = tmp_path / "split.npz"
    assert report.saved_split(path, train) is None and "There is no " in capsys.readouterr().out
    split(train, 10).save(path)
    found = report.saved_split(path, train)
    assert found is not None and found.key == split(train, 10).key
    capsys.readouterr()
    assert report.saved_split(path, test) is None
    said = capsys.readouterr().out
    assert (
        said.count("\n") == 1
        and "each seed draws its own" in said
        and "belongs to other data" in said
    )
