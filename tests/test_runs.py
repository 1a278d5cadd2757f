import itertools
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import torchvision
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

from noisy_student import Recipe, Run, Store, predict, revision, run_all, runs, split, store
from noisy_student.data import Images, data_key
from noisy_student.models import build
from noisy_student.runs import prepare, pseudo_labels
from noisy_student.training import normalise
from noisy_student.workers import default_workers, helpers

FAST = Recipe(epochs=2, batch_size=10, n=1, precision="fp32")
TEACHER = Run("Convnet5", 20, FAST)
STUDENT = Run("Convnet6", 20, FAST, (TEACHER,))
Pair = tuple[Images, Images]


class Training(NamedTuple):
    """What train() was given."""

    model: torch.nn.Module
    weights: list[torch.Tensor]  # before its first step
    images: torch.Tensor
    targets: torch.Tensor
    chosen: torch.Tensor
    seed: int
    recipe: Recipe


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Training]:
    """Every training from now on."""
    seen, real = [], runs.train

    def spy(
        model: torch.nn.Module,
        images: torch.Tensor,
        targets: torch.Tensor,
        *args: object,
        **options: object,
    ) -> object:
        start = [p.detach().clone() for p in model.parameters()]
        seen.append(
            Training(model, start, images, targets, options["chosen"], options["seed"], args[0])
        )  # type: ignore[arg-type]
        return real(model, images, targets, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(runs, "train", spy)
    return seen


def go(runs: list[Run], data: Pair, store: Path, **options: object) -> pd.DataFrame:
    return run_all(runs, *data, store, device="cpu", progress=False, **options)  # type: ignore[arg-type]


def weights(store: Path, key: str) -> bytes:
    return (store / key / "model.safetensors").read_bytes()


def test_table_and_store(tiny: Pair, tmp_path: Path) -> None:
    table = go([STUDENT, TEACHER], tiny, tmp_path)
    assert list(table.model) == ["Convnet6", "Convnet5"] and list(table.generation) == [1, 0]
    assert table.accuracy.between(0, 100).all() and table.title.eq("tiny").all()
    assert sorted(p.name for p in (tmp_path / table.key[0]).iterdir()) == [
        "SHA256SUMS",
        "history.csv",
        "model.safetensors",
        "run.json",
    ]
    record = Store(tmp_path).record(table.key[0])
    made = record["made_with"]
    expected = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "precision": "fp32",
    }
    assert {name: made[name] for name in expected} == expected and set(made) == {
        *expected,
        "torchvision",
        "git",
        "finished",
    }
    assert torchvision.__version__.split("+")[0] == made["torchvision"].split("+")[0]
    assert record["run"]["data"] == data_key(*tiny) == table["data"][0]
    assert sum(map(sum, record["result"]["confusion"])) == len(tiny[1])
    assert list(Store(tmp_path).history(table.key[0]).epoch) == [1, 2]


def test_finished_runs_are_not_trained_again(
    tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = go([STUDENT], tiny, tmp_path)
    monkeypatch.setattr(runs, "train", lambda *a, **k: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(first, go([STUDENT], tiny, tmp_path))


def test_run_that_another_process_finished_just_before_the_lock_is_not_trained_again(
    tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, real, copied = go([TEACHER], tiny, tmp_path / "other"), Store.lock, []

    def late(self: Store, run: Run) -> object:
        # the other process commits it, and lets go
        copied.append(shutil.copytree(tmp_path / "other" / run.key, self.folder / run.key))
        return real(self, run)

    monkeypatch.setattr(Store, "lock", late)
    monkeypatch.setattr(runs, "train", lambda *a, **k: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(first, go([TEACHER], tiny, tmp_path / "mine"))
    assert len(copied) == 1 and weights(tmp_path / "mine", first.key[0]) == weights(
        tmp_path / "other", first.key[0]
    )


def test_another_runs_entry_is_not_taken(tiny: Pair, tmp_path: Path) -> None:
    """Nor its checkpoint: whatever the folder is called, the key inside counts."""
    other = replace(TEACHER, seed=5).bind(data_key(*tiny), "")
    key = go([TEACHER], tiny, tmp_path).key[0]
    kept = weights(tmp_path, key)
    (tmp_path / key).rename(tmp_path / other.key)
    go([other], tiny, tmp_path)
    assert (
        weights(tmp_path, other.key) != kept
        and Store(tmp_path).record(other.key)["run"]["seed"] == 5
    )
    mine = TEACHER.bind(data_key(*tiny), "")
    Store(tmp_path).save_checkpoint(mine, {"a": torch.zeros(1)}, [], {})
    (tmp_path / other.key).rename(tmp_path / "away")
    (tmp_path / f"{key}.partial").rename(tmp_path / f"{other.key}.partial")
    assert Store(tmp_path).load_checkpoint(other) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {"epochs": 1}}, "recipe=.* is not a Recipe"),
        ({"teachers": ("Convnet5",)}, "teachers=.* is not a tuple of Runs"),
        ({"teachers": TEACHER}, r"teachers=.* is not a tuple of Runs: write teachers=\(teacher,\)"),
        (
            {"teachers": (TEACHER, TEACHER)},
            r"two teachers of .* are the same training: .* run.members\(3\)",
        ),
    ],
)
def test_what_is_no_recipe_or_teacher_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TEACHER, **change)  # type: ignore[arg-type]


