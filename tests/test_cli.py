import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from noisy_student import Store, load, split
from noisy_student.__main__ import main
from noisy_student.data import data_key
from noisy_student.experiments import EXPERIMENTS
from noisy_student.runs import run_variants

ROOT = Path(__file__).parent.parent
TINY = [
    "train",
    "--device",
    "cpu",
    "--workers",
    "1",
    "--labels",
    "100",
    *(
        word
        for change in (
            "recipe.epochs=1",
            "recipe.min_steps=0",
            "recipe.n=1",
            "chain=Convnet5,Convnet6",
            "grid_ns=[1]",
            "grid_ms=2,5",
            "label_counts=[100,200]",
        )
        for word in ("--set", change)
    ),
]


def places(path: Path) -> list[str]:
    return ["--store", str(path / "runs"), "--out", str(path / "out"), "--root", str(path / "data")]


def test_all_experiments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, *places(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for word in (
        "8x8 digits: 1,300",
        "497 test images",
        *EXPERIMENTS,
        "over labels alone",
        "by class",
    ):
        assert word in printed
    out = tmp_path / "out"
    drawn = ["baselines", "grid-Convnet5", "label_counts", "students"]
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["runs.csv", "history.csv", *(f"{f}.png" for f in (*drawn, "confusion", "mistakes", "ops"))]
    )
    table = pd.read_csv(out / "runs.csv")
    assert {
        "experiment",
        "variant",
        "model",
        "teacher",
        "pseudo",
        "labels",
        "n",
        "m",
        "seed",
        "epochs",
        "steps",
        "device",
        "accuracy",
        "balanced_accuracy",
        "validation_accuracy",
        "pseudo_accuracy",
        "fit",
        "seconds",
        "images_per_second",
        "key",
    } <= set(table)
    assert set(pd.read_csv(out / "history.csv").key) == set(table.key)
    stored = {p.name for p in (tmp_path / "runs").iterdir() if not p.name.startswith(".")}
    assert set(table.key) < stored and len(stored - set(table.key)) == 2, (
        "the ensemble's two further teachers are in the store alone"
    )
    before = (out / "runs.csv").read_bytes()
    assert main([*TINY, *places(tmp_path)]) == 0 and (out / "runs.csv").read_bytes() == before

    assert main(["plot", str(out), "--out", str(tmp_path / "again")]) == 0
    assert sorted(p.stem for p in (tmp_path / "again").iterdir()) == sorted(drawn)
    for name in drawn:
        with (
            Image.open(out / f"{name}.png") as first,
            Image.open(tmp_path / "again" / f"{name}.png") as second,
        ):
            # the tables have six digits: a hair's breadth in a line
            difference = np.asarray(first).astype(int) - np.asarray(second)
            assert np.abs(difference).mean() < 0.05, name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_alone(name: str, tmp_path: Path) -> None:
    assert (
        main(
            [
                *TINY,
                *places(tmp_path),
                "--experiments",
                name,
                "--workers",
                "2" if name == "students" else "1",
            ]
        )
        == 0
    )
    assert (
        set(pd.read_csv(tmp_path / "out" / "runs.csv").experiment) == {name}
        and (tmp_path / "out" / "ops.png").exists()
    )


def test_one_experiment_on_a_folder(folder: Path, tmp_path: Path) -> None:
    command = [
        *TINY,
        *places(tmp_path),
        "--data",
        str(folder),
        "--experiments",
        "baselines",
        "--labels",
        "6",
        "--size",
        "16",
    ]
    (folder / "train" / "cat" / "bad.png").write_bytes(b"no picture")
    assert (
        main(
            [
                *command,
                "--set",
                "recipe.batch_size=4",
                "--set",
                "label_counts=[6]",
                "--skip-unreadable",
            ]
        )
        == 0
    )
    table = pd.read_csv(tmp_path / "out" / "runs.csv")
    (folder / "train" / "cat" / "bad.png").unlink()
    assert set(table.title) == {"photos"} and set(table["data"]) == {
        data_key(*load(folder, tmp_path / "data", size=16))
    }


def test_one_label_a_class_runs_but_for_the_grid(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*TINY, *places(tmp_path), "--data", str(folder), "--labels", "2", "--size", "16"]
    assert main([*command, "--set", "label_counts=[2,4]"]) == 0
    assert (
        "grid: left out: Convnet5, RandAugment (1, 2) and 1 more (a fifth of 2 labels cannot be "
        "held out" in capsys.readouterr().out
    )
    assert set(pd.read_csv(tmp_path / "out" / "runs.csv").experiment) == {
        "baselines",
        "students",
        "label_counts",
    }


