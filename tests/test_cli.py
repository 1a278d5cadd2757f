import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from noisy_student import Images, Store, load, split
from noisy_student.__main__ import changes, main, parser
from noisy_student.data import data_key
from noisy_student.experiments import EXPERIMENTS, FOUR, override, profile, run_experiment

TINY = ["--seeds", "0", "--device", "cpu", "--workers", "1", "--set", "recipe.epochs=1", "--set", "recipe.n=1",
        "--set", "chain=Convnet5,Convnet6", "--set", "generations=1", "--set", "grid_ns=[1]", "--set", "grid_ms=2,5",
        "--set", "label_counts=[100,200]"]


def places(path: Path) -> list[str]:
    return ["--store", str(path / "runs"), "--out", str(path / "out"), "--root", str(path / "data")]


def test_all_experiments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, *places(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for word in ("8x8 digits: 1,300", "497 test images", *FOUR, "gain", "interval"):
        assert word in printed
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["runs.csv", "history.csv", *(f"{f}.png" for f in ("ablation", "confusion", "curves", "generations", "grid", "mistakes", "ops",
                                                           "result1", "result2"))])
    table = pd.read_csv(out / "runs.csv")
    assert {"experiment", "model", "teacher", "pseudo", "labels", "n", "m", "seed", "epochs", "device", "accuracy", "validation_accuracy",
            "pseudo_accuracy", "seconds", "images_per_second", "key"} <= set(table)
    assert set(pd.read_csv(out / "history.csv").key) == set(table.key)
    stored = {p.name for p in (tmp_path / "runs").iterdir() if not p.name.startswith(".")}
    assert set(table.key) < stored and len(stored - set(table.key)) == 2, "the ensemble's two further teachers are in the store alone"
    before = (out / "runs.csv").read_bytes()
    assert main([*TINY, *places(tmp_path)]) == 0 and (out / "runs.csv").read_bytes() == before

    assert main(["--replot", str(out), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "curves.png").is_file()  # the sixth digit of a loss may shift its ticks
    for name in ("ablation", "generations", "grid", "result1", "result2"):
        with Image.open(out / f"{name}.png") as first, Image.open(tmp_path / "again" / f"{name}.png") as second:
            difference = np.asarray(first).astype(int) - np.asarray(second)  # the tables have six digits: a hair's breadth in a line
            assert np.abs(difference).mean() < 0.05, name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_alone(name: str, tmp_path: Path) -> None:
    more = ["--set", "threshold=0.01"] if name == "student_ablation" else []  # one epoch makes no confident teacher
    assert main([*TINY, *places(tmp_path), "--experiments", name, "--workers", "2" if name == "students" else "1", *more]) == 0
    assert set(pd.read_csv(tmp_path / "out" / "runs.csv").experiment) == {name} and (tmp_path / "out" / "ops.png").exists()


def test_one_experiment_on_a_folder(folder: Path, tmp_path: Path) -> None:
    command = [*TINY, *places(tmp_path), "--data", str(folder), "--experiments", "baselines", "--labels", "6", "--size", "16"]
    (folder / "train" / "cat" / "bad.png").write_bytes(b"no picture")
    assert main([*command, "--set", "recipe.batch_size=4", "--set", "label_counts=[6]", "--skip-unreadable",
                 "--figures", str(tmp_path / "figures")]) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"runs.csv", "history.csv"}
    assert (tmp_path / "figures" / "ablation.png").exists()
    table = pd.read_csv(tmp_path / "out" / "runs.csv")
    (folder / "train" / "cat" / "bad.png").unlink()
    assert set(table.title) == {"photos"} and set(table["data"]) == {data_key(*load(folder, tmp_path / "data", size=16))}


