"""What the pages say is so: tests, links, recipes, numbers and programs that they name."""

import re
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from noisy_student import RECIPES, Images, Run
from noisy_student.__main__ import main
from noisy_student.tables import tenths

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
SEARCH = ROOT / "docs" / "search.csv"


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each Markdown table, without its second line."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.M)
    rows = [[line.strip("|").split("|") for line in table.splitlines()] for table in found]
    return [[[cell.strip() for cell in row] for row in (head, *body)] for head, _, *body in rows]


def section(page: str, heading: str) -> str:
    """The text below a heading, up to the next of the same level."""
    _, there, text = (ROOT / page).read_text().partition(f"\n## {heading}\n")
    assert there, f"{page} has no section {heading!r}"
    return text.partition("\n## ")[0]


def program(page: str, heading: str) -> str:
    """The Python of a section."""
    found = re.findall(r"^```python\n(.*?)^```", section(page, heading), re.M | re.S)
    assert found, f"{page} has no Python below {heading!r}"
    return "\n".join(found)


# ----------------------------------------------------------------------------- names and links


def test_every_test_named_in_reliability_exists() -> None:
    files = (ROOT / "tests").glob("test_*.py")
    there = {
        name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    named = set(re.findall(r"\b(test_\w+)\b", (DOCS / "reliability.md").read_text()))
    assert len(named) > 40 and not named - there


def anchors(page: Path) -> set[str]:
    """What a link into a page may name: its own anchors, and those that GitHub makes of headings.

    GitHub takes lower case, keeps letters and digits of any script, and makes hyphens of spaces.
    """
    text = page.read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    made = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_or_a_heading_finds_it(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text())
    targets = [(page.parent / file if file else page, heading) for file, heading in links]
    missing = [str(file) for file, _ in targets if not file.exists()]
    assert not missing
    assert not [(file.name, name) for file, name in targets if name and name not in anchors(file)]


def test_the_layout_names_every_module() -> None:
    modules = {path.name for path in (ROOT / "noisy_student").glob("*.py")} - {"__init__.py"}
    assert modules == set(re.findall(r"`(\w+\.py)`", section("docs/design.md", "Layout")))


# ------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "name", ["README.md", "README.ko.md", "docs/design.md", "docs/reliability.md"]
)
def test_no_accuracy_is_typed_by_hand(name: str) -> None:
    """Nothing like 83.4 stands outside the markers that `make pages` fills."""
    computed = r"<!-- (?:=|table ).*?<!-- / -->"
    text = re.sub(computed, "", (ROOT / name).read_text(), flags=re.S)
    assert not re.findall(r"(?<![\d.,])\d\d\.\d\d?(?![\d.])", text)


def test_the_recipes_on_the_page_are_those_of_the_package() -> None:
    """A column for labels alone and one for students, of each recipe; the rest all share."""
    same = {
        "schedule": "triangular",
        "momentum": 0.9,
        "flip": True,
        "crop": 4,
        "dropout": 0.2,
        "ema": 0,
        "label_smoothing": 0,
        "stochastic_depth": 0,
        "precision": "auto",
    }
    (_, *heads), *rows = tables((DOCS / "recipe.md").read_text())[0]
    assert heads == [head for name in RECIPES for head in (f"`{name}` alone", "students")]
    names = [row[0].strip("`") for row in rows]
    columns = zip(*(row[1:] for row in rows), strict=True)
    for (method, students), column in zip(
        product(RECIPES.values(), (False, True)), columns, strict=True
    ):
        recipe = vars(method.student if students else method.supervised)
        others = {"supervised", "student", "teachers", "flip_average"}
        assert {*vars(method), *recipe} == {*names, *same, *others}, (
            "a setting that the page leaves out"
        )
        values = recipe | (vars(method) if students else {})
        assert list(column) == [f"{values[name]:,g}" if name in values else "" for name in names]
        assert same.items() <= recipe.items()
        assert (method.teachers, method.flip_average) == (3, True)


def test_the_search_log_says_what_its_rows_say() -> None:
    """Each number is a row's, or the mean of a recipe's rows over seeds: all, or the first two."""
    rows = pd.read_csv(SEARCH)
    facts = list(rows.columns[: rows.columns.get_loc("member")])
    known = set(rows.validation_accuracy)
    for _, group in rows.groupby(facts, dropna=False):
        for part in (
            group,
            group[group.member == 0],
            group[(group.member == 0) & (group.seed < 2)],
        ):
            known.add(part.groupby("seed").validation_accuracy.mean().mean())
    said = {tenths(value) for value in known if value == value}
    cells = [
        row[2] for table in tables(section("docs/recipe.md", "The search log")) for row in table[1:]
    ]
    numbers = [number for cell in cells for number in re.findall(r"\d\d\.\d", cell)]
    assert len(numbers) > 70 and not set(numbers) - said


