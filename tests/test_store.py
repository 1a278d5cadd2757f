"""What the store refuses, names, and leaves alone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from noisy_student import Recipe, Run, Store
from noisy_student.models import build
from noisy_student.store import DamagedError

RUN = Run("Convnet5", 20, Recipe(epochs=1, batch_size=10))
HISTORY = {"epoch": [1], "loss": [0.5], "accuracy": [50.0], "lr": [0.1], "seconds": [1.0]}


def commit(
    store: Store,
    run: Run,
    classes: tuple[str, ...] | None = ("cat", "dog"),
    git: str | None = None,
    **result: object,
) -> Path:
    """An entry as a training makes it, with random weights and a confusion of 3 and 1 right; its
    folder.
    """
    model = build(
        run.model,
        len(classes or "ab"),
        dropout=run.recipe.dropout,
        stochastic_depth=run.recipe.stochastic_depth,
    )
    said = {
        "model": run.model,
        "recipe": {"dropout": run.recipe.dropout, "stochastic_depth": run.recipe.stochastic_depth},
    }
    found = {
        "confusion": [[3, 0], [2, 1]],
        "image_size": [16, 16],
        **({"classes": classes} if classes else {}),
        **result,
    }
    record = {"key": run.key, "run": said, "result": found, "made_with": {"git": git}}
    store.commit(
        run,
        record,
        [dict(zip(HISTORY, row, strict=True)) for row in zip(*HISTORY.values(), strict=True)],
        model.state_dict(),
    )
    return store.folder / run.key


def test_a_model_knows_its_classes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    commit(store, RUN)
    model = store.model(RUN.key, ["cat", "dog"])
    assert model.classes == ("cat", "dog") and model.image_size == [16, 16]
    # a class folder made since shifts every name
    for names in (["arrow", "cat", "dog"], ["dog", "cat"], ["cat"]):
        with pytest.raises(
            ValueError,
            match=rf"class \d is .* of the model {RUN.key} and .* of the names given: "
            r"give both the same",
        ):
            store.model(RUN.key, names)
    old = replace(RUN, seed=1)
    commit(store, old, classes=None)
    assert store.model(old.key).classes is None and store.model(old.key, ["a", "b"]).classes is None
    with pytest.raises(
        ValueError, match=r"class 2 is None of the model .* and 'c' of the names given"
    ):
        store.model(old.key, ["a", "b", "c"])


@pytest.mark.parametrize("read", ["record", "history", "model"])
def test_a_sound_entry_of_another_run_is_not_read(tmp_path: Path, read: str) -> None:
    """Such as a teacher's, replaced between its training and its student's."""
    store, other = Store(tmp_path), replace(RUN, seed=5)
    shutil.rmtree(commit(store, RUN))
    commit(store, other).rename(tmp_path / RUN.key)
    with pytest.raises(
        DamagedError, match=f"{RUN.key} holds another run, {other.key}: run it again"
    ):
        getattr(store, read)(RUN.key)


def test_entries_of_another_revision_are_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("noisy_student.store.git_revision", lambda: "new")
    wanted = [replace(RUN, seed=seed) for seed in range(4)]
    for run, git in zip(wanted, ("new", None, "old", "older"), strict=True):
        commit(Store(tmp_path), run, git=git)
    store = Store(tmp_path)
    assert all(map(store.find, wanted))
    said = capsys.readouterr().out
    assert (
        said.count("was made by revision") == 1
        and f"{wanted[2].key} was made by revision old of the code, this is new" in said
    )
    assert store.find(wanted[0]) and not capsys.readouterr().out
    # an installed package, of which git does not know
    monkeypatch.setattr("noisy_student.store.git_revision", lambda: None)
    assert all(map(Store(tmp_path).find, wanted)) and not capsys.readouterr().out


def test_what_only_looks_like_scratch_stays_in_an_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = commit(store, RUN)
    for name in (
        "thesis.partial",
        ".notes.partial",
        f".run.json.{'0' * 32}.partial",
        "checkpoint.safetensors",
    ):
        (entry / name).touch()
    assert store.find(RUN)
    assert {p.name for p in entry.iterdir()} == {
        "SHA256SUMS",
        "run.json",
        "history.csv",
        "model.safetensors",
        "thesis.partial",
        ".notes.partial",
    }


def test_unfinished_trainings_are_named_and_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    begun = [replace(RUN, seed=seed) for seed in range(4)]
    for run in begun:
        store.save_checkpoint(run, {"a": torch.zeros(1)}, [], {})
    folders = [tmp_path / f"{run.key}.partial" for run in begun]
    (folders[2] / "thesis.txt").write_text("mine")
    with store.lock(begun[0]):  # another process is at it
        assert store.unfinished() == sorted(folders[1:])
        assert store.unfinished([begun[1]]) == sorted(folders[2:])
        assert store.tidy() == sorted([folders[1], folders[3]])
    assert sorted(p for p in tmp_path.iterdir() if p.suffix == ".partial") == sorted(
        [folders[0], folders[2]]
    )
    assert [p.name for p in folders[2].iterdir()] == ["thesis.txt"] and store.load_checkpoint(
        begun[0]
    ) is not None


def test_a_thousand_classes_are_a_small_record(tmp_path: Path) -> None:
    counts = torch.bincount(
        torch.randint(0, 10**6, (10_000,), generator=torch.Generator().manual_seed(0)),
        minlength=10**6,
    )
    counts = counts.view(1000, 1000).tolist()
    store = Store(tmp_path)
    entry = commit(store, RUN, confusion=counts)
    assert (entry / "run.json").stat().st_size < 300_000
    assert (
        store.record(RUN.key)["result"]["confusion"]
        == counts
        == store.find(RUN)["result"]["confusion"]
    )  # type: ignore[index]


def test_counts_as_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an earlier version wrote them."""
    store = Store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("noisy_student.store._sparse", lambda rows: rows)
        entry = commit(store, RUN)
    assert json.loads((entry / "run.json").read_bytes())["result"]["confusion"] == [[3, 0], [2, 1]]
    assert store.record(RUN.key)["result"]["confusion"] == [[3, 0], [2, 1]] and store.model(RUN.key)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store("~/runs").folder == tmp_path / "runs"