@pytest.mark.parametrize(("labels", "count"), [("0.1", 130), ("60", 60), ("60.0", 60)])
def test_labels_are_a_number_or_a_fraction(labels: str, count: int, tmp_path: Path) -> None:
    command = [word for word in TINY if word not in ("--labels", "100", "label_counts=[100,200]")][
        :-1
    ]
    assert (
        main([*command, *places(tmp_path), "--experiments", "label_counts", "--labels", labels])
        == 0
    )
    assert pd.read_csv(tmp_path / "out" / "runs.csv").labels.min() == count


def test_saved_split_decides_how_many_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = split(load("digits")[0], 60, seed=7)
    drawn.save(tmp_path / "split.npz")
    command = [word for word in TINY if word not in ("--labels", "100")]
    assert (
        main(
            [
                *command,
                *places(tmp_path),
                "--experiments",
                "baselines",
                "--split",
                str(tmp_path / "split.npz"),
            ]
        )
        == 0
    )
    table = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert (
        set(table.labels) == {60}
        and Store(tmp_path / "runs").record(table.key[0])["run"]["split"] == drawn.key
    )
    assert "\n60 labelled images, 1,240 unlabelled; 8 trainings in all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "digit"], "unknown data set 'digit'; did you mean digits"),
        (["--data", "no/such/folder"], "does not exist: give a folder"),
        (["--set", "chain=[]"], "chain=() is not a tuple of one name or more"),
        (["--set", "kinds=soft,none"], "unknown pseudo-label kind 'none'; valid: soft, hard"),
        (["--recipe", "quik"], "unknown recipe 'quik'; did you mean quick"),
        (["--experiments", "students,gird"], "unknown experiment 'gird'; did you mean grid"),
        (["--labels", "1300"], "all 1,300 images are labelled"),
        (["--labels", "many"], "--labels many is neither a number of images nor a fraction"),
        (["--labels", "0"], "--labels 0 is neither a number of images nor a fraction"),
        (["--workers", "0"], "workers=0 is not a whole number from 1"),
        (
            ["--set", "recipe.epoch=1"],
            "unknown hyper-parameter 'recipe.epoch'; did you mean recipe.epochs",
        ),
        (["--set", "recipe.epochs=0"], "epochs=0 is not a whole number from 1 to 100,000"),
        (
            ["--set", "recipe.epochs=1e2"],
            "epochs=100.0 is not a whole number from 1 to 100,000, without a point or an exponent",
        ),
        (["--set", "recipe.epochs={[]:1}"], "epochs='{[]:1}' is not a whole number from 1"),
        (["--set", "threshold=None"], "--set 'threshold=None' is not NAME=VALUE"),
        (["--set", "recipe.n=15"], "n=15 is not a whole number from 0 to 14"),
        (["--set", "epochs"], "is not NAME=VALUE"),
        (["--seeds", "one"], "'one' are not whole numbers"),
        (["--labels", "5000"], "there are 1,300 labels"),
        (["--device", "tpu"], "device 'tpu' cannot be used here"),
        (["--device", "meta"], "unknown device 'meta'; valid: cuda, mps, cpu"),
        (["--seeds", "9" * 20], f"seed={'9' * 20} is not a whole number from 0 to 4,294,967,295"),
        (["--set", "chain=['Resnet8','Resnet9']"], "unknown model 'Resnet8'; did you mean Resnet"),
        # a shell took its quotes
        (
            ["--set", "grid_models=[Resnet9,Convnet4]"],
            "unknown model 'Convnet4'; did you mean Convnet",
        ),
        (["--split", "absent.npz"], "absent.npz does not exist: make the split"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *places(tmp_path), "--experiments", "students", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_folder_that_cannot_be_written_is_found_before_any_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noisy_student.__main__.load", lambda *a, **k: pytest.fail("went on"))
    (tmp_path / "file").touch()
    assert main(["train", "--store", str(tmp_path / "runs"), "--out", str(tmp_path / "file")]) == 2
    assert f"{tmp_path / 'file'} cannot be written to" in capsys.readouterr().err


def test_a_tilde_is_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                *TINY,
                "--experiments",
                "label_counts",
                "--store=~/kept",
                "--out=~/shown",
                "--root=~/data",
            ]
        )
        == 0
    )
    assert (
        (tmp_path / "kept").is_dir()
        and (tmp_path / "shown" / "runs.csv").is_file()
        and not (tmp_path / "~").exists()
    )