def test_saved_split_decides_how_many_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = split(load("digits")[0], 60, seed=7)
    drawn.save(tmp_path / "split.npz")
    assert main([*TINY, *places(tmp_path), "--experiments", "baselines", "--split", str(tmp_path / "split.npz")]) == 0
    table = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert set(table.labels) == {60} and Store(tmp_path / "runs").record(table.key[0])["run"]["split"] == drawn.key
    assert "\n60 labelled images, 1,240 unlabelled; 5 trainings in all; " in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (["--data", "digit"], "unknown data set 'digit'; did you mean digits"),
    (["--data", "no/such/folder"], "does not exist: give a folder"),
    (["--set", "chain=[]"], "chain=[] is empty: one str or more is wanted"),
    (["--set", "kinds=soft,none"], "unknown pseudo-label kind 'none'; valid: soft, hard"),
    (["--replot", "no/such"], "no/such has no runs.csv: give a folder of tables"),
    (["--profile", "quik"], "unknown profile 'quik'; did you mean quick"),
    (["--experiments", "students,gird"], "unknown experiment 'gird'; did you mean grid"),
    (["--experiments", "students,label_counts", "--set", "label_counts=[100,1400]"], "1,400 labelled images wanted"),
    (["--labels", "1300"], "all 1,300 images are labelled"),
    (["--workers", "0"], "workers=0 is not a whole number from 1"),
    (["--experiments", "student"], "unknown experiment 'student'; did you mean students"),
    (["--set", "recipe.epoch=1"], "unknown recipe parameter 'epoch'; did you mean epochs"),
    (["--set", "recipe.epochs=0"], "epochs=0 is not a whole number from 1 to 100,000"),
    (["--set", "recipe.epochs=1e2"], "epochs=100.0 is not a whole number from 1 to 100,000, without a point or an exponent"),
    (["--set", "recipe.epochs={[]:1}"], "epochs='{[]:1}' is not a whole number from 1"),
    (["--set", "threshold=None"], "'threshold=None' gives no value: leave it out for the profile's (threshold=0 keeps every"),
    (["--set", "recipe.n=15"], "n=15 is not a whole number from 0 to 14"),
    (["--set", "epochs"], "is not NAME=VALUE"),
    (["--seeds", "one"], "'one' are not whole numbers"),
    (["--labels", "5000"], "5,000 labelled images wanted, but 8x8 digits has 1,300"),
    (["--device", "tpu"], "device 'tpu' cannot be used here"),
    (["--device", "meta"], "unknown device 'meta'; valid: cuda, mps, cpu"),
    (["--seeds", "9" * 20], f"seed={'9' * 20} is not a whole number from 0 to 4,294,967,295"),
    (["--set", "chain=['Resnet8','Resnet9']"], "unknown model 'Resnet8'; did you mean Resnet"),
    (["--set", "ablation_models=[Resnet9,Convnet4]"], "unknown model 'Convnet4'; did you mean Convnet"),  # a shell took its quotes
    (["--split", "absent.npz"], "absent.npz does not exist: make the split"),
])
def test_bad_input_is_one_sentence_and_leaves_nothing(arguments: list[str], message: str, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*places(tmp_path), "--experiments", "students", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("name", ["2024", "null", "us$_$x"])
def test_a_folder_with_an_odd_name(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that pandas would read as numbers or gaps, and that matplotlib would set as mathematics."""
    folder.rename(tmp_path / name)
    (tmp_path / name / "train" / "cat").rename(tmp_path / name / "train" / "$1_$5")
    (tmp_path / name / "test" / "cat").rename(tmp_path / name / "test" / "$1_$5")
    monkeypatch.chdir(tmp_path)
    small = [word for change in ("chain=Convnet5,Convnet6", "recipe.epochs=1", "recipe.n=1", "ensemble=1") for word in ("--set", change)]
    assert main(["--data", name, "--experiments", "students", "--seeds", "0", "--device", "cpu", "--root", "decoded", *small]) == 0
    assert list(Path("decoded/cache").iterdir()) and not Path("data").exists()
    assert main(["--replot", "out", "--out", "again"]) == 0
    drawn = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert {"curves.png", "generations.png", "confusion.png", "mistakes.png"} <= drawn
    assert {path.name for path in (tmp_path / "again").glob("*.png")} == {"curves.png", "generations.png"}


def test_replot_of_another_table_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = Path(__file__).parent.parent / "results" / "digits-quick" / "runs.csv"
    for wrong, right, missing in (("runs.csv", "history.csv", "accuracy"), ("history.csv", "runs.csv", "epoch")):
        (tmp_path / right).write_bytes(rows.with_name(right).read_bytes())
        (tmp_path / wrong).write_text("experiment,teacher,key,loss" + ",accuracy" * (wrong == "history.csv") + "\nstudents\n")
        assert main(["--replot", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
        assert f"the table has no column {missing!r}: it is not a {wrong}" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_loss_that_is_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, *places(tmp_path), "--experiments", "students", "--set", "recipe.lr=1e6", "--set", "recipe.schedule=constant"]
    assert main([*command, "--set", "recipe.epochs=30"]) == 1
    assert "lower recipe.lr" in capsys.readouterr().err


def test_stopped_by_the_keyboard(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C amid two experiments: 130, as a shell gives (128 + SIGINT); what is finished is kept. Without --workers it is the default."""
    asked = []

    def stop_at_the_second(name: str, *arguments: Any, workers: int, **more: Any) -> pd.DataFrame:
        asked.append(workers)
        if name == "students":
            raise KeyboardInterrupt
        return run_experiment(name, *arguments, workers=1, **more)

    monkeypatch.setattr("noisy_student.__main__.run_experiment", stop_at_the_second)
    monkeypatch.setattr("noisy_student.__main__.default_workers", lambda device: 3)
    command = [word for word in TINY if word not in ("--workers", "1")]
    assert main([*command, *places(tmp_path), "--experiments", "baselines,students"]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "stopped; the same command goes on from here."
    assert asked == [3, 3] and set(pd.read_csv(tmp_path / "out" / "runs.csv").experiment) == {"baselines"}


def test_set_labels_changes_the_number_alone_and_labels_fits_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    """As the help says; the profile quick gives 5,000 labels of such images 25 epochs, and 10,000 are the most it has."""
    train = Images(torch.zeros(20_000, 3, 1, 1, dtype=torch.uint8), torch.arange(20_000) % 10, tuple("abcdefghij"), "photos")
    found = {}
    for words in (["--labels", "1000"], ["--set", "labels=1000"]):
        args = parser().parse_args(["--profile", "quick", *words])
        settings = override(profile(args.profile, train, "cpu", args.labels), changes(args))
        found[words[0]] = settings.labels, settings.supervised.epochs, settings.label_counts
    assert found == {"--labels": (1000, 125, (1000, 2000, 4000, 10000)), "--set": (1000, 25, (5000, 7000, 10000))}
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "labels=200 leaves the epochs and label_counts as they are, --labels 200 fits them" in " ".join(capsys.readouterr().out.split())


def test_help_without_jupyter() -> None:
    """The command line must not import a Jupyter package."""
    program = "import sys; import noisy_student.__main__ as m; print([n for n in sys.modules if n.split('.')[0] in {'IPython', " \
              "'jupyter_core', 'notebook', 'ipykernel', 'papermill', 'nbformat'}])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    shown = subprocess.run([sys.executable, "-m", "noisy_student", "--help"], capture_output=True, text=True, check=True).stdout
    assert "examples:" in shown and "--set" in shown and "photos/train/<class>" in shown
