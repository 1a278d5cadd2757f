import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from noisy_student import Recipe, Run, Store, predict, run_all, runs, split, store
from noisy_student.data import Images
from noisy_student.runs import pseudo_labels

FAST = Recipe(epochs=2, batch_size=10, n=1, precision="fp32")
TEACHER = Run("Convnet5", 20, FAST)
STUDENT = Run("Convnet6", 20, FAST, TEACHER, "soft")
Pair = tuple[Images, Images]


def go(runs: list[Run], data: Pair, store: Path, **options: object) -> pd.DataFrame:
    return run_all(runs, *data, store, device="cpu", progress=False, **options)  # type: ignore[arg-type]


def weights(store: Path, key: str) -> bytes:
    return (store / key / "model.safetensors").read_bytes()


def test_table_and_store(tiny: Pair, tmp_path: Path) -> None:
    table = go([STUDENT, TEACHER], tiny, tmp_path)
    assert list(table.model) == ["Convnet6", "Convnet5"] and list(table.generation) == [1, 0]
    assert table.accuracy.between(0, 100).all() and table.title.eq("tiny").all()
    assert sorted(p.name for p in (tmp_path / table.key[0]).iterdir()) == ["SHA256SUMS", "history.csv", "model.safetensors", "run.json"]
    record = Store(tmp_path).record(table.key[0])
    assert record["made_with"]["torch"] == torch.__version__ and record["made_with"]["threads"] == torch.get_num_threads()
    assert sum(map(sum, record["result"]["confusion"])) == len(tiny[1])
    assert list(Store(tmp_path).history(table.key[0]).epoch) == [1, 2]