def test_a_single_class_is_refused(tiny: Pair, tmp_path: Path) -> None:
    one = replace(tiny[0], labels=torch.zeros_like(tiny[0].labels), classes=("light",))
    with pytest.raises(
        ValueError, match="has the single class light: a classifier needs two or more"
    ):
        go([TEACHER], (one, one), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_revision_is_asked_without_touching_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`git add` at the same moment would fail, were the index locked and written."""
    # of a hook that runs the tests: its repository is not ours
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "runs.py").write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(revision, "__file__", str(tmp_path / "runs.py"))
    made = git("rev-parse", "--short=12", "HEAD")
    for touched, expected in ("1", made), ("2", f"{made}+"):
        (tmp_path / "runs.py").write_text(touched)
        before = (tmp_path / ".git" / "index").stat().st_mtime_ns
        assert revision.git_revision.__wrapped__() == expected
        assert (tmp_path / ".git" / "index").stat().st_mtime_ns == before
    (tmp_path / "elsewhere.py").touch()
    monkeypatch.setattr(revision, "__file__", str(tmp_path / "elsewhere.py"))
    assert revision.git_revision.__wrapped__() is None, (
        "a file that git does not know, as of a package installed within some repository"
    )


def test_a_run_of_other_images_is_refused(tiny: Pair, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"made for the data tiny-.*, not tiny-"):
        go([TEACHER.bind(data_key(*tiny), "")], (tiny[1], tiny[0]), tmp_path)


def test_a_run_of_another_saved_split_is_refused(tiny: Pair, tmp_path: Path) -> None:
    """Of another one, or of none; with its own, or before it has one, it runs, and has one key."""
    mine, other = split(tiny[0], 20, seed=7), split(tiny[0], 20, seed=8)
    run = STUDENT.bind(data_key(*tiny), mine.key)
    for wrong, name in ((other, other.key), (None, "one drawn from its seed")):
        with pytest.raises(
            ValueError,
            match=f"made for the saved split {mine.key}, not {name}: give run_all the saved_split",
        ):
            go([run], tiny, tmp_path, saved_split=wrong)
    assert not list(tmp_path.iterdir())
    assert [r.key for r in prepare([run, STUDENT], *tiny, mine)[0]] == [run.key] * 2


def test_global_random_state_is_left_alone(tiny: Pair, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    go([STUDENT], tiny, tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_what_a_user_lays_beside_an_entry_stays(tiny: Pair, tmp_path: Path) -> None:
    entry = tmp_path / go([TEACHER], tiny, tmp_path).key[0]
    (entry / "notes.txt").write_text("mine")
    (entry / ".ipynb_checkpoints").mkdir()
    (entry / "checkpoint.safetensors").touch()  # as a kill between rename and tidying leaves it
    go([TEACHER], tiny, tmp_path)
    assert (entry / "notes.txt").read_text() == "mine" and not (
        entry / "checkpoint.safetensors"
    ).exists()


def test_images_per_second_are_those_trained_on(tiny: Pair, tmp_path: Path) -> None:
    """20 images in batches of 15: 15 an epoch are trained on."""
    table = go([replace(TEACHER, recipe=FAST.replace(batch_size=15))], tiny, tmp_path)
    seconds = Store(tmp_path).history(table.key[0]).seconds.sum()
    assert table.images_per_second[0] * seconds == pytest.approx(15 * FAST.epochs)


def test_same_run_same_bits_in_any_order(tiny: Pair, tmp_path: Path) -> None:
    other = replace(TEACHER, seed=5)
    a, b = go([TEACHER, other], tiny, tmp_path / "a"), go([other, TEACHER], tiny, tmp_path / "b")
    assert weights(tmp_path / "a", a.key[0]) == weights(tmp_path / "b", b.key[1])
    assert weights(tmp_path / "a", a.key[0]) != weights(tmp_path / "a", a.key[1])


def test_what_the_keys_of_stored_runs_stand_for_stays() -> None:
    """A key says what differs from the defaults: with another default it would stand for another
    training.
    """
    run = Run("Convnet5", 20, Recipe(epochs=2, batch_size=10, n=1, precision="fp32"))
    assert run.key == "73edcd4e66ce37fa1417"
    assert repr(Recipe()) == (
        "Recipe(epochs=100, min_steps=0, batch_size=128, lr=0.1, schedule='triangular', "
        "momentum=0.9, weight_decay=0.001, label_smoothing=0.0, n=2, m=10.0, flip=True, crop=4, "
        "dropout=0.5, stochastic_depth=0.0, ema=0.0, precision='auto')"
    )
    assert repr(Run("Convnet5", 20)).partition("), ")[2] == (
        "teachers=(), pseudo='soft', threshold=0.0, balance=False, flip_average=False, "
        "repeat_labels=1, member=0, seed=0, holdout=0.0, data='', split='')"
    )


def test_every_field_changes_the_key() -> None:
    alone = {"labels": 30, "seed": 1, "holdout": 0.2}  # the same for a student and its teacher
    changes = {
        "model": "Resnet9",
        "recipe": FAST.replace(lr=0.3),
        "teachers": (replace(TEACHER, member=3),),
        "pseudo": "hard",
        "threshold": 0.5,
        "balance": True,
        "repeat_labels": 2,
        "member": 1,
        "flip_average": True,
        "data": "x",
        "split": "y",
    }
    assert {*alone, *changes} == {f.name for f in fields(Run)}
    keys = {
        STUDENT.key,
        *(replace(STUDENT, **{name: value}).key for name, value in changes.items()),
        TEACHER.key,
        *(replace(TEACHER, **{name: value}).key for name, value in alone.items()),
    }
    assert len(keys) == len(changes) + len(alone) + 2
    assert Run("Convnet6", 20, FAST, (Run("Convnet5", 20, FAST),)).key == STUDENT.key
    assert replace(STUDENT, teachers=TEACHER.members(2)).key not in keys
    assert (
        replace(STUDENT, recipe=FAST.replace(m=10, ema=-0.0), threshold=0, holdout=0).key
        == STUDENT.key
    ), "10 and 10.0, 0 and -0 are one"
    recipes = {
        "epochs": 3,
        "batch_size": 11,
        "lr": 0.2,
        "schedule": "constant",
        "momentum": 0.8,
        "weight_decay": 0.1,
        "label_smoothing": 0.1,
        "n": 2,
        "m": 9.0,
        "flip": False,
        "crop": 3,
        "dropout": 0.4,
        "stochastic_depth": 0.1,
        "ema": 0.9,
        "precision": "bf16",
        "min_steps": 7,
    }
    assert set(recipes) == {f.name for f in fields(Recipe)}
    changed = {
        replace(STUDENT, recipe=FAST.replace(**{name: value})).key
        for name, value in recipes.items()
    }
    assert len(changed | keys) == len(recipes) + len(keys)


def test_numpy_numbers_give_the_key_of_plain_ones() -> None:
    recipe = FAST.replace(
        epochs=np.int64(2), batch_size=np.int32(10), m=np.float32(10), dropout=np.float64(0.5)
    )
    teacher = Run("Convnet5", np.uint8(20), recipe)  # type: ignore[arg-type]
    assert Run("Convnet6", np.int64(20), recipe, (teacher,), seed=np.int64(0)).key == STUDENT.key  # type: ignore[arg-type]
    for wrong in (True, np.True_, np.float64(20.5), np.int64(1)):
        with pytest.raises(ValueError, match=r"labels=.* is not a"):
            replace(TEACHER, labels=wrong)  # type: ignore[arg-type]


def test_key_is_the_same_in_another_process(tmp_path: Path) -> None:
    """Whatever the hash seed, the working directory and the number of threads."""
    script = (
        "import torch; torch.set_num_threads(1); from noisy_student import Recipe, Run; "
        "f = Recipe(epochs=2, batch_size=10, n=1, precision='fp32'); "
        "print(Run('Convnet6', 20, f, (Run('Convnet5', 20, f),)).key)"
    )
    command = [sys.executable, "-c", script]
    out = subprocess.run(
        command,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == STUDENT.key


def test_no_test_image_reaches_training(
    tiny: Pair, tmp_path: Path, trainings: list[Training]
) -> None:
    """Training images are even, test images odd, pixel by pixel: all that train() gets must be
    even, and labelled right.
    """
    even = Images(tiny[0].images // 2 * 2, tiny[0].labels, tiny[0].classes, "tiny")
    odd = Images(tiny[1].images // 2 * 2 + 1, tiny[1].labels, tiny[1].classes, "tiny")
    go([STUDENT, replace(TEACHER, holdout=0.2)], (even, odd), tmp_path)
    assert all((t.images % 2 == 0).all() for t in trainings)
    assert [len(t.chosen) for t in trainings] == [20, 60, 16]
    labelled = split(even, 20, 0).labeled
    assert torch.equal(trainings[1].targets[:20].argmax(1), even.labels[labelled]) and torch.equal(
        trainings[1].chosen[:20], labelled
    )


def test_labels_are_repeated_for_students(
    tiny: Pair, tmp_path: Path, trainings: list[Training]
) -> None:
    go([replace(STUDENT, repeat_labels=3, recipe=FAST.replace(m=7))], tiny, tmp_path)
    assert [t.recipe for t in trainings] == [FAST, FAST.replace(m=7)], "each with its own noise"
    (teacher, student), labelled = trainings, split(tiny[0], 20, 0).labeled
    assert (
        torch.equal(teacher.chosen, labelled)
        and torch.equal(student.chosen[:60], labelled.repeat(3))
        and len(student.chosen) == 60 + 40
    )
    assert torch.equal(student.targets[:60].argmax(1), tiny[0].labels[labelled.repeat(3)])


def test_ensemble_of_teachers_averages_their_predictions(
    tiny: Pair, tmp_path: Path, trainings: list[Training]
) -> None:
    table = go(
        [replace(STUDENT, teachers=TEACHER.members(2)), TEACHER, replace(TEACHER, member=1)],
        tiny,
        tmp_path,
    )
    assert len(trainings) == 3, "the teacher of the student is the run without one, trained once"
    pool = tiny[0].images[split(tiny[0], 20, 0).unlabeled]
    votes = [predict(Store(tmp_path).model(key), pool, device="cpu") for key in table.key[1:]]
    assert (
        not torch.equal(*votes)
        and table.member.tolist() == [0, 0, 1]
        and table.teachers.tolist() == [2, 0, 0]
    )
    assert torch.allclose(trainings[2].targets[20:], (votes[0] + votes[1]) / 2, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"flip_average": True},
        {"recipe": FAST.replace(precision="bf16")},
        {"threshold": 1.0},
        {"balance": True},
    ],
)
def test_each_unlabelled_image_has_its_teachers_label(
    tiny: Pair, tmp_path: Path, trainings: list[Training], change: dict[str, object]
) -> None:
    """And the table says how many of the kept ones are right, and what share of the images is kept.

    30 dark images and 10 bright ones; every fifth bears the other's name, so that a teacher that
    tells them apart is not always right.
    """
    some = [i for i in range(60) if i % 2 == 0 or i % 3 == 0]
    truth = tiny[0].labels[some].clone()
    truth[::5] = 1 - truth[::5]
    train = Images(tiny[0].images[some], truth, tiny[0].classes, "tiny")
    teacher = replace(TEACHER, recipe=FAST.replace(epochs=10, n=0, dropout=0.0, lr=0.02))
    pool = split(train, 20, 0).unlabeled
    votes = predict(
        Store(tmp_path).model(go([teacher], (train, tiny[1]), tmp_path).key[0]),
        train.images[pool],
        device="cpu",
    )
    if "threshold" in change:
        change = {"threshold": float(votes.max(1).values.median())}
    row = go([replace(STUDENT, teachers=(teacher,), **change)], (train, tiny[1]), tmp_path).iloc[0]  # type: ignore[arg-type]
    more, labels = trainings[1].chosen[20:], trainings[1].targets[20:]
    options = {
        "flip": "flip_average" in change,
        "precision": "bf16" if "recipe" in change else "fp32",
    }
    assert torch.allclose(
        labels, predict(trainings[0].model, train.images[more], device="cpu", **options), atol=1e-6
    )  # type: ignore[arg-type]
    assert Store(tmp_path).record(row.key)["made_with"]["precision"] == options["precision"]
    right, kept = labels.argmax(1) == truth[more], set(more.tolist())
    assert 0 < right.sum() < len(right) and row.pseudo_accuracy == pytest.approx(
        100 * right.float().mean().item()
    )
    assert kept <= set(pool.tolist()) and row.kept == len(kept) / 20
    assert (len(kept) < 20) == ("threshold" in change or "balance" in change) and (
        len(kept) < len(more)
    ) == ("balance" in change)


def test_held_out_labels_are_scored_and_not_trained_on(
    tiny: Pair, tmp_path: Path, trainings: list[Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored, ways = [], list[set[str]]()
    monkeypatch.setattr(
        runs,
        "predict",
        lambda m, x, **k: (scored.append(x), ways.append({*k}), predict(m, x, **k))[2],
    )
    table = go([TEACHER, replace(TEACHER, holdout=0.25)], tiny, tmp_path)
    labelled = split(tiny[0], 20, 0).labeled
    whole, held = trainings
    assert ways == [{"device"}, {"device"}], "in fp32, without the mirror"
    assert torch.equal(whole.chosen, labelled) and torch.equal(scored[0], tiny[1].images)
    others = labelled[~torch.isin(labelled, held.chosen)]
    assert (
        len(held.chosen) == 15
        and len(others) == 5
        and torch.equal(scored[1], tiny[0].images[others])
    )
    assert pd.isna(table.accuracy[1]) and pd.isna(table.validation_accuracy[0])
    go([replace(STUDENT, holdout=0.25, teachers=(replace(TEACHER, holdout=0.25),))], tiny, tmp_path)
    assert len(trainings[2].chosen) == 15 + 40 and not torch.isin(others, trainings[2].chosen).any()
    right = (
        predict(held.model, tiny[0].images[others], device="cpu").argmax(1)
        == tiny[0].labels[others]
    )
    assert table.validation_accuracy[1] == pytest.approx(100 * right.float().mean().item())


def test_noise_of_the_recipe_is_that_of_the_model(
    tiny: Pair, tmp_path: Path, trainings: list[Training]
) -> None:
    go(
        [replace(TEACHER, model="Resnet9", recipe=FAST.replace(dropout=0.3, stochastic_depth=0.6))],
        tiny,
        tmp_path,
    )
    noise = [
        m.p
        for m in trainings[0].model.modules()
        if type(m).__name__ in ("Dropout", "StochasticDepth")
    ]
    assert noise == pytest.approx([0.2, 0.4, 0.6, 0.3])


def test_each_training_has_its_own_first_weights_and_seed(
    tiny: Pair, tmp_path: Path, trainings: list[Training]
) -> None:
    """A further training of the same teacher, one of another split, and a student of equal size
    among them.
    """
    go(
        [
            TEACHER,
            replace(TEACHER, member=1),
            replace(TEACHER, seed=1),
            replace(STUDENT, model="Convnet5"),
        ],
        tiny,
        tmp_path,
    )
    assert len(trainings) == 4
    for a, b in combinations(trainings, 2):
        assert a.seed != b.seed and not torch.equal(a.weights[0], b.weights[0])
    # in the order of the list; the split is the seed's
    for training, seed in zip(trainings, (0, 0, 1, 0), strict=True):
        assert torch.equal(training.chosen[:20], split(tiny[0], 20, seed).labeled)


def test_scores_are_those_of_the_model_alone(tiny: Pair, tmp_path: Path) -> None:
    """Without its mirror's vote, which would change some guesses on images of all shades between
    the two classes.
    """
    shades = torch.linspace(0, 150, 400).view(-1, 1, 1, 1)
    images = (
        torch.randint(0, 100, (400, 3, 16, 16), generator=torch.Generator().manual_seed(0)) + shades
    ).to(torch.uint8)
    test = Images(images, (torch.arange(400) > 100).long(), tiny[0].classes, "tiny")
    row = go(
        [replace(TEACHER, recipe=FAST.replace(epochs=20, n=0, dropout=0.0, lr=0.02))],
        (tiny[0], test),
        tmp_path,
    ).iloc[0]
    guess, mirrored = (
        predict(Store(tmp_path).model(row.key), images, flip=flip, device="cpu").argmax(1)
        for flip in (False, True)
    )
    assert not torch.equal(guess, mirrored)
    expected = confusion_matrix(test.labels, guess)
    assert (
        Store(tmp_path).record(row.key)["result"]["confusion"]
        == expected.tolist()
        != expected.T.tolist()
    )
    assert row.accuracy == pytest.approx(100 * accuracy_score(test.labels, guess))


def test_a_stores_model_refuses_images_of_another_size(tiny: Pair, tmp_path: Path) -> None:
    """Pooling would let it label them without a word; a model that one has built takes any."""
    model = Store(tmp_path).model(go([TEACHER], tiny, tmp_path).key[0])
    wrong = torch.zeros(2, 3, 32, 24, dtype=torch.uint8)
    assert predict(model, tiny[1].images, device="cpu").shape == (len(tiny[1].images), 2)
    with pytest.raises(
        ValueError,
        match="images of 32 x 24 for a model that learnt from images of 16 x 16: give it such",
    ):
        predict(model, wrong, device="cpu")
    assert predict(build("Convnet5", 2), wrong, device="cpu").shape == (2, 2)


def test_workers_train_each_run_once(tiny: Pair, tmp_path: Path) -> None:
    """Two processes give the table that one gives with as many threads, and threads are afterwards
    as they were.
    """
    wanted = [
        replace(STUDENT, seed=seed, teachers=(replace(TEACHER, seed=seed),), pseudo=kind)
        for seed in (0, 1)
        for kind in ("soft", "hard")
    ]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = go(wanted, tiny, tmp_path / "two", workers=2)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        alone = go(wanted, tiny, tmp_path / "one")
        torch.set_num_threads(2)
        key = alone.key[0]
        shutil.rmtree(tmp_path / "two" / key)  # a run that a killed call had not finished
        go(wanted, tiny, tmp_path / "two", workers=2)
        assert Store(tmp_path / "two").record(key)["made_with"]["threads"] == 1, (
            "as many as when all were to be trained"
        )
    finally:
        torch.set_num_threads(threads)
    times = ["seconds", "images_per_second"]
    pd.testing.assert_frame_equal(together.drop(columns=times), alone.drop(columns=times))
    assert all(
        weights(tmp_path / "two", key) == weights(tmp_path / "one", key) for key in alone.key
    )


def test_a_helper_trains_what_the_caller_leaves(
    tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller, which alone is patched, waits with its first run until somebody else has finished
    one.
    """
    real = runs._train_run

    def patient(*arguments: object) -> None:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/run.json")):
            assert time.monotonic() < deadline, "no helper has trained"
            time.sleep(0.05)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(runs, "_train_run", patient)
    assert len(go([TEACHER, replace(TEACHER, seed=1)], tiny, tmp_path, workers=2)) == 2


@pytest.mark.parametrize(
    ("device", "threads", "workers"),
    [("cpu", 1, 1), ("cpu", 3, 3), ("cpu", 4, 4), ("cpu", 64, 4), ("cuda", 64, 1), ("mps", 8, 1)],
)
def test_default_workers(
    device: str, threads: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One a thread on a CPU, at most four; one on a GPU."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert default_workers(torch.device(device)) == workers


@pytest.mark.skipif(
    not hasattr(psutil.Process, "memory_maps"), reason="macOS does not list what a process maps"
)
def test_caller_and_helpers_map_one_copy_of_the_images() -> None:
    images = torch.randint(
        0, 256, (1000, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    before = images.clone()
    with helpers(1, len, images):
        files = {
            m.path
            for m in psutil.Process().memory_maps(grouped=False)
            for low, high in [m.addr.split("-")]
            if int(low, 16) <= images.data_ptr() < int(high, 16)
        }
    assert len(files) == 1 and "noisy_student-" in files.pop()
    assert torch.equal(images, before), "gone with the folder of the file"


PAIR = """
import sys, time, torch
from pathlib import Path
from noisy_student import Recipe, Run, load, run_all, runs
if __name__ == "__main__":
    real = runs._train_run
    def patient(*arguments):
        while not list(Path(sys.argv[1]).glob("*.partial")):
            time.sleep(0.02)  # until the helper, which is not patched, has begun
        real(*arguments)
    runs._train_run = patient
    torch.set_num_threads(2)
    recipe = Recipe(epochs=int(sys.argv[2]), batch_size=20)
    wanted = [Run("Convnet5", 100, recipe, seed=s) for s in range(2)]
    run_all(wanted, *load("digits"), sys.argv[1], device="cpu", workers=2)
"""


def pair(tmp_path: Path, store: str, epochs: int) -> tuple[psutil.Popen, list[psutil.Process]]:
    """A caller with a helper, both at work, each on a run of its own."""
    (tmp_path / "script.py").write_text(PAIR)
    caller = psutil.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / store), str(epochs)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    while len(list(tmp_path.glob(f"{store}/*.partial"))) != 2:
        assert caller.poll() is None
        time.sleep(0.02)
    return caller, helpers_of(caller)


def helpers_of(caller: psutil.Popen) -> list[psutil.Process]:
    found = []
    for process in caller.children():
        with suppress(psutil.NoSuchProcess):  # another short-lived child
            found += [process] if "spawn_main" in " ".join(process.cmdline()) else []
    return found


def test_helpers_end_with_a_killed_caller(tmp_path: Path) -> None:
    caller, helpers = pair(tmp_path, "store", 5000)
    caller.kill()
    caller.wait()
    assert helpers and not psutil.wait_procs(helpers, timeout=30)[1], "a helper outlives its caller"
    assert not list(tmp_path.glob("noisy_student-*")), "what the helpers had mapped is left"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_leaves_none_and_no_file(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C in a terminal, and the end of a batch job, reach helpers that have just been started,
    too.
    """
    (tmp_path / "script.py").write_text(PAIR)
    with (tmp_path / "stderr").open("w") as stderr:
        caller = psutil.Popen(
            [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "store"), "5000"],
            stderr=stderr,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            start_new_session=True,
            # which `make test &` ignores
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        # the caller is at work, its helper still imports torch
        while not (tmp_path / "store" / ".locks").exists():
            assert caller.poll() is None
            time.sleep(0.02)
        helpers = helpers_of(caller)
        os.killpg(caller.pid, number)
        caller.wait()
    assert helpers and not psutil.wait_procs(helpers, timeout=60)[1], "a helper outlives its caller"
    assert not list(tmp_path.glob("noisy_student-*")), "what the helpers had mapped is left"
    traces = (tmp_path / "stderr").read_text().count("Traceback")
    assert traces == (number == signal.SIGINT), "the caller's own"


def test_killed_helper_and_killed_caller_lose_nothing(tmp_path: Path) -> None:
    """The caller finishes what a killed helper left; called again, it finishes what was left when
    it was killed itself.
    """
    whole, _ = pair(tmp_path, "whole", 20)
    assert whole.wait() == 0
    caller, helpers = pair(tmp_path, "helper", 20)
    helpers[0].kill()
    assert caller.wait() == 0
    caller, helpers = pair(tmp_path, "caller", 20)
    caller.kill()
    caller.wait()
    psutil.wait_procs(helpers)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "caller"), "20"]
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    bits = [
        {p.parent.name: p.read_bytes() for p in tmp_path.glob(f"{s}/*/model.safetensors")}
        for s in ("whole", "helper", "caller")
    ]
    assert len(bits[0]) == 2 and bits[0] == bits[1] == bits[2]


def test_error_among_workers_reaches_the_caller(tiny: Pair, tmp_path: Path) -> None:
    bad = [
        replace(TEACHER, recipe=FAST.replace(lr=1e6, schedule="constant", epochs=30), seed=seed)
        for seed in (0, 1)
    ]
    with pytest.raises(FloatingPointError, match="lower recipe"):
        go(bad, tiny, tmp_path, workers=2)


@pytest.mark.parametrize("name", ["run.json", "history.csv", "model.safetensors", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_entry_is_set_aside_and_trained_again(
    tiny: Pair, tmp_path: Path, name: str, damage: str
) -> None:
    before = go([TEACHER], tiny, tmp_path)
    kept = weights(tmp_path, before.key[0])
    path = tmp_path / before.key[0] / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    after = go([TEACHER], tiny, tmp_path)
    assert after.accuracy[0] == before.accuracy[0] and weights(tmp_path, after.key[0]) == kept
    assert len(list(tmp_path.glob(f"{before.key[0]}.damaged-*"))) == 1


def test_entry_of_an_older_version_is_set_aside_and_of_a_newer_refused(
    tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = go([TEACHER], tiny, tmp_path).key[0]
    with monkeypatch.context() as patch:
        patch.setattr(store, "VERSION", store.VERSION + 1)
        go([TEACHER], tiny, tmp_path)
        assert len(list(tmp_path.glob(f"{key}.from-version-{store.VERSION - 1}-*"))) == 1
    with pytest.raises(ValueError, match="newer than this one"):
        go([TEACHER], tiny, tmp_path)
    assert Store(tmp_path).record(key)["version"] == store.VERSION + 1


def test_checkpoint_of_an_older_version_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(tmp_path).save_checkpoint(TEACHER, {"a": torch.zeros(1)}, [], {})
    assert Store(tmp_path).load_checkpoint(TEACHER) is not None
    monkeypatch.setattr(store, "VERSION", store.VERSION + 1)
    assert Store(tmp_path).load_checkpoint(TEACHER) is None


@pytest.mark.parametrize("change", [(b"F32", b"I32"), (b"[2,3]", b"[3,2]")])
def test_checkpoint_of_another_type_or_shape_is_not_used(
    tmp_path: Path, change: tuple[bytes, bytes]
) -> None:
    Store(tmp_path).save_checkpoint(TEACHER, {"a": torch.ones(2, 3)}, [], {})
    (path,) = tmp_path.glob("*/checkpoint.safetensors")
    assert path.read_bytes().count(change[0]) == 1
    path.write_bytes(path.read_bytes().replace(*change))
    assert Store(tmp_path).load_checkpoint(TEACHER) is None


def test_key_of_a_run_that_does_not_know_its_images_is_explained(
    tiny: Pair, tmp_path: Path
) -> None:
    key = go([TEACHER], tiny, tmp_path).key[0]
    assert key != TEACHER.key and Store(tmp_path).model(key)
    with pytest.raises(
        OSError,
        match=rf"{TEACHER.key} is not there: run it, or take its key from run_all's table \(a "
        r"Run's own lacks",
    ):
        Store(tmp_path).model(TEACHER.key)
    with pytest.raises(ValueError, match="history of no runs"):
        Store(tmp_path).history()


def test_teacher_that_is_damaged_after_it_was_found(
    tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student may come hours after its teacher: what it reads is checked then, and the next call
    makes it good.
    """
    key, real = go([TEACHER], tiny, tmp_path).key[0], runs._train_run

    def late(*arguments: object) -> None:
        content = bytearray(weights(tmp_path, key))
        content[-3] ^= 64
        (tmp_path / key / "model.safetensors").write_bytes(content)
        real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(runs, "_train_run", late)
        with pytest.raises(OSError, match=f"{key} is damaged"):
            go([STUDENT], tiny, tmp_path)
    go([STUDENT], tiny, tmp_path)
    assert len(list(tmp_path.glob(f"{key}.damaged-*"))) == 1


def test_link_in_place_of_a_partial_entry_is_refused(tiny: Pair, tmp_path: Path) -> None:
    key = go([TEACHER], tiny, tmp_path / "first").key[0]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / f"{key}.partial").symlink_to(elsewhere)
    with pytest.raises(OSError, match="is a link"):
        go([TEACHER], tiny, tmp_path / "store")
    assert not list(elsewhere.iterdir())


def test_waiting_for_another_process_is_said(
    tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", stop)
    with (
        Store(tmp_path).lock(prepare([TEACHER], *tiny)[0][0]) as mine,
        pytest.raises(KeyboardInterrupt),
    ):
        assert mine
        run_all([TEACHER], *tiny, tmp_path, device="cpu")
    assert "waiting for other processes" in capsys.readouterr().err


def test_resumed_run_counts_all_its_time_and_says_who_began_it(
    tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, real = [], Store.save_checkpoint

    def save_and_stop(*arguments: object) -> None:
        saved.append(arguments[3])
        real(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    threads, run = (
        torch.get_num_threads(),
        replace(TEACHER, recipe=TEACHER.recipe.replace(epochs=4)),
    )
    try:
        with monkeypatch.context() as patch:
            patch.setattr(runs, "CHECKPOINT_SECONDS", 0.0)
            patch.setattr(Store, "save_checkpoint", save_and_stop)
            for _ in range(3):
                with pytest.raises(KeyboardInterrupt):
                    go([run], tiny, tmp_path)
                torch.set_num_threads(3)
        row = go([run], tiny, tmp_path).iloc[0]
    finally:
        torch.set_num_threads(threads)
    history, made = Store(tmp_path).history(row.key), Store(tmp_path).record(row.key)["made_with"]
    assert (
        history.seconds[0] == pytest.approx(saved[0][0]["seconds"])
        and row.seconds > history.seconds.sum()
    )
    assert row.images_per_second == pytest.approx(4 * 20 / history.seconds.sum())
    assert (
        made["threads"] == 3
        and made["resumed_from"]["threads"] == threads
        and "resumed_from" not in made["resumed_from"]
    )


DRIVER = """
import sys, torch
from noisy_student import runs
from noisy_student import load
runs.CHECKPOINT_SECONDS = 0.0
torch.set_num_threads(1)
train, test = load("digits")
recipe = runs.Recipe(epochs=12, batch_size=20, precision="fp32")
runs.run_all([runs.Run("Convnet5", 100, recipe)], train, test, sys.argv[1], device="cpu")
"""


def test_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    def start(store: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tmp_path / store)], stderr=subprocess.DEVNULL
        )

    assert start("whole").wait() == 0
    (entry,) = (tmp_path / "whole").glob("*/run.json")
    key = entry.parent.name
    process = start("killed")
    while not (tmp_path / "killed" / f"{key}.partial" / "checkpoint.safetensors").exists():
        assert process.poll() is None, "it ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / key).exists()
    assert start("killed").wait() == 0
    assert weights(tmp_path / "whole", key) == weights(tmp_path / "killed", key)
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == [".locks", key]


def test_two_processes_train_a_run_once(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [p.wait() for p in processes] == [0, 0]
    (entry,) = tmp_path.glob("*/run.json")
    assert json.loads(entry.read_text())["key"] == entry.parent.name
    assert sorted(p.name for p in tmp_path.iterdir()) == [".locks", entry.parent.name]


def test_damaged_checkpoint_is_not_used_nor_executed(
    tiny: Pair, tmp_path: Path, evil: bytes
) -> None:
    key = go([TEACHER], tiny, tmp_path / "whole").key[0]
    partial = tmp_path / "other" / f"{key}.partial"
    partial.mkdir(parents=True)
    (partial / "checkpoint.safetensors").write_bytes(evil)
    go([TEACHER], tiny, tmp_path / "other")
    (tmp_path / "other" / key / "model.safetensors").write_bytes(evil)
    go([TEACHER], tiny, tmp_path / "other")
    assert weights(tmp_path / "whole", key) == weights(tmp_path / "other", key)


def test_full_disk(tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(
            OSError,
            match=r"could not be written \(No space left on device\): [\d,]+ bytes are needed",
        ):
            go([TEACHER], tiny, tmp_path)
    assert [p.name for p in tmp_path.rglob("*.partial")] == [
        f"{TEACHER.bind(data_key(*tiny), '').key}.partial"
    ], "and nothing in it"
    assert not list(tmp_path.glob("*.partial/*"))
    assert len(go([TEACHER], tiny, tmp_path)) == 1


@pytest.mark.parametrize("change", [{"holdout": 0.01}, {"holdout": 0.9, "labels": 10}])
def test_holdout_that_leaves_too_few_labels_is_refused(
    tiny: Pair, tmp_path: Path, change: dict[str, float]
) -> None:
    with pytest.raises(
        ValueError, match=r"to learn 2 classes from and .* to validate on: raise labels"
    ):
        go([replace(TEACHER, **change)], tiny, tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"classes": ("dark", "bright")},
            "class 1 is 'light' of the training set and 'bright' of the test set",
        ),
        ({"classes": ("light", "dark")}, "class 0 is 'dark' of the training set and 'light'"),
        ({"classes": ("dark", "light", "grey")}, "class 2 is None of the training set and 'grey'"),
        (
            {"images": torch.zeros(20, 3, 20, 16, dtype=torch.uint8)},
            "training images are 3x16x16 and the test images 3x20x16",
        ),
        ({"labels": torch.tensor([-1, 0, -1] + 17 * [1])}, "2 test images have no label"),
        ({"images": torch.zeros(20, 3, 16, 16)}, "images are torch.float32, not uint8"),
        (
            {
                "images": torch.zeros(0, 3, 16, 16, dtype=torch.uint8),
                "labels": torch.zeros(0, dtype=torch.int64),
            },
            "the test set has no image",
        ),
    ],
)
def test_test_set_that_does_not_fit_is_refused(
    tiny: Pair, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        go([TEACHER], (tiny[0], replace(tiny[1], **change)), tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_crop_beyond_the_images_is_refused_before_the_teacher_is_trained(
    tiny: Pair, tmp_path: Path
) -> None:
    """Of an image of 16 pixels a side, reflection shows at most the 15 beside the border."""
    with pytest.raises(
        ValueError,
        match=r"^Convnet6 soft from Convnet5, 20 labels, seed 0: "
        r"crop=16 .* 0 to 15, .* 16x16 .*recipe\.crop",
    ):
        go([replace(STUDENT, recipe=FAST.replace(crop=16))], tiny, tmp_path)
    assert not list(tmp_path.iterdir())
    go([replace(STUDENT, recipe=FAST.replace(crop=15))], tiny, tmp_path)


def test_ensembles_of_ensembles_are_listed_once(tiny: Pair) -> None:
    """3 to the 20th paths lead to the first teachers of such a chain."""
    run = TEACHER
    for _ in range(20):
        run = replace(STUDENT, teachers=run.members(3))
    _, ordered, _ = prepare([run], *tiny)
    assert len(ordered) == len({r.key for r in ordered}) == 3 * 20 + 1
    places = {r.key: i for i, r in enumerate(ordered)}
    assert all(places[teacher.key] < places[r.key] for r in ordered for teacher in r.teachers)


def test_no_run_and_no_worker(tiny: Pair, tmp_path: Path) -> None:
    assert go([], tiny, tmp_path).empty
    with pytest.raises(
        ValueError, match=r"Convnet5, 20 labels, seed 0 is one Run: run_all takes a list"
    ):
        go(TEACHER, tiny, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="workers=0 is not a whole number from 1"):
        go([TEACHER], tiny, tmp_path, workers=0)


def test_saved_split(tiny: Pair, tmp_path: Path, trainings: list[Training]) -> None:
    drawn = split(tiny[0], 20, seed=7)
    table = go([TEACHER], tiny, tmp_path, saved_split=drawn)
    assert torch.equal(trainings[0].chosen, drawn.labeled)
    assert Store(tmp_path).record(table.key[0])["run"]["split"] == drawn.key
    with pytest.raises(ValueError, match="other data"):
        go([TEACHER], (tiny[1], tiny[0]), tmp_path, saved_split=drawn)


def test_filter_and_balance() -> None:
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.75, 0.25], [0.3, 0.7], [0.45, 0.55]])
    kept, targets = pseudo_labels(p, replace(STUDENT, threshold=0.65))
    assert kept.tolist() == [0, 2, 3, 4] and torch.allclose(targets, p[kept])
    assert pseudo_labels(p, replace(STUDENT, threshold=0.75))[0].tolist() == [0, 2, 3], (
        "what is just as sure is kept"
    )
    kept, targets = pseudo_labels(p, replace(STUDENT, threshold=0.65, balance=True, pseudo="hard"))
    assert sorted(kept.tolist()) == [0, 2, 4, 4] and targets.sum(0).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("run", "change", "message"),
    [
        (TEACHER, {"model": "Resnet8"}, "model 'Resnet8'"),
        (STUDENT, {"pseudo": "softish"}, "pseudo-label kind 'softish'"),
        (STUDENT, {"pseudo": "none"}, "pseudo-label kind 'none'"),
        (STUDENT, {"teachers": TEACHER}, "is not a tuple of Runs"),
        (TEACHER, {"recipe": "quick"}, "recipe='quick' is not a Recipe"),
        (STUDENT, {"threshold": 2}, "threshold=2 is not a number from 0 to 1"),
        (TEACHER, {"holdout": -1}, "holdout=-1 is not a number from 0 to 0.9"),
        (TEACHER, {"labels": 1}, "labels=1 is not a whole number from 2"),
        (STUDENT, {"repeat_labels": 0}, "repeat_labels=0 is not a whole number from 1"),
        (STUDENT, {"repeat_labels": 10**6}, "repeat_labels=1000000 is not .* to 1,000"),
        (TEACHER, {"member": -1}, "member=-1 is not a whole number from 0"),
        (TEACHER, {"seed": -1}, "seed=-1 is not a whole number from 0"),
        (TEACHER, {"seed": True}, "seed=True is not a whole number from 0"),
        (STUDENT, {"balance": 1}, "balance=1 is neither True nor False"),
        (STUDENT, {"flip_average": 0}, "flip_average=0 is neither True nor False"),
        (STUDENT, {"seed": 1}, "seed=1 of a student and seed=0 of its teacher"),
        (STUDENT, {"labels": 30}, "labels=30 of a student and labels=20 of its teacher"),
        (STUDENT, {"holdout": 0.5}, "holdout=0.5 of a student and holdout=0.0 of its teacher"),
    ],
)
def test_bad_runs(run: Run, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(run, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 0.8},
        {"balance": True},
        {"flip_average": True},
        {"pseudo": "hard"},
        {"repeat_labels": 2},
    ],
)
def test_a_run_without_a_teacher_has_no_option_of_a_student(change: dict[str, object]) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=f"{name}=.* without teachers"):
        replace(TEACHER, **change)  # type: ignore[arg-type]


