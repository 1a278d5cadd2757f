"""Faults for real, by the hundred: `make soak`, 17 minutes. docs/reliability.md says what for."""

import itertools
import os
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
import psutil
import pytest

from noisy_student import Images, Recipe, Run, Split, Store, load, run_all, split

pytestmark = pytest.mark.soak

# Four runs, two of them a chain, with a checkpoint after every epoch. Each start of a run, and each
# epoch that was trained, is noted in a log, together with the process that did it.
DRIVER = """
import os, sys, torch
from noisy_student import Recipe, Run, load, run_all, runs
runs.CHECKPOINT_SECONDS = 0.0
torch.set_num_threads(1)
store, log = sys.argv[1:3]
real = runs.train

def train(model, images, targets, recipe, *, title, checkpoint, resume, **options):
    def note(epochs):
        with open(log, "a") as file:
            file.write(f"{os.getpid()}|{title}|{epochs}\\n")
    def noted(state, history):
        note(len(history))
        checkpoint(state, history)
    note("start")
    history = real(model, images, targets, recipe, title=title, checkpoint=noted, resume=resume,
                   **options)
    note(len(history))
    return history

runs.train = train
recipe = Recipe(epochs=6, batch_size=50, n=1, precision="fp32")
teacher = Run("Convnet5", 200, recipe)
student = Run("Convnet6", 200, recipe.replace(epochs=4), (teacher,))
train_set, test_set = load("digits")
open(f"{store}.{os.getpid()}.ready", "w").close()
others = [Run("Resnet6", 100, recipe, seed=1), Run("Resnet9", 100, recipe, seed=2)]
table = run_all([student, teacher, *others], train_set, test_set, store, device="cpu",
                progress=False)
table = table.drop(columns=["seconds", "images_per_second"])
table.to_csv(f"{store}.{os.getpid()}.csv", index=False)
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


def noted(store: Path) -> list[tuple[str, str, str]]:
    """(process, run, epoch or "start"), in order."""
    log = Path(f"{store}.log")
    return (
        [tuple(line.split("|")) for line in log.read_text().split("\n")[:-1]]
        if log.exists()
        else []
    )  # type: ignore[misc]


def trained(store: Path) -> Counter[tuple[str, str]]:
    return Counter((run, epoch) for _, run, epoch in noted(store) if epoch != "start")


def check_no_restart(store: Path) -> None:
    """Whoever trains a run goes on with the epoch that was at work when the last one was killed, or
    with the next.
    """
    last: dict[str, int] = {}
    for _, run, epoch in noted(store):
        if epoch != "start":
            assert int(epoch) in (last.get(run, 0), last.get(run, 0) + 1), (run, epoch, last)
            last[run] = int(epoch)


def weights(store: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in store.glob("*/model.safetensors")}


def check_clean(store: Path) -> None:
    """Nothing but finished entries and the folder of locks."""
    assert len(list(store.iterdir())) == RUNS + 1
    for entry in store.iterdir():
        if entry.name != ".locks":
            assert sorted(p.name for p in entry.iterdir()) == [
                "SHA256SUMS",
                "history.csv",
                "model.safetensors",
                "run.json",
            ]


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
        check_no_restart(store)
        assert sum(trained(store).values()) <= EPOCHS + killed_here
    print(f"\n{kills} kills in {suites} suites")


def test_four_processes_train_each_run_once(undisturbed: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert [p.wait() for p in [start(store) for _ in range(4)]] == [0] * 4
    check_clean(store)
    assert tables(store) == tables(undisturbed) and weights(store) == weights(undisturbed)
    assert sum(trained(store).values()) == EPOCHS and len(list(tmp_path.glob("store.*.csv"))) == 4


@pytest.mark.parametrize("attempt", range(4))
def test_others_take_over_the_run_of_a_killed_process(
    undisturbed: Path, tmp_path: Path, attempt: int
) -> None:
    """Four processes at work; one is killed in the middle of a run, which the others finish."""
    store = tmp_path / "store"
    processes = [start(store) for _ in range(4)]
    for process in processes:
        await_training(store, process)
    begun: dict[str, str] = {}
    # a process that has just said that a run's first or second epoch, of four or more, is done
    while not begun:
        begun = {
            process: run
            for process, (run, epoch) in {p: held for p, *held in noted(store)}.items()
            if epoch in ("1", "2")
        }
        assert any(p.poll() is None for p in processes), "all ended before one could be killed"
        time.sleep(0.005)
    victim, run = next(iter(begun.items()))
    os.kill(int(victim), signal.SIGKILL)
    others = [p for p in processes if str(p.pid) != victim]
    assert len(others) == 3 and [p.wait() for p in others] == [0] * 3
    for process in processes:
        process.wait()
    takers = {process for process, title, _ in noted(store) if title == run}
    assert victim in takers and len(takers) == 2, "the victim's run was another's afterwards"
    check_clean(store)
    check_no_restart(store)
    assert tables(store) == tables(undisturbed) and weights(store) == weights(undisturbed)
    assert sum(trained(store).values()) <= EPOCHS + 1


# Killed at the n-th of its writes, renames and removals: of a write, half is there.
CRASH = """
import io, os, signal, sys, torch
from pathlib import Path
where, left = sys.argv[1], [int(sys.argv[2])]

