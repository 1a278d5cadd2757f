import itertools
import re
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest
import torch
from noisy_student.statistics import worth, worth_text
from PIL import Image

from noisy_student import Images, Run
from noisy_student.__main__ import changes, main, parser
from noisy_student.experiments import experiment_runs, override, profile
from noisy_student.folders import ARCHIVES

ROOT = Path(__file__).parent.parent
CIFAR10 = Images(torch.zeros(50_000, 3, 1, 1, dtype=torch.uint8), torch.arange(50_000) % 10, tuple("abcdefghij"), "cifar10-jpeg")
T_QUANTILES = {2: 12.706, 3: 4.303, 5: 2.776}  # of Student's distribution at 0.975, by number of seeds


def test_every_test_named_in_reliability_exists() -> None:
    there = {name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    named = set(re.findall(r"\b(test_\w+)\b(?!\.py)", (ROOT / "docs" / "reliability.md").read_text()))
    assert len(named) > 40 and not named - there


PAGES = {"README.md": "README.ko.md", "docs/results.md": "docs/results.ko.md"}
COMMANDS = [(command, korean) for page, korean in PAGES.items()
            for command in re.findall(r"^    (make results (?:[^\\\n]|\\\n)*)", (ROOT / page).read_text(), re.M)]


@pytest.mark.parametrize("data,name", [
    ("digits", "digits"), ("photos.2024/", "photos.2024"), ("a b/my photos", "my photos"), *(
        (f"v1.2/photos{suffix}", "photos") for suffix in (*ARCHIVES, ".ZIP"))])
def test_make_names_results_after_the_data(data: str, name: str) -> None:
    command = ["make", "--no-print-directory", "--dry-run", "--assume-old", ".venv/installed", "results", f"DATA={data}"]
    words = shlex.split(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip())
    assert [words[words.index(option) + 1] for option in ("--data", "--out", "--figures")] == [data, f"results/{name}", f"assets/{name}"]


@pytest.mark.parametrize(("command", "korean"), COMMANDS)
def test_the_command_beside_a_table_makes_its_rows(command: str, korean: str) -> None:
    assert command in (ROOT / korean).read_text()
    dry = command.replace("make results", "make --no-print-directory --dry-run --assume-old .venv/installed results")
    printed = subprocess.run(["sh", "-c", dry], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = shlex.split(printed.strip())
    args = parser().parse_args(words[words.index("noisy_student") + 1 :])
    rows = pd.read_csv(ROOT / args.out / "runs.csv")
    settings = override(profile(args.profile, CIFAR10, "cpu", args.labels), changes(args))
    runs = [(name, run) for name in args.experiments.split(",") for run in experiment_runs(name, settings)]
    assert [(name, run.bind(rows.data[0], "").key) for name, run in runs] == list(zip(rows.experiment, rows.key, strict=True))


def test_the_script_of_the_best_model_makes_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    code = page[page.index("    from noisy_student import Run, Store, load, predict\n") : page.index("### What these students are worth")]
    code = "\n".join(line[4:] for line in code.splitlines() if line.startswith("    "))
    rows = pd.read_csv(ROOT / "results" / "cifar10-jpeg-full-strong-teachers-less-noise" / "runs.csv").query("experiment == 'generations'")
    asked: list[Run] = []

    def as_in_the_rows(runs: list[Run], *_: Images, device: str) -> pd.DataFrame:
        assert device == "cpu"  # as the rows say
        asked.extend(run.bind(rows.data.iloc[0], "") for run in runs)
        return rows

    monkeypatch.setattr("noisy_student.load", lambda *_: (CIFAR10, CIFAR10))
    monkeypatch.setattr("noisy_student.run_all", as_in_the_rows)
    monkeypatch.setattr("noisy_student.runs.prepare", lambda *_: ([],))  # the first script's predictions, which need the models
    exec(code, {})
    assert [run.key for run in asked] == list(rows.key)


def test_commands_were_found() -> None:
    assert len(COMMANDS) >= 6


def points(x: float) -> str:
    """Halves of a tenth are rounded up, as one does by hand, and zero has no sign."""
    return f"{x + 1e-9:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0")


def difference(x: pd.Series) -> str:
    """Mean with 95% interval, a value a seed, by a table's t quantiles."""
    assert x.notna().all()
    return f"{points(x.mean())} ± {T_QUANTILES[len(x)] * x.std() / len(x) ** 0.5:.1f}"


def gains_of_the_rows(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    """Each student of several seeds as a page may say it: accuracy, gain and 95% interval."""
    plain = rows[rows.experiment == "baselines"].drop_duplicates(["model", "seed"])
    students = rows[rows.experiment.isin(["students", "generations"]) & (rows.pseudo != "none")].drop_duplicates("key")
    pairs = students.merge(plain[["model", "seed", "accuracy"]], on=["model", "seed"], suffixes=("", "_alone"))
    found = []
    for _, group in pairs.groupby(["model", "pseudo", "generation"]):
        gain, accuracy = group.accuracy - group.accuracy_alone, group.accuracy.mean()
        if len(group) > 1:
            said = difference(gain)
            found.append((f"{accuracy:.2f}: {said}", f"{accuracy:.1f}: {said}", f"| {said.removeprefix('+')} |"))
    return found


@pytest.mark.parametrize("pages", [PAGES.keys(), PAGES.values()], ids=["English", "Korean"])
def test_the_pages_give_the_gains_of_the_rows(pages: Iterable[str]) -> None:
    text = "".join((ROOT / page).read_text() for page in pages)
    tables = [path for path in ROOT.glob("results/*/runs.csv") if path.parent.name != "cifar10-jpeg-filter-seeds"]  # a row with -filter
    wanted = [ways for path in tables for ways in gains_of_the_rows(pd.read_csv(path))]
    assert len(wanted) > 30
    assert not [ways for ways in wanted if not any(way in text for way in ways)]


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives a page's headings: lower case, letters and digits (of any script), spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda page: page.name)
def test_every_link_to_a_file_or_a_heading_finds_it(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text())
    targets = [(page.parent / file if file else page, heading) for file, heading in links]
    assert not [target for target in targets if not target[0].exists() or (target[1] and target[1] not in anchors(target[0]))]


def test_the_recipes_on_the_page_are_those_of_the_profiles() -> None:
    everywhere = {"schedule": "onecycle", "momentum": 0.9, "flip": True, "crop": 4, "dropout": 0.2, "ema": 0, "label_smoothing": 0,
                  "stochastic_depth": 0, "ensemble": 3, "student_ensemble": 1, "flip_average": True}
    page = (ROOT / "docs" / "recipe.md").read_text()
    head, _, *rows = (line.split("|")[1:-1] for line in page[: page.index("Everywhere:")].splitlines() if line.startswith("|"))
    parameters = [row[0].strip(" `") for row in rows]
    for column in range(1, len(head)):
        name, part = head[column].strip().split(", ")
        settings = profile(name.strip("`"), CIFAR10, "cpu")
        values = vars(settings.supervised) if part == "labels alone" else vars(settings.student) | vars(settings)
        assert [row[column].strip() for row in rows] == [f"{values[p]:g}" if p in values else "" for p in parameters], head[column]
        assert everywhere.items() <= (vars(settings) | values).items()


def code_of(section: str, following: str, page: str = "README.md") -> str:
    """The indented lines of a section of a page."""
    text = (ROOT / page).read_text()
    lines = text[text.index(f"## {section}") : text.index(f"## {following}")].splitlines()
    return "\n".join(line.removeprefix("    ") for line in lines if line.startswith("    "))


def test_the_run_to_repeat_is_one_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pd.read_csv(ROOT / "results" / "cifar10-jpeg" / "search.csv")
    asked: list[Run] = []
    monkeypatch.setattr("noisy_student.load", lambda *_: (CIFAR10, CIFAR10))
    monkeypatch.setattr("noisy_student.run_all", lambda runs, *_: asked.extend(runs) or rows)
    exec(code_of("How to read this page", "Short training", "docs/recipe.md"), {})
    [run] = asked
    first, again = rows[rows.key == run.bind(rows.data[0], "").key].validation_accuracy
    assert f"One, with {first} and {again}, is repeated by\n" in (ROOT / "docs" / "recipe.md").read_text()


def test_the_python_in_the_readme_trains_a_teacher_and_a_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(code_of("In Python", "Results so far"), found)
    table = found["table"]
    assert isinstance(table, pd.DataFrame)
    assert list(table.pseudo) == ["none", "soft"] and table.accuracy.min() > 80  # chance gives 10


def test_the_readme_labels_a_users_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "unlabeled").mkdir()
    for name, picture in {"a": "cat/0.png", "b": "dog/0.png"}.items():
        Image.open(folder / "test" / picture).save(folder / "unlabeled" / f"{name}.jpg", quality=95)
    monkeypatch.chdir(folder.parent)
    small = ["chain=Convnet5", "generations=1", "kinds=soft", "ensemble=1", "recipe.epochs=30", "recipe.batch_size=4"]
    run = ["--data", "photos", "--experiments", "students,generations", "--out", "out/photos-quick", "--seeds", "0", "--device", "cpu"]
    assert main([*run, *(word for change in small for word in ("--set", change))]) == 0
    capsys.readouterr()
    exec(code_of("Your own images", "In Python").partition("test/")[2].partition("\n")[2], {})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in printed] == [["photos/unlabeled/a.jpg", "cat"], ["photos/unlabeled/b.jpg", "dog"]]
    assert all(50 <= int(line[2].removesuffix("%")) <= 100 for line in printed)