def test_the_stored_model_is_ready_for_use(tiny: Pair, tmp_path: Path) -> None:
    """In evaluation mode, so that it may be called as it is; with the recipe's noise, so that it
    may be trained further.
    """
    key = go(
        [replace(TEACHER, model="Resnet9", recipe=FAST.replace(dropout=0.3, stochastic_depth=0.6))],
        tiny,
        tmp_path,
    ).key[0]
    model, few = Store(tmp_path).model(key), tiny[1].images[:4]
    assert not any(module.training for module in model.modules())
    assert torch.allclose(model(normalise(few)).softmax(1), predict(model, few))
    noise = [m.p for m in model.modules() if type(m).__name__ in ("Dropout", "StochasticDepth")]
    assert noise == pytest.approx([0.2, 0.4, 0.6, 0.3])


def test_more_labels_than_images_and_no_pseudo_label(tiny: Pair, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="61 labelled images wanted"):
        go([replace(TEACHER, labels=61)], tiny, tmp_path)
    with pytest.raises(ValueError, match="all 60 images are labelled"):
        go([replace(STUDENT, labels=60, teachers=(replace(TEACHER, labels=60),))], tiny, tmp_path)
    with pytest.raises(ValueError, match="no pseudo-label reaches threshold=1: lower threshold"):
        go(
            [
                replace(
                    STUDENT,
                    threshold=1.0,
                    teachers=(replace(TEACHER, recipe=FAST.replace(lr=1e-9)),),
                )
            ],
            tiny,
            tmp_path,
        )


