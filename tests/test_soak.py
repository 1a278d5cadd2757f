"""Faults for real, by the hundred: `make soak`, about 15 minutes. docs/reliability.md says what each test proves."""

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jupyter_client
import numpy as np
import pytest

from noisy_student import Images, Recipe, Run, Split, Store, load, run_all, split

pytestmark = pytest.mark.soak

# Four runs, two of them a chain, with a checkpoint after every epoch. Each epoch that was trained is noted in a log.
DRIVER = """
import os, sys, torch
from noisy_student import Recipe, Run, load, run_all, runs
runs.CHECKPOINT_SECONDS = 0.0
torch.set_num_threads(1)
store, log = sys.argv[1:3]
real = runs.train

def train(model, images, targets, recipe, *, title, checkpoint, resume, **options):
    def noted(state, history):
        with open(log, "a") as file:
            file.write(f"{title}|{len(history)}\\n")
        checkpoint(state, history)
    history = real(model, images, targets, recipe, title=title, checkpoint=noted, resume=resume, **options)
    with open(log, "a") as file:
        file.write(f"{title}|{len(history)}\\n")
    return history

runs.train = train
recipe = Recipe(epochs=6, batch_size=50, n=1, precision="fp32")
teacher = Run("Convnet5", 200, recipe)
student = Run("Convnet6", 200, recipe.replace(epochs=4), teacher, "soft")
train_set, test_set = load("digits")
open(f"{store}.{os.getpid()}.ready", "w").close()
table = run_all([student, teacher, Run("Resnet6", 100, recipe, seed=1), Run("Resnet9", 100, recipe, seed=2)], train_set, test_set, store,
                device="cpu", progress=False)
table.drop(columns=["seconds", "images_per_second"]).to_csv(f"{store}.{os.getpid()}.csv", index=False)
"""
EPOCHS, RUNS = 6 + 4 + 6 + 6, 4


def start(store: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", DRIVER, str(store), f"{store}.log"]
    with Path(f"{store}.stderr").open("w") as errors:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)


def await_training(store: Path, process: subprocess.Popen[bytes]) -> None:
    """Until its imports are over: a kill before that hits nothing of ours."""
    while not Path(f"{store}.{process.pid}.ready").exists():
        assert process.poll() is None
        time.sleep(0.01)


def tables(store: Path) -> set[str]:
    return {path.read_text() for path in store.parent.glob(f"{store.name}.*.csv")}


def trained(store: Path) -> Counter[str]:
    return Counter(Path(f"{store}.log").read_text().split("\n")[:-1])


def weights(store: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in store.glob("*/model.safetensors")}