@pytest.mark.parametrize(
    ("heading", "name"),
    [("Two CPU cores", "2-core-cpu"), ("One NVIDIA H200, 16 cores", "nvidia-h200")],
)
def test_the_speeds_on_the_page_are_those_of_the_rows(heading: str, name: str) -> None:
    rows = pd.read_csv(ROOT / "results" / "bench" / f"{name}.csv").query("part == 'training'")
    speed = (
        rows[(rows.what == "limit") | (rows.n == 5)].set_index(["model", "what"]).images_per_second
    )
    wanted = []
    for model in speed.index.unique("model"):
        bare, ours, usual = (speed[model, what] for what in ("limit", "noisy_student", "usual"))
        ratios = [f"{ours / bare:.0%}", f"{ours / usual:.1f}"]
        wanted.append([model, *(f"{value:,.0f}" for value in (bare, ours, usual)), *ratios])
    [[_, *shown]] = tables(section("docs/speed.md", heading))
    assert sorted(shown) == sorted(wanted)


# ------------------------------------------------------------------------------------ programs


def test_the_runs_to_repeat_are_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared by what they say: the rows have keys of an earlier form."""
    rows = pd.read_csv(SEARCH)
    asked: list[Run] = []

    def as_in_the_rows(runs: list[Run], *_: Images) -> pd.DataFrame:
        asked.extend(runs)
        return pd.DataFrame(columns=["model", "teacher", "validation_accuracy"])

    tiny = Images(
        torch.zeros(0, 3, 1, 1, dtype=torch.uint8), torch.zeros(0).long(), ("a",), "cifar10-jpeg"
    )
    monkeypatch.setattr("noisy_student.load", lambda *_: (tiny, tiny))
    monkeypatch.setattr("noisy_student.run_all", as_in_the_rows)
    exec(program("docs/recipe.md", "Repeat one search"), {})
    alone, student = asked
    assert student.teachers == alone.members(3) and alone.holdout == student.holdout == 0.2
    said = []
    for run, teacher in ((alone, ""), (student, "Resnet9")):
        then = {"schedule": "onecycle", "temperature": 1, "ensemble": max(1, len(run.teachers))}
        facts = vars(run.recipe) | vars(run) | then | {"teacher": teacher}
        same = [name for name in facts if name in rows and name not in ("pseudo", "data", "key")]
        match = (rows.fillna({"teacher": ""})[same] == pd.Series(facts)[same]).all(axis=1)
        said.append(set(rows[match].validation_accuracy))
    assert said == [{72.7, 71.1}, {75.7}]
    assert "72.7 and 71.1 for the first" in section("docs/recipe.md", "Repeat one search")


def test_the_python_in_the_readme_trains_a_teacher_and_a_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = program("README.md", "In Python")
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(code, found)
    table = found["table"]
    assert isinstance(table, pd.DataFrame)
    assert list(table.generation) == [0, 1] and table.accuracy.min() > 80  # chance gives 10


def test_the_readme_labels_a_users_pictures(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = program("README.md", "Your own pictures")
    (folder / "unlabeled").mkdir()
    for name, picture in {"a": "cat/0.png", "b": "dog/0.png"}.items():
        Image.open(folder / "test" / picture).save(folder / "unlabeled" / f"{name}.jpg", quality=95)
    monkeypatch.chdir(folder.parent)
    small = [
        "chain=Convnet5",
        "generations=1",
        "kinds=soft",
        "teachers=1",
        "recipe.epochs=30",
        "recipe.min_steps=0",
        "recipe.batch_size=4",
    ]
    run = [
        "train",
        "--data",
        "photos",
        "--experiments",
        "students",
        "--out",
        "out/photos",
        "--device",
        "cpu",
    ]
    assert main([*run, *(word for change in small for word in ("--set", change))]) == 0
    capsys.readouterr()
    exec(code, {})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in printed] == [
        ["photos/unlabeled/a.jpg", "cat"],
        ["photos/unlabeled/b.jpg", "dog"],
    ]
    assert all(50 <= int(line[2].removesuffix("%")) <= 100 for line in printed)
