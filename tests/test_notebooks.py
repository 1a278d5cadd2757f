import ast
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import papermill
import pytest
from PIL import Image

from noisy_student import Split, Store, load

ROOT = Path(__file__).parent.parent
TINY = {"SEEDS": [0], "CHAIN": ["Convnet5", "Convnet6"], "GENERATIONS": 1, "GRID_NS": [1], "GRID_MS": [2, 5], "LABEL_COUNTS": [100, 200],
        "SUPERVISED": {"epochs": 1, "n": 1}, "STUDENT": {"epochs": 1, "n": 1}, "DEVICE": "cpu", "PROFILE": "quick", "DATA": "digits"}


def execute(name: str, folder: Path, **parameters: Any) -> nbformat.NotebookNode:
    done = papermill.execute_notebook(ROOT / name, folder / name, parameters, cwd=folder, progress_bar=False)
    return nbformat.from_dict(done)


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def printed(notebook: nbformat.NotebookNode) -> str:
    return "\n".join(str(o.get("text", o.get("data", ""))) for c in notebook.cells if c.cell_type == "code" for o in c.outputs)


def test_both_notebooks(tmp_path: Path) -> None:
    drawn = execute("data_split.ipynb", tmp_path, DATA="digits", LABELS=100)
    assert pictures(drawn) == 2 and "disjoint, complete, stratified, saved" in printed(drawn)
    split = "data/split-digits-100-0.npz"
    assert (tmp_path / split).exists()

    first = execute("run.ipynb", tmp_path, **TINY, LABELS=100, SPLIT=split)
    assert pictures(first) == 9
    assert len(list((tmp_path / "out").glob("*.png"))) == 9 and (tmp_path / "out" / "runs.csv").exists()
    of_split = pd.read_csv(tmp_path / "out" / "runs.csv").query("labels == 100").key  # label_counts has others too
    drawn_key = Split.load(tmp_path / split, load("digits")[0]).key
    assert {Store(tmp_path / "runs").record(key)["run"]["split"] for key in of_split} == {drawn_key}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file() and ".locks" not in path.parts}

    execute("run.ipynb", tmp_path, **TINY, LABELS=100, SPLIT=split)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file() and ".locks" not in path.parts}
    assert before == after, "finished runs are not trained again"


def test_split_of_one_large_class_and_many_small_ones(tmp_path: Path) -> None:
    """The small classes' shares round the same way, and the large class makes up for all of them."""
    for c, count in enumerate([300, *[6] * 20]):
        (tmp_path / "photos" / "train" / f"{c:02}").mkdir(parents=True)
        for i in range(count):
            Image.new("L", (16, 16), i % 256).save(tmp_path / "photos" / "train" / f"{c:02}" / f"{i}.png")
    drawn = execute("data_split.ipynb", tmp_path, DATA="photos", LABELS=30)
    assert "disjoint, complete, stratified, saved" in printed(drawn)


def test_error_in_a_notebook_names_the_fault(tmp_path: Path) -> None:
    with pytest.raises(papermill.PapermillExecutionError, match="unknown recipe parameter 'epoch'; did you mean epochs"):
        execute("run.ipynb", tmp_path, **TINY | {"STUDENT": {"epoch": 1}})


@pytest.mark.parametrize("name", ["data_split.ipynb", "run.ipynb"])
def test_first_code_cell_holds_the_parameters_with_a_comment_each(name: str) -> None:
    notebook = nbformat.read(ROOT / name, 4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.metadata.tags == ["parameters"]
    assignments = [line for line in first.source.splitlines() if " = " in line.partition("#")[0]]
    assert len(assignments) >= 6 and all("#" in line for line in assignments)
    assert all(len(cell.source.splitlines()) <= 20 for cell in notebook.cells if cell is not first)


@pytest.mark.parametrize("name", ["data_split.ipynb", "run.ipynb"])
def test_every_parameter_is_used_and_under_its_own_name(name: str) -> None:
    first, *others = [cell.source for cell in nbformat.read(ROOT / name, 4).cells if cell.cell_type == "code"]
    rest = list(ast.walk(ast.parse("\n".join(others).replace("%matplotlib", "#"))))
    parameters = {node.id for node in ast.walk(ast.parse(first)) if isinstance(node, ast.Name)}
    assert parameters <= {node.id for node in rest if isinstance(node, ast.Name)}
    for given in (node for node in rest if isinstance(node, ast.Dict)):  # what override is given
        for key, value in zip(given.keys, given.values, strict=True):
            assert not (isinstance(key, ast.Constant) and isinstance(value, ast.Name)) or value.id == key.value.upper()