def check_clean(store: Path) -> None:
    """Nothing but finished entries and the folder of locks."""
    assert len(list(store.iterdir())) == RUNS + 1
    for entry in store.iterdir():
        if entry.name != ".locks":
            assert sorted(p.name for p in entry.iterdir()) == ["SHA256SUMS", "history.csv", "model.safetensors", "run.json"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    assert start(store).wait() == 0
    assert sum(trained(store).values()) == EPOCHS
    return store


def test_a_hundred_kills(undisturbed: Path, tmp_path: Path) -> None:
    rng, kills, suites = random.Random(0), 0, 0
    while kills < 100:
        suites, killed_here = suites + 1, 0
        store = tmp_path / f"store{suites}"
        while True:
            process = start(store)
            await_training(store, process)
            try:
                code = process.wait(timeout=rng.uniform(0, 2.5) if kills < 100 else None)
                assert code == 0, Path(f"{store}.stderr").read_text()
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills, killed_here = kills + 1, killed_here + 1
        check_clean(store)
        assert tables(store) == tables(undisturbed) and weights(store) == weights(undisturbed)
        # A kill costs at most the epoch that it hit: no run starts again from nothing.
        assert sum(trained(store).values()) <= EPOCHS + killed_here
    print(f"\n{kills} kills in {suites} suites")


def test_four_processes_train_each_run_once(undisturbed: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert [p.wait() for p in [start(store) for _ in range(4)]] == [0] * 4
    check_clean(store)
    assert tables(store) == tables(undisturbed) and weights(store) == weights(undisturbed)
    assert sum(trained(store).values()) == EPOCHS and len(list(tmp_path.glob("store.*.csv"))) == 4


@pytest.mark.parametrize("moment", [0.3, 1.0, 2.0, 4.0])
def test_others_take_over_the_run_of_a_killed_process(undisturbed: Path, tmp_path: Path, moment: float) -> None:
    store = tmp_path / "store"
    first = start(store)
    await_training(store, first)
    others = [start(store) for _ in range(3)]
    time.sleep(moment)
    first.send_signal(signal.SIGKILL)
    assert [p.wait() for p in others] == [0] * 3
    check_clean(store)
    assert tables(store) == tables(undisturbed) and weights(store) == weights(undisturbed)
    assert sum(trained(store).values()) <= EPOCHS + 1


def test_full_disk(undisturbed: Path, tmp_path: Path) -> None:
    """Files may not grow beyond a limit, at which the first checkpoint, a later one, or the entry fails."""
    for kilobytes in (1, 50, 300, 900):
        store = tmp_path / f"store{kilobytes}"
        process = subprocess.run(
            [sys.executable, "-c", DRIVER, str(store), f"{store}.log"], capture_output=True, text=True,
            preexec_fn=lambda limit=kilobytes * 1024: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))  # type: ignore[misc]
        assert process.returncode == 1
        last = process.stderr.strip().splitlines()[-1]
        assert f"{store}" in last and "could not be written (File too large)" in last and "MB are needed there" in last
        assert not list(store.glob("*/*.tmp"))
        assert start(store).wait() == 0
        check_clean(store)
        assert weights(store) == weights(undisturbed)


def test_interrupt_in_a_notebook(tmp_path: Path) -> None:
    """Ctrl-C in a cell: the kernel lives, and the next cell goes on from the checkpoint to the same bits."""
    prepare = "from noisy_student import Recipe, Run, load, run_all, runs; import torch; torch.set_num_threads(1); " \
              "runs.CHECKPOINT_SECONDS = 0.0; data = load('digits'); run = Run('Convnet5', 200, Recipe(epochs=40, batch_size=20))"
    manager, client = jupyter_client.manager.start_new_kernel(cwd=str(tmp_path))
    try:
        assert client.execute_interactive(prepare, timeout=120, output_hook=lambda m: None)["content"]["status"] == "ok"
        assert client.execute_interactive("whole = run_all([run], *data, 'whole', device='cpu')", timeout=300,
                                          output_hook=lambda m: None)["content"]["status"] == "ok"
        message = client.execute("run_all([run], *data, 'stopped', device='cpu')")
        while not list(tmp_path.glob("stopped/*.partial/checkpoint.safetensors")):
            time.sleep(0.01)
        manager.interrupt_kernel()
        while (reply := client.get_shell_msg(timeout=60))["parent_header"].get("msg_id") != message:
            pass
        assert reply["content"]["ename"] == "KeyboardInterrupt" and not list(tmp_path.glob("stopped/*/run.json"))
        assert client.execute_interactive("again = run_all([run], *data, 'stopped', device='cpu')", timeout=300,
                                          output_hook=lambda m: None)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert weights(tmp_path / "whole") == weights(tmp_path / "stopped")


# -------------------------------------------------------------------------------------------------------------- damage


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """A byte altered, a range overwritten, or the end cut off."""
    place, out = int(rng.integers(len(content))), bytearray(content)
    kind = rng.integers(3)
    if kind == 0:
        out[place] ^= int(rng.integers(1, 256))
    elif kind == 1:
        length = min(int(rng.integers(1, 200)), len(out) - place)
        out[place : place + length] = rng.bytes(length)
    else:
        out = out[:place]
    return bytes(out)


def cases(path: Path, count: int, seed: int) -> Iterator[bytes]:
    """``count`` damages of a file; each time it is there damaged, and afterwards as it was."""
    content, rng = path.read_bytes(), np.random.default_rng(seed)
    for _ in range(count):
        found = damaged(content, rng)
        if found != content:
            path.write_bytes(found)
            yield found
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["run.json", "history.csv", "model.safetensors", "SHA256SUMS"])
def test_damaged_store_entry(tiny: tuple[Images, Images], tmp_path: Path, name: str) -> None:
    run = Run("Convnet5", 20, Recipe(epochs=1, batch_size=10))
    key = run_all([run], *tiny, tmp_path / "store", device="cpu", progress=False).key[0]
    store, entry, kept = Store(tmp_path / "store"), tmp_path / "store" / key, tmp_path / "kept"
    shutil.copytree(entry, kept)
    record = json.loads((kept / "run.json").read_text())
    bound = run.bind(record["run"]["data"], record["run"]["split"])
    assert bound.key == key
    for content in cases(kept / name, 60, 0):
        shutil.rmtree(entry, ignore_errors=True)
        shutil.copytree(kept, entry)
        assert (entry / name).read_bytes() == content
        found = store.find(bound)
        assert found is None or (name == "SHA256SUMS" and found == record)
        assert found is not None or not entry.exists()


def test_damaged_checkpoint(tiny: tuple[Images, Images], tmp_path: Path) -> None:
    """Never taken up, and never an error."""
    import torch

    store, run = Store(tmp_path), Run("Convnet5", 20)
    state = {"a": torch.randn(500), "b": torch.arange(10)}
    store.save_checkpoint(run, state, [{"epoch": 1, "loss": 0.5}])
    (path,) = tmp_path.glob("*/checkpoint.safetensors")
    original = path.read_bytes()
    for _ in cases(path, 150, 1):
        found = store.load_checkpoint(run)
        assert found is None or all(torch.equal(found[0][k], state[k]) for k in state)
    assert path.read_bytes() == original and store.load_checkpoint(run) is not None


def test_damaged_split(tiny: tuple[Images, Images], tmp_path: Path) -> None:
    drawn, path = split(tiny[0], 20, 3), tmp_path / "split.npz"
    drawn.save(path)
    for _ in cases(path, 200, 2):
        try:
            found = Split.load(path, tiny[0])
        except ValueError as error:
            assert str(path) in str(error) or "other data" in str(error)
        else:
            assert found.key == drawn.key


def test_damaged_cache_and_archive(folder: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "photos"), "gztar", folder))
    expected = [part.fingerprint for part in load(archive, tmp_path / "root")]
    (cache,) = (tmp_path / "root" / "cache").iterdir()
    for _ in cases(cache, 100, 3):
        assert [part.fingerprint for part in load(archive, tmp_path / "root")] == expected
    refused = 0
    for _ in cases(archive, 100, 4):
        try:
            assert [part.fingerprint for part in load(archive, tmp_path / "root")] == expected
        except (OSError, ValueError) as error:
            assert str(archive) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 50 and [p.name for p in (tmp_path / "root").iterdir()] == ["cache"]