def test_finished_runs_are_not_trained_again(tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = go([STUDENT], tiny, tmp_path)
    monkeypatch.setattr(runs, "train", lambda *a, **k: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(first, go([STUDENT], tiny, tmp_path))


def test_same_run_same_bits_in_any_order(tiny: Pair, tmp_path: Path) -> None:
    other = replace(TEACHER, seed=5)
    a, b = go([TEACHER, other], tiny, tmp_path / "a"), go([other, TEACHER], tiny, tmp_path / "b")
    assert weights(tmp_path / "a", a.key[0]) == weights(tmp_path / "b", b.key[1])
    assert weights(tmp_path / "a", a.key[0]) != weights(tmp_path / "a", a.key[1])


def test_every_field_changes_the_key() -> None:
    alone = {"labels": 30, "seed": 1, "holdout": 0.2}  # the same for a student and its teacher
    changes = {"model": "Resnet9", "recipe": FAST.replace(lr=0.3), "teacher": replace(TEACHER, member=3), "pseudo": "hard",
               "threshold": 0.5, "balance": True, "temperature": 0.5, "repeat_labels": 2, "ensemble": 2, "member": 1,
               "flip_average": True, "data": "x", "split": "y"}
    assert {*alone, *changes} == {f.name for f in fields(Run)}
    keys = {STUDENT.key, *(replace(STUDENT, **{name: value}).key for name, value in changes.items()),
            TEACHER.key, *(replace(TEACHER, **{name: value}).key for name, value in alone.items())}
    assert len(keys) == len(changes) + len(alone) + 2
    assert Run("Convnet6", 20, FAST, Run("Convnet5", 20, FAST), "soft").key == STUDENT.key
    assert replace(STUDENT, recipe=FAST.replace(m=10), threshold=0, holdout=0).key == STUDENT.key, "10 and 10.0 are one"


def test_no_test_image_reaches_training(tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training images are even, test images odd, pixel by pixel: all that train() gets must be even, and labelled right."""
    even = Images(tiny[0].images // 2 * 2, tiny[0].labels, tiny[0].classes, "tiny")
    odd = Images(tiny[1].images // 2 * 2 + 1, tiny[1].labels, tiny[1].classes, "tiny")
    seen, real = [], runs.train
    monkeypatch.setattr(runs, "train", lambda m, x, t, *a, **k: (seen.append((x, t)), real(m, x, t, *a, **k))[1])
    go([STUDENT, replace(TEACHER, holdout=0.2)], (even, odd), tmp_path)
    assert all((x % 2 == 0).all() for x, _ in seen)
    assert [len(x) for x, _ in seen] == [20, 60, 16]
    labelled = split(even, 20, 0).labeled
    assert torch.equal(seen[1][1][:20].argmax(1), even.labels[labelled])


def test_labels_are_repeated_for_students(tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], runs.train
    monkeypatch.setattr(runs, "train", lambda m, x, t, *a, **k: (seen.append(x), real(m, x, t, *a, **k))[1])
    go([replace(STUDENT, repeat_labels=3)], tiny, tmp_path)
    assert [len(x) for x in seen] == [20, 3 * 20 + 40] and torch.equal(seen[1][:20], seen[1][40:60])


def test_ensemble_of_teachers_averages_their_predictions(tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = replace(STUDENT, ensemble=2)
    seen, real = [], runs.train
    monkeypatch.setattr(runs, "train", lambda m, x, t, *a, **k: (seen.append(t), real(m, x, t, *a, **k))[1])
    table = go([student, TEACHER, replace(TEACHER, member=1)], tiny, tmp_path)
    assert len(seen) == 3, "the teacher of the student is the run without one, trained once"
    pool = tiny[0].images[split(tiny[0], 20, 0).unlabeled]
    votes = [predict(Store(tmp_path).model(key), pool, device="cpu") for key in table.key[1:]]
    assert not torch.equal(*votes)
    assert torch.allclose(seen[2][20:], (votes[0] + votes[1]) / 2, atol=1e-6)


def test_workers_train_each_run_once(tiny: Pair, tmp_path: Path) -> None:
    """Two processes give the table that one gives with as many threads, and threads are afterwards as they were."""
    wanted = [replace(STUDENT, seed=seed, teacher=replace(TEACHER, seed=seed), pseudo=kind) for seed in (0, 1) for kind in ("soft", "hard")]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = go(wanted, tiny, tmp_path / "two", workers=2)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        alone = go(wanted, tiny, tmp_path / "one")
    finally:
        torch.set_num_threads(threads)
    times = ["seconds", "images_per_second"]
    pd.testing.assert_frame_equal(together.drop(columns=times), alone.drop(columns=times))
    assert all(weights(tmp_path / "two", key) == weights(tmp_path / "one", key) for key in alone.key)


def test_a_helper_trains_what_the_caller_leaves(tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller, which alone is patched, waits with its first run until somebody else has finished one."""
    real = runs._train_run

    def patient(*arguments: object) -> None:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/run.json")):
            assert time.monotonic() < deadline, "no helper has trained"
            time.sleep(0.05)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(runs, "_train_run", patient)
    assert len(go([TEACHER, replace(TEACHER, seed=1)], tiny, tmp_path, workers=2)) == 2


def test_helpers_end_with_a_killed_caller(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys\nfrom noisy_student import Recipe, Run, load, run_all\nif __name__ == '__main__':\n"
                      "    wanted = [Run('Convnet5', 100, Recipe(epochs=5000, batch_size=20), seed=s) for s in range(2)]\n"
                      "    run_all(wanted, *load('digits'), sys.argv[1], device='cpu', workers=2)\n")
    caller = psutil.Popen([sys.executable, str(script), str(tmp_path / "store")], stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob("store/*.partial"))) != 2:
        assert caller.poll() is None
        time.sleep(0.05)
    helpers = caller.children(recursive=True)
    caller.kill()
    caller.wait()
    assert helpers and not psutil.wait_procs(helpers, timeout=30)[1], "a helper outlives its caller"


def test_error_among_workers_reaches_the_caller(tiny: Pair, tmp_path: Path) -> None:
    bad = [replace(TEACHER, recipe=FAST.replace(lr=1e6, schedule="constant", epochs=30), seed=seed) for seed in (0, 1)]
    with pytest.raises(FloatingPointError, match="lower recipe"):
        go(bad, tiny, tmp_path, workers=2)


def test_holdout_does_not_score_the_test_images(tiny: Pair, tmp_path: Path) -> None:
    row = go([replace(TEACHER, holdout=0.25)], tiny, tmp_path).iloc[0]
    assert pd.isna(row.accuracy) and 0 <= row.validation_accuracy <= 100


@pytest.mark.parametrize("name", ["run.json", "history.csv", "model.safetensors", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_entry_is_set_aside_and_trained_again(tiny: Pair, tmp_path: Path, name: str, damage: str) -> None:
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


def test_entry_of_an_older_version_is_set_aside(tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = go([TEACHER], tiny, tmp_path).key[0]
    monkeypatch.setattr(store, "VERSION", store.VERSION + 1)
    go([TEACHER], tiny, tmp_path)
    assert len(list(tmp_path.glob(f"{key}.from-version-{store.VERSION - 1}-*"))) == 1


DRIVER = """
import sys, torch
from noisy_student import runs
from noisy_student.data import load
runs.CHECKPOINT_SECONDS = 0.0
torch.set_num_threads(1)
train, test = load("digits")
runs.run_all([runs.Run("Convnet5", 100, runs.Recipe(epochs=12, batch_size=20, precision="fp32"))], train, test, sys.argv[1], device="cpu")
"""


def test_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    def start(store: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path / store)], stderr=subprocess.DEVNULL)

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
    processes = [subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [p.wait() for p in processes] == [0, 0]
    (entry,) = tmp_path.glob("*/run.json")
    assert json.loads(entry.read_text())["key"] == entry.parent.name
    assert sorted(p.name for p in tmp_path.iterdir()) == [".locks", entry.parent.name]


def test_damaged_checkpoint_is_not_used_nor_executed(tiny: Pair, tmp_path: Path) -> None:
    key = go([TEACHER], tiny, tmp_path / "whole").key[0]
    partial = tmp_path / "other" / f"{key}.partial"
    partial.mkdir(parents=True)
    (partial / "checkpoint.safetensors").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    go([TEACHER], tiny, tmp_path / "other")
    assert weights(tmp_path / "whole", key) == weights(tmp_path / "other", key)
    assert not Path("pwned").exists()


def test_full_disk(tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"could not be written \(No space left on device\): \d+\.\d MB are needed"):
            go([TEACHER], tiny, tmp_path)
    assert not list(tmp_path.glob("*/*.tmp")) and not list(tmp_path.glob("*/run.json"))
    assert len(go([TEACHER], tiny, tmp_path)) == 1


@pytest.mark.parametrize("change", [{"holdout": 0.01}, {"holdout": 0.9, "labels": 10}])
def test_holdout_that_leaves_too_few_labels_is_refused(tiny: Pair, tmp_path: Path, change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"to learn 2 classes from and .* to validate on: raise labels"):
        go([replace(TEACHER, **change)], tiny, tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_no_run_and_no_worker(tiny: Pair, tmp_path: Path) -> None:
    assert go([], tiny, tmp_path).empty
    with pytest.raises(ValueError, match="workers=0 is not a whole number from 1"):
        go([TEACHER], tiny, tmp_path, workers=0)


def test_saved_split(tiny: Pair, tmp_path: Path) -> None:
    drawn = split(tiny[0], 20, seed=7)
    table = go([TEACHER], tiny, tmp_path, saved_split=drawn)
    assert Store(tmp_path).record(table.key[0])["run"]["split"] == drawn.key
    with pytest.raises(ValueError, match="other data"):
        go([TEACHER], (tiny[1], tiny[0]), tmp_path, saved_split=drawn)


def test_filter_and_balance() -> None:
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.7, 0.3], [0.3, 0.7], [0.45, 0.55]])
    kept, targets = pseudo_labels(p, replace(STUDENT, threshold=0.65))
    assert kept.tolist() == [0, 2, 3, 4] and torch.allclose(targets, p[kept])
    kept, targets = pseudo_labels(p, replace(STUDENT, threshold=0.65, balance=True, pseudo="hard"))
    assert sorted(kept.tolist()) == [0, 2, 4, 4] and targets.sum(0).tolist() == [2, 2]


def test_temperature_sharpens_soft_labels() -> None:
    p = torch.tensor([[0.8, 0.2], [0.5, 0.5], [1.0, 0.0]])
    sharp = pseudo_labels(p, replace(STUDENT, temperature=0.5))[1]
    assert torch.allclose(sharp, torch.tensor([[16 / 17, 1 / 17], [0.5, 0.5], [1.0, 0.0]]))
    assert torch.allclose(pseudo_labels(p, STUDENT)[1], p)
    hard = replace(STUDENT, pseudo="hard")
    assert torch.equal(pseudo_labels(p, hard)[1], pseudo_labels(p, replace(hard, temperature=0.5))[1])


@pytest.mark.parametrize("change", [{"model": "Resnet8"}, {"pseudo": "softish"}, {"pseudo": "none"}, {"threshold": 2}, {"holdout": -1},
                                    {"labels": 1}, {"temperature": 0}, {"repeat_labels": 0}, {"ensemble": 0}, {"ensemble": 1.5},
                                    {"member": -1}, {"seed": -1}, {"seed": True},
                                    {"seed": 1}, {"labels": 30}, {"holdout": 0.5}])
def test_bad_runs(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        replace(STUDENT, **change)  # type: ignore[arg-type]


def test_more_labels_than_images_and_no_pseudo_label(tiny: Pair, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="61 labelled images wanted"):
        go([replace(TEACHER, labels=61)], tiny, tmp_path)
    with pytest.raises(ValueError, match="all 60 images are labelled"):
        go([replace(STUDENT, labels=60, teacher=replace(TEACHER, labels=60))], tiny, tmp_path)
    with pytest.raises(ValueError, match="no pseudo-label reaches"):
        go([replace(STUDENT, threshold=1.0, teacher=replace(TEACHER, recipe=FAST.replace(lr=1e-9)))], tiny, tmp_path)
    assert not list(tmp_path.glob("*.tmp"))
