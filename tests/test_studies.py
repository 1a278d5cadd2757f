import multiprocessing
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from test_tables import rows_of, with_keys

from noisy_student import Run
from noisy_student.studies import load_study, study_names
from noisy_student.tables import write_rows

STUDY = '''"""What do unlabelled
images bring?"""

from dataclasses import dataclass
from functools import partial

from noisy_student import Recipe, Run, figures

ALONE = Run("Convnet5", 50)
RUNS = {"alone": ALONE, "student": Run("Convnet6", 50, teachers=(ALONE,))}
SEEDS = (0, 1)
BASELINE = "alone"
FIGURE = partial(figures.forest, baseline=BASELINE)
ANSWER = "A student has {student}, {student minus alone}."


@dataclass(frozen=True)
class Odd(Recipe):
    odd: int = 3


def odd(recipe):
    return recipe.odd
'''


@pytest.fixture(autouse=True)
def path_and_modules() -> Iterator[None]:
    """Loading a study appends to the module path."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in [name for name in sys.modules if name.split(".")[0] == "studies"]:
        del sys.modules[name]


def made(root: Path, text: str = STUDY, name: str = "made") -> Path:
    (root / "studies").mkdir(exist_ok=True)
    (root / "studies" / f"{name}.py").write_text(text)
    return root


def test_a_study_says_what_its_file_says(tmp_path: Path) -> None:
    study = load_study("made", made(tmp_path))
    assert (study.name, study.question) == ("made", "What do unlabelled images bring?")
    assert study.runs["student"] == Run("Convnet6", 50, teachers=(Run("Convnet5", 50),))
    assert study.seeds == {"alone": (0, 1), "student": (0, 1)}
    assert study.baseline == {"student": "alone"} and study.data == "cifar10-jpeg"
    assert load_study(tmp_path / "studies" / "made.py").runs == study.runs
    by_variant = STUDY.replace(
        "SEEDS = (0, 1)", "SEEDS = {'alone': [0], 'student': range(5)}"
    ).replace('BASELINE = "alone"', 'BASELINE = {}\nDATA = "digits"\nCURVE = {50: "alone"}')
    study = load_study("made", made(tmp_path, by_variant))
    assert study.seeds == {"alone": (0,), "student": (0, 1, 2, 3, 4)}
    assert (study.baseline, study.data, study.curve) == ({}, "digits", {50: "alone"})


def test_studies_are_named_by_their_files(tmp_path: Path) -> None:
    for name in ("noise", "filter", "_draft"):
        made(tmp_path, name=name)
    (tmp_path / "studies" / "notes.txt").write_text("")
    assert study_names(tmp_path) == ["filter", "noise"] and study_names(tmp_path / "none") == []
    with pytest.raises(ValueError, match="unknown study 'nois'; did you mean noise"):
        load_study("nois", tmp_path)
    with pytest.raises(ValueError, match=r"gone\.py is no file"):
        load_study(tmp_path / "gone.py")


@pytest.mark.parametrize(
    "old, new, said",
    [
        (
            'BASELINE = "alone"',
            'BASELINE = "alon"',
            "BASELINE of the study made 'alon'; did you mean alone",
        ),
        (
            'BASELINE = "alone"',
            'BASELINE = {"student": "lone"}',
            "in BASELINE of the study made 'lone'",
        ),
        (
            "SEEDS = (0, 1)",
            "SEEDS = {'alone': (0,), 'studnt': (0,)}",
            "SEEDS of the study made 'studnt'",
        ),
        ("SEEDS = (0, 1)", "SEEDS = {'alone': (0,)}", "SEEDS has none of the variant 'student'"),
        ("SEEDS = (0, 1)", "SEEDS = ()", "SEEDS has none of the variant 'alone'"),
        ("SEEDS = (0, 1)", "", r"study made: .*made\.py has no SEEDS"),
        ("bring?", "bring", "docstring is 'What do unlabelled images bring': make it one question"),
        ('"""What', '__doc__ = None\n"""What', "docstring is '': make it one question"),
        ("A student", "word " * 117 + "A student", "ANSWER has 122 words: cut it to 120"),
        ('"student": Run', '"the {student}": Run', "variant 'the {student}' has a brace"),
        ('"student": Run', '"student": 1, "x": Run', "RUNS is not a dict"),
        ("FIGURE = partial", "FIGURE = 'x', partial", "FIGURE=.* is not a function"),
    ],
)
def test_what_a_study_cannot_be_is_one_sentence(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said) as error:
        load_study("made", made(tmp_path, STUDY.replace(old, new, 1)))
    assert "\n" not in str(error.value)


def test_a_study_whose_file_fails_leaves_no_module(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        load_study("made", made(tmp_path, STUDY + "\n1 / 0\n"))
    assert "studies.made" not in sys.modules


def test_a_studys_classes_reach_helper_processes(tmp_path: Path) -> None:
    load_study("made", made(tmp_path))
    module = sys.modules["studies.made"]
    assert pickle.loads(pickle.dumps(module.Odd(odd=5))) == module.Odd(odd=5)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(module.odd, module.Odd(odd=7)).result() == 7


def test_rows_stand_by_variant_and_seed(tmp_path: Path) -> None:
    study = load_study("made", made(tmp_path))
    assert study.rows(tmp_path).empty
    rows = with_keys(rows_of({"student": [80.0, 81.0], "alone": [70.0, 71.0]}), study)
    write_rows(rows.iloc[::-1], tmp_path / "results" / "made.csv")
    found = study.rows(tmp_path)
    assert found.accuracy.tolist() == [70, 71, 80, 81] and list(found) == list(rows)
    write_rows(rows.replace("alone", "Alone"), tmp_path / "results" / "made.csv")
    with pytest.raises(ValueError, match=r"variant in made\.csv 'Alone'; did you mean alone"):
        study.rows(tmp_path)