@pytest.mark.parametrize("name", ["2024", "null", "us$_$x"])
def test_a_folder_with_an_odd_name(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that pandas would read as numbers or gaps, and that matplotlib would set as
    mathematics.
    """
    folder.rename(tmp_path / name)
    for part in ("train", "test"):
        (tmp_path / name / part / "cat").rename(tmp_path / name / part / "$1_$5")
    monkeypatch.chdir(tmp_path)
    small = [
        word
        for change in (
            "chain=Convnet5,Convnet6",
            "recipe.epochs=1",
            "recipe.min_steps=0",
            "recipe.n=1",
            "teachers=1",
        )
        for word in ("--set", change)
    ]
    assert (
        main(
            [
                "train",
                "--data",
                name,
                "--experiments",
                "students",
                "--device",
                "cpu",
                "--root",
                "decoded",
                *small,
            ]
        )
        == 0
    )
    assert list(Path("decoded/cache").iterdir()) and not Path("data").exists()
    assert main(["plot", "out", "--out", "again"]) == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "students.png",
        "confusion.png",
        "mistakes.png",
        "ops.png",
    }
    assert {path.name for path in (tmp_path / "again").glob("*.png")} == {"students.png"}


def test_a_table_of_something_else_is_not_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs.csv").write_text("experiment,variant,seed,accuracy,labels,key\n")
    assert main(["plot", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert (
        "the table has no column 'validation_accuracy': it is not a runs.csv"
        in capsys.readouterr().err
    )
    assert main(["plot", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) == 2
    assert not list((tmp_path / "out").iterdir())


def test_a_filter_that_lets_nothing_through_does_not_end_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*TINY, *places(tmp_path), "--experiments", "students,label_counts"]
    assert main([*command, "--set", "threshold=1"]) == 0
    said = capsys.readouterr().out
    assert "students: left out: Convnet6 soft from 3 Convnet5" in said
    assert "no pseudo-label reaches threshold=1: lower threshold (0 keeps every one)" in said
    assert set(pd.read_csv(tmp_path / "out" / "runs.csv").experiment) == {"label_counts"}


def test_loss_that_is_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        *TINY,
        *places(tmp_path),
        "--experiments",
        "students",
        "--set",
        "recipe.lr=1e6",
        "--set",
        "recipe.schedule=constant",
    ]
    assert main([*command, "--set", "recipe.epochs=30"]) == 1
    assert "lower recipe.lr" in capsys.readouterr().err


def test_stopped_by_the_keyboard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C amid two experiments: 130, as a shell gives (128 + SIGINT); what is finished is kept.
    Without --workers it is the default.
    """
    asked: list[int] = []

    def stop_at_the_second(*arguments: Any, workers: int, **more: Any) -> pd.DataFrame:
        asked.append(workers)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return run_variants(*arguments, workers=1, **more)

    monkeypatch.setattr("noisy_student.__main__.run_variants", stop_at_the_second)
    monkeypatch.setattr("noisy_student.__main__.default_workers", lambda device: 3)
    command = [word for word in TINY if word not in ("--workers", "1")]
    assert main([*command, *places(tmp_path), "--experiments", "label_counts,students"]) == 130
    assert (
        capsys.readouterr().err.strip().splitlines()[-1]
        == "stopped; the same command goes on from here."
    )
    assert asked == [3, 3] and set(pd.read_csv(tmp_path / "out" / "runs.csv").experiment) == {
        "label_counts"
    }


def test_make_refuses_what_it_does_not_know() -> None:
    make = ["make", "--no-print-directory", "--dry-run", "--assume-old", ".venv/installed", "run"]
    told = subprocess.run(
        [*make, "DATA=a b/my photos.tar.gz", "SIZE=64", "LABELS=0.1", "SEEDS=0,1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for word in (
        '-r DATA "a b/my photos.tar.gz"',
        '-p SIZE "64"',
        '-p LABELS "0.1"',
        '-y "SEEDS: [0,1]"',
        '-r OUT "out/my photos"',
    ):
        assert word in told
    refused = subprocess.run([*make, "LABEL=200"], cwd=ROOT, capture_output=True, text=True)
    assert (
        refused.returncode == 2
        and "unknown variable LABEL: make knows PYTHON DATA SIZE LABELS" in refused.stderr
    )


def test_help_without_jupyter() -> None:
    """The command line must not import a Jupyter package, nor yet Pillow's rarer plugins."""
    program = (
        "import sys; import noisy_student.__main__ as m; print([n for n in sys.modules if\n"
        "n.split('.')[0] in {'IPython', 'jupyter_core', 'notebook', 'ipykernel', 'papermill', "
        "'nbformat'} or n == 'PIL.XpmImagePlugin'])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
    shown = subprocess.run(
        [sys.executable, "-m", "noisy_student", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "examples:" in shown and "--set" in shown and "photos/train/<class>" in shown