def table_after(page: str, words: str) -> tuple[str, list[list[str]]]:
    """The heading and the cells of the first table after these words."""
    heading, _, *lines = re.search(r"(?:^\|.*\n)+", (ROOT / page).read_text().partition(words)[2], re.M)[0].splitlines()  # type: ignore[index]
    return heading, [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


@pytest.mark.parametrize("page", ["docs/results.md", "docs/results.ko.md"])
def test_the_road_on_the_page_is_that_of_the_rows(page: str) -> None:
    """Mean accuracy of each step and, with several seeds, its difference from the step before, paired by seed."""
    switches = ("fault_eval", "fault_equalize", "schedule", "flip", "n", "dropout")  # the page's order of steps
    columns, names = [], []
    for name in ("quick", "long", "full"):
        for model, rows in pd.read_csv(ROOT / "results" / f"cifar10-jpeg-{name}-road" / "runs.csv").groupby("model"):
            steps = [step.set_index("seed") for _, step in rows.groupby(rows.groupby("seed").cumcount())]
            names.append((model, f"{rows.epochs.iloc[0]:,}"))
            columns.append([f"{steps[0].accuracy.mean() + 1e-9:.1f}"])
            for switch, (before, after) in zip(switches, itertools.pairwise(steps), strict=True):
                assert (before[switch] != after[switch]).all()
                change = f": {difference(after.accuracy - before.accuracy)}" if len(after) > 1 else ""
                columns[-1].append(f"{after.accuracy.mean() + 1e-9:.1f}{change}")
    heading, cells = table_after(page, "cifar10-jpeg-full-road ARGS")
    assert re.findall(r"(\w+net\d), ([\d,]*\d)", heading) == names
    assert [line[1:] for line in cells] == [list(line) for line in zip(*columns, strict=True)]


@pytest.mark.parametrize("page", ["docs/results.md", "docs/results.ko.md"])
def test_the_further_generations_on_the_page_are_those_of_the_rows(page: str) -> None:
    """Of each generation: mean accuracy, its gain, from the fourth on the difference from the one before, accuracy by seed, its labels."""
    rows = pd.read_csv(ROOT / "results" / "cifar10-jpeg-quick-generations" / "runs.csv")
    alone = rows[rows.experiment == "baselines"].drop_duplicates(["model", "seed"]).set_index(["model", "seed"]).accuracy
    groups = rows[rows.experiment == "generations"].groupby("generation")
    generations = {generation: group.set_index("seed") for generation, group in groups}
    heading, cells = table_after(page, "--set generations=5 --seeds 0,1,2\"")
    assert [int(seed) for seed in re.findall(r"\d+", heading)] == list(generations[0].index)
    for (place, student), said in zip(list(generations.items())[1:], cells, strict=True):
        model, accuracy = student.model.iloc[0], student.accuracy
        step = difference(accuracy - generations[place - 1].accuracy) if place > 3 else ""
        labels = f"{100 * student.kept.mean() + 1e-9:.0f}%, {student.pseudo_accuracy.mean() + 1e-9:.1f}%"
        assert said == [f"{place}, {model}", f"{accuracy.mean() + 1e-9:.2f}: {difference(accuracy - alone[model])}", step,
                        ", ".join(f"{x + 1e-9:.1f}" for x in accuracy), labels]


@pytest.mark.parametrize("page", ["docs/results.md", "docs/results.ko.md"])
def test_the_parts_of_a_student_on_the_page_are_those_of_the_rows(page: str) -> None:
    """Of each variant: what it changes, mean accuracy, the difference from the unchanged student in the mean and by seed, its labels."""
    rows = pd.read_csv(ROOT / "results" / "cifar10-jpeg-quick-parts" / "runs.csv")
    variants = [variant.set_index("seed") for _, variant in rows.groupby(rows.groupby("seed").cumcount())]
    unchanged = variants[1]  # variants[0] is labels alone
    settings = ["pseudo", *rows.columns[rows.columns.get_loc("epochs") : rows.columns.get_loc("member")]]
    heading, cells = table_after(page, "cifar10-jpeg-quick-parts ARGS")
    assert [int(seed) for seed in re.findall(r"\d+", heading)] == list(unchanged.index)
    for (label, *said), variant in zip(cells, variants[1:], strict=True):
        first = variant.iloc[0]
        changed = {name: str(first[name]) for name in settings if first[name] != unchanged.iloc[0][name]}
        assert dict(pair.split("=") for pair in re.findall(r"\w+=[\w.]+", label)) == changed
        change = variant.accuracy - unchanged.accuracy
        gain = [difference(change), ", ".join(map(points, change))] if changed else ["", ""]
        labels = f"{100 * variant.kept.mean() + 1e-9:.0f}%, {variant.pseudo_accuracy.mean() + 1e-9:.1f}%"
        assert said == [f"{variant.accuracy.mean() + 1e-9:.1f}", *gain, labels]


@pytest.mark.parametrize("page", ["README.md", "README.ko.md", "docs/results.md", "docs/results.ko.md"])
def test_every_worth_with_an_interval_is_that_of_the_rows(page: str) -> None:
    """Of each table's own last students, of the stronger teachers' on the two curves of docs/results.md, and of `full`'s on two points."""
    tables = {path.parent.name: pd.read_csv(path) for path in ROOT.glob("results/*/runs.csv")}
    named = "cifar10-jpeg-full-"
    counts = pd.concat(tables[f"{named}strong-label-counts{noise}"] for noise in ("", "-less-noise", "-middle-noise"))
    best = counts.groupby(["labels", "n"]).accuracy.mean().groupby("labels").idxmax()  # each number of labels by its best noise
    curves = [counts[counts.n == 3], counts[[(row.labels, row.n) in set(best) for row in counts.itertuples()]]]
    names = ("ensembles", "strong-teachers", "strong-teachers-less-noise")
    students = [tables[named + name].query("experiment == 'generations'") for name in names]
    students[2] = students[2][students[2].generation == 3]
    made = [table for table in tables.values() if {"label_counts"} < set(table.experiment)]
    made += [pd.concat([rows, curve]) for rows in students for curve in curves]
    of_full = tables["cifar10-jpeg"]
    ends = (of_full.experiment == "label_counts") & of_full.labels.isin([5000, 10000])
    made.append(of_full[(of_full.experiment == "generations") | ends])
    wanted = {tuple(re.findall(r"[\d,]+", worth_text(row.worth, row.low, row.high, table[table.experiment == "label_counts"])))
              for table in made for row in worth(table).itertuples()}
    text = (ROOT / page).read_text()
    said = set(re.findall(r"([\d,]+)(?: labels)?(?: alone)?(?: give)? \(([\d,]+) to (?:more than )?(\d[\d,]*\d)", text))
    said |= set(re.findall(r"([\d,]{4,})(?:개|장)?(?:\*\*)? ?\(([\d,]+)~(\d[\d,]*\d)", text))
    assert said and said <= wanted, said - wanted
