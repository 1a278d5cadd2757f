"""Both notebooks: what is committed, and what they do with other parameters."""

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import papermill
import pytest
from nbformat import NotebookNode
from PIL import Image

from noisy_student import Split, Store, load

ROOT = Path(__file__).parent.parent
NAMES = ("data_split.ipynb", "run.ipynb")
TINY = {
    "epochs=40, min_steps=1000": "epochs=1, min_steps=1",
    "replace(epochs=6, min_steps=500)": "replace(epochs=1)",
}


def committed(name: str) -> NotebookNode:
    return nbformat.read(ROOT / name, 4)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(
    name: str, folder: Path, edits: dict[str, str] | None = None, **parameters: Any
) -> NotebookNode:
    """Run a notebook in ``folder`` with other parameters, and with words of its cells changed, as a
    reader would.
    """
    notebook = committed(name)
    for old, new in (edits or {}).items():
        assert sum(old in cell.source for cell in code(notebook)) == 1
        for cell in code(notebook):
            cell.source = cell.source.replace(old, new)
    nbformat.write(notebook, folder / "edited.ipynb")
    done = papermill.execute_notebook(
        folder / "edited.ipynb", folder / name, parameters, cwd=folder, progress_bar=False
    )
    return nbformat.from_dict(done)


def pictures(notebook: NotebookNode) -> int:
    return sum(
        "image/png" in output.get("data", {}) for cell in code(notebook) for output in cell.outputs
    )


def text(cell: NotebookNode) -> str:
    return "\n".join(
        str(output.get("text") or output.get("data", {}).get("text/plain"))
        for output in cell.outputs
    )


def printed(notebook: NotebookNode) -> str:
    return "\n".join(map(text, code(notebook)))


def entries(folder: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and ".locks" not in path.parts
    }


# -------------------------------------------------------------------------------- what is committed


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebook_is_whole(name: str) -> None:
    """Executed once from top to bottom, without errors, progress bars, or paths of a machine; small
    enough for a code host.
    """
    assert (ROOT / name).stat().st_size < 1_000_000
    notebook = committed(name)
    assert [cell.execution_count for cell in code(notebook)] == list(
        range(1, len(code(notebook)) + 1)
    )
    for output in (output for cell in code(notebook) for output in cell.outputs):
        assert (
            output.output_type in ("display_data", "execute_result")
            or output.get("name") == "stdout"
        ), output
        assert not any("widget" in kind for kind in output.get("data", {}))
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    assert not re.search(r"/(home|Users|root|tmp|work|mnt|opt)/|[A-Z]:\\\\", printed(notebook))


def test_committed_split_is_what_a_run_gives(tmp_path: Path) -> None:
    again = execute("data_split.ipynb", tmp_path)
    assert printed(again) == printed(committed("data_split.ipynb")) and pictures(again) == 1
    assert (
        f"key {Split.load(tmp_path / 'data' / 'split-digits.npz', load('digits')[0]).key}"
        in printed(again)
    )


def test_committed_run_is_of_the_committed_split() -> None:
    """The tables in run.ipynb are of the labelled images that data_split.ipynb draws."""
    labelled = re.search(
        r"(\d+) labelled and ([\d,]+) unlabelled", printed(committed("data_split.ipynb"))
    )
    assert labelled and f"{labelled[1]} labelled, {labelled[2]} unlabelled" in printed(
        committed("run.ipynb")
    )
    assert "The split of data/split-digits.npz" in printed(committed("run.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short(name: str) -> None:
    first, *others = code(committed(name))
    assert first.metadata.tags == ["parameters"]
    assert sum(cell.cell_type == "markdown" for cell in committed(name).cells) >= len(others) - 1
    for cell in committed(name).cells:
        assert all(len(line) <= 100 for line in cell.source.splitlines())
    for cell in others:
        assert "import *" not in cell.source
        assert sum("import " not in line and bool(line) for line in cell.source.splitlines()) <= 10


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_values_with_a_comment_each_and_used(name: str) -> None:
    first, *others = [cell.source for cell in code(committed(name))]
    lines = [line for line in first.splitlines() if not line.startswith(" ")]
    assert all(re.match(r"[A-Z]+ = [^#]+ # .", line) for line in lines) and "None" not in first
    rest = {
        node.id
        for node in ast.walk(ast.parse("\n".join(others).replace("%matplotlib", "#")))
        if isinstance(node, ast.Name)
    }
    assert {line.split()[0] for line in lines} <= rest


def test_make_hands_over_parameters_that_there_are() -> None:
    """papermill only warns of a parameter that a notebook does not have."""
    makefile = (ROOT / "Makefile").read_text()
    given, more = (
        re.search(rf"^{name} .*", makefile, re.MULTILINE)[0] for name in ("GIVEN", "MORE")
    )  # type: ignore[index]
    names = [set(re.findall(r'-[rpy] "?([A-Z]+)', line)) for line in (given, more)]
    names[0] |= set(re.findall(r"foreach v,([A-Z ]+),", given)[0].split())
    parameters = [
        set(re.findall(r"^([A-Z]+) = ", code(committed(name))[0].source, re.MULTILINE))
        for name in NAMES
    ]
    assert names[0] == {"DATA", "SIZE", "LABELS"} and names[0] <= parameters[0]
    assert names[0] | names[1] == parameters[1] - {"STORE"}


# --------------------------------------------------------------------------------- other parameters


def test_both_notebooks(tmp_path: Path) -> None:
    execute("data_split.ipynb", tmp_path, LABELS=40)
    key = Split.load(tmp_path / "data" / "split-digits.npz", load("digits")[0]).key

    first = execute(
        "run.ipynb", tmp_path, TINY | {"WANTED = []": 'WANTED = ["baselines"]'}, SEEDS=[0]
    )
    assert pictures(first) == pictures(committed("run.ipynb")) == 8
    table = pd.read_csv(tmp_path / "out" / "runs.csv")
    store = Store(tmp_path / "runs")
    assert {store.record(row)["run"]["split"] for row in table.key} == {key}
    assert set(table.experiment) == {"chain", "soft_and_hard", "label_counts", "baselines"}
    assert table.drop_duplicates("key").labels.value_counts().drop(40).to_dict() == {120: 1}
    assert (tmp_path / "out" / "staircase.png").exists() and (
        tmp_path / "out" / "baselines.png"
    ).exists()

    before = entries(tmp_path / "runs")
    execute("run.ipynb", tmp_path, TINY | {"WANTED = []": 'WANTED = ["baselines"]'}, SEEDS=[0])
    assert before == entries(tmp_path / "runs"), "finished runs are not trained again"


def test_own_folder(tmp_path: Path) -> None:
    """Unequal classes, pictures without a label, no test set, and no saved split."""
    for part, count in {"train/cat": 24, "train/dog": 9, "unlabeled": 20}.items():
        (tmp_path / "photos" / part).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (16, 16), 7 * i % 256).save(tmp_path / "photos" / part / f"{i}.png")
    done = execute("run.ipynb", tmp_path, TINY, DATA="photos", SIZE=16, SEEDS=[0])
    assert "There is no data/split-photos.npz" in printed(done)
    # what the unlabelled ones show nobody knows
    assert "balanced accuracy" in printed(done) and "of these right" not in printed(done)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"RECIPE": "qick"}, "unknown recipe 'qick'; did you mean quick"),
        ({"LABELS": 5}, "5 labelled images are fewer than the 10 classes"),
    ],
)
def test_error_names_the_fault(wrong: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(papermill.PapermillExecutionError, match=said):
        execute("run.ipynb", tmp_path, **wrong)