def test_many_unlabelled_images_have_their_labels_in_order(
    tiny: Pair, tmp_path: Path, trainings: list[Training]
) -> None:
    """More than are predicted at once."""
    train = Images(
        tiny[0].images.repeat(100, 1, 1, 1), tiny[0].labels.repeat(100), tiny[0].classes, "tiny"
    )
    teacher = replace(TEACHER, recipe=FAST.replace(epochs=10, lr=0.02))
    go(
        [replace(STUDENT, teachers=(teacher,), recipe=FAST.replace(epochs=1, batch_size=500))],
        (train, tiny[1]),
        tmp_path,
    )
    few = slice(20, None, 50)
    expected = predict(trainings[0].model, train.images[trainings[1].chosen[few]], device="cpu")
    assert torch.allclose(trainings[1].targets[few], expected, atol=1e-5)


def test_pseudo_labels_of_images_without_a_label_are_neither_right_nor_wrong(
    tiny: Pair, tmp_path: Path, trainings: list[Training]
) -> None:
    labels = tiny[0].labels.clone()
    labels[40:] = -1
    train = Images(tiny[0].images, labels, tiny[0].classes, "tiny")
    row = go([STUDENT], (train, tiny[1]), tmp_path / "some").iloc[0]
    truth, given = labels[trainings[1].chosen[20:]], trainings[1].targets[20:].argmax(1)
    assert (truth < 0).sum() == 20 and row.pseudo_accuracy == pytest.approx(
        100 * accuracy_score(truth[truth >= 0], given[truth >= 0])
    )
    labels[split(train, 20, 0).unlabeled] = -1
    assert math.isnan(
        go([STUDENT], (replace(train, labels=labels), tiny[1]), tmp_path / "none").pseudo_accuracy[
            0
        ]
    )


