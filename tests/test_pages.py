import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats
from sklearn.linear_model import LinearRegression
from test_studies import STUDY, made, path_and_modules  # noqa: F401
from test_tables import rows_of, with_keys

from noisy_student import pages
from noisy_student.pages import answer, check, render, section, table, value, write
from noisy_student.studies import Study, load_study
from noisy_student.tables import write_rows

ACCURACY = {"alone": [70.0, 71.0, 72.5], "student": [74.0, 76.5, 75.0]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A study with rows, one that has none yet, and two READMEs with markers."""
    made(tmp_path)
    made(tmp_path, STUDY.replace("unlabelled", "more"), "more")
    write_rows(with_keys(rows(), load_study("made", tmp_path)), tmp_path / "results" / "made.csv")
    marked = (
        "It has <!-- =made: student --><!-- / -->%, <!-- =made: student minus alone -->x<!-- / -->."
    )
    block = "<!-- table made: student = Student, with | noise"
    for page in pages.READMES:
        (tmp_path / page).write_text(
            f"# A\n\n{marked}\n\n{block.split(',')[0]} | alone -->\nold\n<!-- / -->\n\nEnd.\n"
        )
    return tmp_path


def rows() -> pd.DataFrame:
    found = rows_of(ACCURACY)
    of = found.variant == "student"
    found.loc[of, "kept"], found.loc[of, "pseudo_accuracy"] = [0.5, 0.6, 0.7], [80.0, 82.0, 84.6]
    return found


def study(root: Path) -> Study:
    return load_study("made", root)


def test_placeholders_by_hand_and_by_scipy(root: Path) -> None:
    test = stats.ttest_rel(ACCURACY["student"], ACCURACY["alone"])
    low, high = test.confidence_interval(0.95)
    wanted = f"+{(low + high) / 2:.1f} ± {(high - low) / 2:.1f}"
    for expression, text in {
        "student": "75.2",
        "alone": "71.2",
        "student minus alone": wanted,
        "alone minus student": wanted.replace("+", "-"),
        "right of student": "82.2%",
        "kept of student": "60%",
        "fit of alone": "90.0%",
        "seeds of student": "3",
    }.items():
        assert value(expression, study(root), rows()) == text
    single = rows()[rows().seed == 0]
    assert value("student minus alone", study(root), single) == "+4.0"
    held = rows().assign(validation_accuracy=rows().accuracy - 10, accuracy=math.nan)
    assert value("student", study(root), held) == "65.2"
    assert answer(study(root), rows()) == f"A student has 75.2, {wanted}."


def test_labels_worth_by_a_regression(root: Path) -> None:
    """A curve that is straight in log(labels): the crossing is where a fitted line has the mean."""
    text = STUDY.replace(
        "BASELINE =",
        'RUNS |= {"on 100": ALONE, "on 400": ALONE}\n'
        'CURVE = {100: "on 100", 400: "on 400"}\nBASELINE =',
    )
    its = load_study("made", made(root, text))
    found = rows_of({"student": [65.0], "on 100": [60.0], "on 400": [70.0]})
    fit = LinearRegression().fit([[60.0], [70.0]], np.log([100, 400]))
    assert value("labels worth student", its, found) == f"{np.exp(fit.predict([[65.0]])[0]):.0f}"
    with pytest.raises(ValueError, match="study more: 'labels worth' needs CURVE"):
        value("labels worth student", load_study("more", root), found)


@pytest.mark.parametrize(
    "expression, said",
    [
        ("studnt", "unknown variant of the study made 'studnt'; did you mean student"),
        ("student minus alon", "the study made 'alon'; did you mean alone"),
        ("worth of alone", "unknown variant of the study made 'worth of alone'"),
        ("kept of alone", "study made: its rows have no value for {kept of alone}"),
    ],
)
def test_a_wrong_placeholder_is_named(root: Path, expression: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        value(expression, study(root), rows())


def test_a_value_of_a_variant_without_rows_is_refused(root: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no rows of 'student' yet for \{student\}: make study NAME=made"
    ):
        value("student", study(root), rows_of({"alone": [70.0]}))


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()]


def test_a_table_has_what_there_is(root: Path) -> None:
    head, line, *found = cells(table(study(root), rows()))
    assert head == ["variant", "accuracy", "difference (to “alone”)", "kept", "right", "seeds"]
    low, high = stats.t.interval(0.95, 2, 75.1666667, stats.sem(ACCURACY["student"]))
    assert found[1][:2] == ["student", f"75.2 ± {(high - low) / 2:.1f}"]
    assert found[1][3:] == ["60%", "82.2%", "3"] and found[0][2:] == ["", "", "", "3"]
    assert len({len(row) for row in (head, line, *found)}) == 1
    head, *_ = cells(table(study(root), rows_of(ACCURACY)))
    assert head == ["variant", "accuracy", "difference (to “alone”)", "seeds"], "no pseudo-labels"
    (_, _, row) = cells(table(study(root), rows(), {"student": "a | b*"}))
    assert row[0] == r"a \| b\*"
    held = rows().assign(validation_accuracy=rows().accuracy, accuracy=math.nan)
    assert cells(table(study(root), held))[0][1] == "accuracy on held-out labels"


def test_a_difference_over_fewer_seeds_says_so(root: Path) -> None:
    found = rows()
    found = found[(found.variant == "student") | (found.seed < 2)]
    assert cells(table(study(root), found))[3][2].endswith("(2 seeds)")


def test_results_have_a_section_a_study(root: Path) -> None:
    text = render(root)[0][root / "RESULTS.md"]
    assert text.index("- [What do more images bring?](#more)") < text.index('<a id="made"></a>')
    first, second = text[text.index('<a id="made">') :].split('<a id="more"></a>')
    for part in (
        "## What do unlabelled images bring?",
        answer(study(root), rows()),
        table(study(root), rows()),
        "(assets/made.png)",
        "CIFAR-10; 2-core CPU; `make study NAME=made`",
    ):
        assert part in first
    assert "there are no rows" in second and ".png" not in second and "{" not in text


def test_an_unfinished_study_has_a_table_and_no_answer(root: Path) -> None:
    text = section(study(root), rows_of({"alone": [70.0, 71.0]}))
    assert "there are no rows of student." in text and "| alone |" in text and ".png" not in text


def test_pages_are_written_whole_and_then_agree(root: Path) -> None:
    assert {path.name for path in check(root)} == {"RESULTS.md", *pages.READMES, "made.png"}
    names = {str(path.relative_to(root)) for path in write(root)}
    assert names == {"RESULTS.md", *pages.READMES, "assets/made.png"}
    assert check(root) == []
    with Image.open(root / "assets" / "made.png") as image:
        assert np.asarray(image.convert("L")).std() > 5
    readme = (root / "README.md").read_text()
    minus = value("student minus alone", study(root), rows())
    assert (
        f"--> {75.2}".replace(" ", "") + "<!-- / -->%" in readme
        and f"-->{minus}<!-- / -->." in readme
    )
    assert "| Student |" in readme and "old" not in readme and readme.endswith("\n\nEnd.\n")
    assert "| 방법 | 정확도 |" in (root / "README.ko.md").read_text()
    (root / "README.md").write_text(readme.replace("75.2<", "75.3<"))
    assert check(root) == [root / "README.md"]
    better = rows().assign(accuracy=rows().accuracy + 1)
    write_rows(with_keys(better, load_study("made", root)), root / "results" / "made.csv")
    assert root / "RESULTS.md" in check(root)


@pytest.mark.parametrize(
    "text, said",
    [
        ("<!-- =made: student -->70", "a marker is open"),
        ("70<!-- / -->", "a marker is open"),
        ("<!-- table made: alone -->\nx\n\n<!-- =made: alone -->7<!-- / -->\n", "a marker is open"),
        ("<!-- =mad: student -->70<!-- / -->", "unknown study 'mad'; did you mean made"),
        ("<!-- =made: studnt -->70<!-- / -->", "'studnt'; did you mean student"),
        ("<!-- table made: alone | studnt -->\n<!-- / -->", "'studnt'; did you mean student"),
        ("<!-- =more: student -->70<!-- / -->", "study more: there are no rows of 'student' yet"),
    ],
)
def test_a_wrong_marker_is_named_with_its_page(root: Path, text: str, said: str) -> None:
    (root / "README.md").write_text(text)
    with pytest.raises(ValueError, match=rf"README\.md: .*{said}"):
        write(root)
    assert (root / "README.md").read_text() == text and not (root / "RESULTS.md").exists()


def test_baselines_of_their_own_are_named_in_their_rows(root: Path) -> None:
    text = (
        STUDY.replace("BASELINE =", 'RUNS["last"] = ALONE\nBASELINE =')
        .replace('BASELINE = "alone"', 'BASELINE = {"student": "alone", "last": "student"}')
        .replace("baseline=BASELINE", "baseline=dict(BASELINE)")
    )
    its = load_study("made", made(root, text))
    found = cells(table(its, rows_of({**ACCURACY, "last": [75.0, 77.5, 76.0]})))
    assert found[0][2:4] == ["difference", "to"] and found[3][3] == "alone"
    assert found[4][2:4] == ["+1.0 ± 0.0", "student"]
