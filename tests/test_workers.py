"""What callers who die leave in the temporary folder, and what the next one removes."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest
import torch

from noisy_student import workers

# A caller with a helper, which writes large tensors slowly; or, for 0 helpers, kills itself.
CALLER = """
import os, signal, sys, time, torch
from pathlib import Path
from noisy_student import workers
if __name__ == "__main__":
    real, count = workers.write_whole, int(sys.argv[1])
    def slow(path, *contents):
        real(path, *contents)
        Path(sys.argv[2], "writing").touch()
        time.sleep(600 if count else 0)
    workers.write_whole = slow
    with workers.helpers(count, len, [torch.zeros(2**20, dtype=torch.uint8) for _ in range(3)]):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def begin(folder: Path, count: int, **options: object) -> subprocess.Popen:
    (folder / "script.py").write_text(CALLER)
    command = [sys.executable, str(folder / "script.py"), str(count), str(folder)]
    return subprocess.Popen(command, env={**os.environ, "TMPDIR": str(folder)}, **options)  # type: ignore[call-overload,no-any-return]


def as_in_a_terminal() -> None:
    """Under nohup, or in a shell's background, signals are ignored, by whatever is started too."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("noisy_student-*"))


def wait_until_written(folder: Path, caller: subprocess.Popen) -> list[psutil.Process]:
    """Until the first image file is there; gives the helpers."""
    while not (folder / "writing").exists():
        assert caller.poll() is None
        time.sleep(0.02)
    assert left(folder)
    return psutil.Process(caller.pid).children()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_images_are_written_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    caller = begin(
        tmp_path, 1, stderr=subprocess.DEVNULL, start_new_session=True, preexec_fn=as_in_a_terminal
    )
    children = wait_until_written(tmp_path, caller)
    os.killpg(caller.pid, number)
    caller.wait()
    assert not psutil.wait_procs(children, timeout=60)[1] and not left(tmp_path)


def test_a_closed_terminal_leaves_nothing(tmp_path: Path) -> None:
    """A real one: the system sends the hang-up."""
    master, slave = pty.openpty()
    caller = begin(
        tmp_path,
        2,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: (as_in_a_terminal(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
    )
    os.close(slave)
    children = wait_until_written(tmp_path, caller)
    os.close(master)
    assert caller.wait() == -signal.SIGHUP
    assert not psutil.wait_procs(children, timeout=60)[1] and not left(tmp_path)


def test_what_a_killed_caller_left_is_removed_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        assert begin(tmp_path, 0).wait() == -signal.SIGKILL
    assert len(left(tmp_path)) == 2, (
        "the second removed the first's folder and its lock, and left its own"
    )
    monkeypatch.setattr(workers.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "noisy_student-notes").mkdir()  # somebody's own
    with workers.helpers(0, len, [torch.zeros(2**20, dtype=torch.uint8)]):
        mine = left(tmp_path)
        assert len(mine) == 3
        with workers.helpers(0, len, []):  # of another thread: a living one's stays
            assert set(left(tmp_path)) > set(mine)
    assert left(tmp_path) == ["noisy_student-notes"]