def test_checkpoints_are_ten_seconds_and_an_epoch_apart_at_most(
    tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    clock = itertools.count(0, 4)  # an epoch, and a save, take four seconds
    monkeypatch.setattr(runs.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(
        Store, "save_checkpoint", lambda *arguments: saved.append(len(arguments[3]))
    )
    go([replace(TEACHER, recipe=FAST.replace(epochs=9))], tiny, tmp_path)
    assert saved == [3, 6]


def test_members_begin_with_the_run_itself() -> None:
    assert [t.member for t in replace(TEACHER, member=4).members(2)] == [4, 5]


def test_a_seed_goes_through_all_generations() -> None:
    run = replace(
        STUDENT, teachers=replace(STUDENT, teachers=TEACHER.members(2)).members(2)
    ).throughout(seed=3)
    assert {r.seed for r in runs.teachers_first([run])} == {3} and len(
        runs.teachers_first([run])
    ) == 5


def test_variants_with_seeds_of_their_own(tiny: Pair, tmp_path: Path) -> None:
    table = runs.run_variants(
        {"alone": TEACHER, "student": STUDENT},
        {"alone": (0, 1), "student": (1,)},
        *tiny,
        tmp_path,
        device="cpu",
        progress=False,
    )
    assert list(zip(table.variant, table.seed, strict=True)) == [
        ("alone", 0),
        ("alone", 1),
        ("student", 1),
    ]


def test_balanced_accuracy_is_that_of_scikit_learn(tiny: Pair, tmp_path: Path) -> None:
    test = Images(tiny[1].images[:15], torch.tensor([0] * 12 + [1] * 3), tiny[1].classes, "tiny")
    row = go([TEACHER], (tiny[0], test), tmp_path).iloc[0]
    guess = predict(Store(tmp_path).model(row.key), test.images, device="cpu").argmax(1)
    assert row.balanced_accuracy == pytest.approx(100 * balanced_accuracy_score(test.labels, guess))
    assert (
        row.balanced_accuracy
        != row.accuracy
        == pytest.approx(100 * accuracy_score(test.labels, guess))
    )


def test_pseudo_labels_by_class_and_a_class_without_any(
    tiny: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bright = split(tiny[0], 20, 0).unlabeled
    bright = bright[tiny[0].labels[bright] == 1]
    order = torch.cat([split(tiny[0], 20, 0).labeled, bright])
    train = replace(
        tiny[0],
        images=tiny[0].images[order],
        labels=torch.cat([tiny[0].labels[order[:20]], torch.full((len(bright),), -1)]),
    )
    teacher = replace(TEACHER, recipe=FAST.replace(epochs=20, n=0, dropout=0.0, lr=0.02))
    key = go([replace(STUDENT, teachers=(teacher,))], (train, tiny[1]), tmp_path).key[0]
    found = Store(tmp_path).record(key)["result"]
    assert found["pseudo_counts"] == [0, len(bright)] and 0.5 < found["pseudo_confidence"][1] <= 1
    assert (
        "no pseudo-label of the class dark: the teachers give it to no unlabelled image"
        in capsys.readouterr().out
    )


def test_threads_do_not_change_each_others_bits(tiny: Pair, tmp_path: Path) -> None:
    """torch's generator is one for the process; each thread's runs must be those of a process of
    their own.
    """
    wanted = [
        [
            replace(TEACHER, seed=seed, recipe=FAST.replace(epochs=5)),
            replace(STUDENT, seed=seed, teachers=(replace(TEACHER, seed=seed),)),
        ]
        for seed in range(3)
    ]
    alone = [go(some, tiny, tmp_path / "alone") for some in wanted]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda some: go(some, tiny, tmp_path / "together"), wanted))
    for one, other in zip(alone, together, strict=True):
        assert list(one.key) == list(other.key)
        assert [
            weights(tmp_path / "alone", k) == weights(tmp_path / "together", k) for k in one.key
        ] == [True, True]


def test_few_images_are_trained_for_the_least_number_of_steps(tiny: Pair, tmp_path: Path) -> None:
    """20 images in batches of 10 are two steps an epoch; a student's 60 are six."""
    least = FAST.replace(min_steps=31)
    table = go(
        [replace(TEACHER, recipe=least), replace(STUDENT, recipe=least), TEACHER], tiny, tmp_path
    )
    assert list(table.steps) == [32, 36, 4] and list(
        Store(tmp_path).history(table.key[1]).epoch
    ) == [1, 2, 3, 4, 5, 6]
