import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file

from noisy_student import figures
from noisy_student.files import TYPES, load_tensors, out_of_memory_said, save_tensors, write_whole


def test_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    """For real: files may not grow beyond 1,000 bytes."""
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from noisy_student.files import write_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_whole(Path(sys.argv[1]), bytes(5000))"
    )
    write_whole(tmp_path / "a", b"before")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a")], capture_output=True, text=True
    )
    assert (
        f"{tmp_path / 'a'} could not be written (File too large): 5,000 bytes are needed there"
        in done.stderr
    )
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"before"]


def test_failed_write_says_why_where_nothing_can_be_removed_either(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"could not be written \(File name too long\)$"):
        write_whole(tmp_path / ("a" * 250), b"x")


def test_failed_write_does_not_ask_for_space_where_that_is_not_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "file" / "a", "(Not a directory|File exists)"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(OSError, match=rf"{path} could not be written \({reason}\)$"):
            write_whole(path, b"x")


def test_name_that_is_no_pattern(tmp_path: Path) -> None:
    write_whole(tmp_path / "a**b", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["a**b"]


def test_figure_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"a\.png could not be written"):
        figures.save(Figure(), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_what_a_kill_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    for name in (".a.1.partial", ".a.2.partial", ".b.1.partial"):
        (tmp_path / name).touch()
    os.utime(tmp_path / ".a.1.partial", (0, 0))
    os.utime(tmp_path / ".b.1.partial", (0, 0))
    write_whole(tmp_path / "a", b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.2.partial", ".b.1.partial", "a"]


def test_link_in_place_of_a_file_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"kept")
    (tmp_path / "a").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "target").read_bytes() == b"kept" and (tmp_path / "a").read_bytes() == b"new"


def test_two_containers_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two containers on one folder: the second writes the same file, whole, while the first is
    about to rename its own.
    """
    real = Path.replace

    def meanwhile(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", real)
        write_whole(tmp_path / "a", b"second")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", meanwhile)
    write_whole(tmp_path / "a", b"first")
    assert (tmp_path / "a").read_bytes() == b"first" and [p.name for p in tmp_path.iterdir()] == [
        "a"
    ]


def test_processes_may_write_the_same_tables(tmp_path: Path) -> None:
    script = (
        "import sys, pandas as pd; from pathlib import Path\n"
        "from noisy_student.report import write_tables\n"
        "class Store:\n"
        "    def history(self, *keys): return pd.DataFrame({'key': keys, 'epoch': 1})\n"
        "table = pd.DataFrame({'key': [str(i) for i in range(200)], 'x': 1.0})\n"
        "for _ in range(60): write_tables(table, Store(), Path(sys.argv[1]))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(3)]
    assert [w.wait() for w in writers] == [0] * 3
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 200
    assert sorted(p.name for p in tmp_path.iterdir()) == ["history.csv", "runs.csv"]


def test_tensors_are_safetensors(tmp_path: Path) -> None:
    """Read by the library itself: every type, none at all, no dimension, an empty tensor."""
    rng = torch.Generator().manual_seed(0)
    tensors = {str(dtype): torch.randint(0, 2, (3, 5), generator=rng).to(dtype) for dtype in TYPES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3)}
    for found, name in ((tensors, "a"), ({}, "b")):
        save_tensors(tmp_path / name, found, {"said": "it"})
        read = load_file(tmp_path / name)
        assert read.keys() == found.keys() and all(
            torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in found.items()
        )
        again = load_tensors(tmp_path / name)
        assert (
            again is not None
            and again[1] == {"said": "it"}
            and all(torch.equal(again[0][k], v) for k, v in found.items())
        )
    with pytest.raises(
        ValueError, match=r"x is of torch\.complex64, which is none of torch\.float64"
    ):
        save_tensors(tmp_path / "c", {"x": torch.zeros(1, dtype=torch.complex64)}, {})


def test_what_is_changed_in_mapped_tensors_does_not_reach_the_file(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a", {"x": torch.ones(5)}, {})
    found = load_tensors(tmp_path / "a")
    assert found is not None
    found[0]["x"].zero_()
    again = load_tensors(tmp_path / "a")
    assert again is not None and torch.equal(again[0]["x"], torch.ones(5))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_tensors_are_written_without_a_copy(tmp_path: Path) -> None:
    script = (
        "import sys, torch; from pathlib import Path\n"
        "from noisy_student.files import save_tensors\n"
        "def anonymous(word):\n"
        "    status = open('/proc/self/status')\n"
        "    return next(int(l.split()[1]) for l in status if l.startswith(word))\n"
        "x = torch.ones(300_000_000, dtype=torch.uint8)\n"
        "Path('/proc/self/clear_refs').write_text('5')\n"
        "before = anonymous('VmHWM')\n"
        "save_tensors(Path(sys.argv[1]), {'x': x}, {})\n"
        "print(anonymous('VmHWM') - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 50_000, "kilobytes"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_out_of_memory_is_one_sentence(error: Exception) -> None:
    said = r"^the images do not fit into memory: give fewer\.$"
    with pytest.raises(MemoryError, match=said), out_of_memory_said("the images", "give fewer"):
        raise error


def test_torch_says_that_memory_is_out_as_is_expected() -> None:
    with pytest.raises(MemoryError, match="do not fit"), out_of_memory_said("they", "give fewer"):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="another"), out_of_memory_said("they", "give fewer"):
        raise RuntimeError("another")