def crashing(real):
    def call(self, *arguments, **options):
        reads = real.__name__ == "open" and "x" not in (arguments or "r")[0]
        if str(self).startswith(where) and not reads:
            left[0] -= 1
            if left[0] == 0:
                if real.__name__ == "open":
                    real(self, *arguments, **options).write(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *arguments, **options)
    return call

for name in ("open", "replace", "rename", "unlink", "mkdir"):
    setattr(Path, name, crashing(getattr(Path, name)))
from noisy_student import Recipe, Run, load, run_all, runs
runs.CHECKPOINT_SECONDS = 0.0
torch.set_num_threads(1)
run = Run("Convnet5", 100, Recipe(epochs=3, batch_size=20, n=1, precision="fp32"))
run_all([run], *load("digits"), where, device="cpu", progress=False)
"""


def test_a_kill_at_every_write_rename_and_removal(tmp_path: Path) -> None:
    def go(store: Path, at: int) -> int:
        return subprocess.run(
            [sys.executable, "-c", CRASH, str(store), str(at)], stderr=subprocess.DEVNULL
        ).returncode

    assert go(tmp_path / "whole", 0) == 0
    for at in itertools.count(1):
        store = tmp_path / f"store{at}"
        code = go(store, at)
        if code == 0:
            break
        assert (
            code == -signal.SIGKILL
            and go(store, 0) == 0
            and weights(store) == weights(tmp_path / "whole")
        )
        assert len([p for p in store.rglob("*") if p.is_file() and ".locks" not in p.parts]) == 4
    assert at > 20
    print(f"\n{at - 1} moments")


def test_full_disk(undisturbed: Path, tmp_path: Path) -> None:
    """Files may not grow beyond a limit, at which the first checkpoint, a later one, or the entry
    fails.
    """
    for kilobytes in (1, 50, 300, 900):
        store = tmp_path / f"store{kilobytes}"
        process = subprocess.run(
            [sys.executable, "-c", DRIVER, str(store), f"{store}.log"],
            capture_output=True,
            text=True,
            preexec_fn=lambda limit=kilobytes * 1024: resource.setrlimit(
                resource.RLIMIT_FSIZE, (limit, limit)
            ),
        )  # type: ignore[misc]
        assert process.returncode == 1
        last = process.stderr.strip().splitlines()[-1]
        assert (
            f"{store}" in last
            and "could not be written (File too large)" in last
            and "bytes are needed there" in last
        )
        assert not list(store.glob("*/.*.partial"))
        assert start(store).wait() == 0
        check_clean(store)
        assert weights(store) == weights(undisturbed)


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupt_in_a_notebook(tmp_path: Path, workers: int) -> None:
    """Ctrl-C in a cell: the kernel lives, no helper is left, and the next cell goes on from the
    checkpoints to the same bits.
    """
    prepare = (
        "from noisy_student import Recipe, Run, load, run_all, runs; import torch; "
        "torch.set_num_threads(2); "
        "runs.CHECKPOINT_SECONDS = 0.0; data = load('digits'); "
        "wanted = [Run('Convnet5', 200, Recipe(epochs=600, batch_size=20), seed=s) for s in "
        "range(2)]"
    )
    manager, client = jupyter_client.manager.start_new_kernel(cwd=str(tmp_path))

    def cell(code: str) -> str:
        return client.execute_interactive(code, timeout=300, output_hook=lambda m: None)["content"][
            "status"
        ]

    try:
        assert (
            cell(prepare)
            == cell(f"run_all(wanted, *data, 'whole', device='cpu', workers={workers})")
            == "ok"
        )
        message = client.execute(
            f"run_all(wanted, *data, 'stopped', device='cpu', workers={workers})"
        )
        deadline = time.monotonic() + 300
        # each is in the middle of a run
        while len(list(tmp_path.glob("stopped/*.partial/checkpoint.safetensors"))) < workers:
            assert (
                time.monotonic() < deadline and len(list(tmp_path.glob("stopped/*/run.json"))) < 2
            ), "too late to interrupt"
            time.sleep(0.01)
        manager.interrupt_kernel()
        while (reply := client.get_shell_msg(timeout=60))["parent_header"].get("msg_id") != message:
            pass
        assert (
            reply["content"]["ename"] == "KeyboardInterrupt"
            and len(list(tmp_path.glob("stopped/*/run.json"))) < 2
        )
        kernel = psutil.Process(manager.provisioner.pid)
        assert not [
            p for p in kernel.children(recursive=True) if "spawn_main" in " ".join(p.cmdline())
        ], "a helper is left"
        assert cell(f"run_all(wanted, *data, 'stopped', device='cpu', workers={workers})") == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert len(weights(tmp_path / "whole")) == 2 and weights(tmp_path / "whole") == weights(
        tmp_path / "stopped"
    )


# ------------------------------------------------------------------------------------------- damage


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
    record = store.record(key)
    bound = run.bind(record["run"]["data"], record["run"]["split"])
    assert bound.key == key
    for content in cases(kept / name, 200, 0):
        shutil.rmtree(entry, ignore_errors=True)
        shutil.copytree(kept, entry)
        assert (entry / name).read_bytes() == content
        found = store.find(bound)
        assert found is None or (name == "SHA256SUMS" and found == record)
        if found is None:
            with pytest.raises(OSError, match="is damaged: run it again"):
                store.model(key)
            store.set_aside(bound)
            assert not entry.exists()


def test_damaged_checkpoint(tiny: tuple[Images, Images], tmp_path: Path) -> None:
    """Never taken up, and never an error."""
    import torch

    store, run = Store(tmp_path), Run("Convnet5", 20)
    state = {"a": torch.randn(500), "b": torch.arange(10)}
    store.save_checkpoint(run, state, [{"epoch": 1, "loss": 0.5}], {"threads": 1})
    (path,) = tmp_path.glob("*/checkpoint.safetensors")
    original = path.read_bytes()
    for _ in cases(path, 500, 1):
        found = store.load_checkpoint(run)
        if found is not None:
            assert all(torch.equal(found[0][k], state[k]) for k in state)
            assert found[1:] == ([{"epoch": 1, "loss": 0.5}], {"threads": 1})
    assert path.read_bytes() == original and store.load_checkpoint(run) is not None


def test_damaged_split(tiny: tuple[Images, Images], tmp_path: Path) -> None:
    drawn, path = split(tiny[0], 20, 3), tmp_path / "split.npz"
    drawn.save(path)
    for _ in cases(path, 500, 2):
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
    for _ in cases(cache, 200, 3):
        assert [part.fingerprint for part in load(archive, tmp_path / "root")] == expected
    refused = 0
    for _ in cases(archive, 200, 4):
        try:
            assert [part.fingerprint for part in load(archive, tmp_path / "root")] == expected
        except (OSError, ValueError) as error:
            assert str(archive) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 100 and [p.name for p in (tmp_path / "root").iterdir()] == ["cache"]
