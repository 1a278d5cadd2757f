import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support

from noisy_student import tables
from noisy_student.studies import Study
from noisy_student.tables import (
    ROW_COLUMNS,
    compare,
    confusions,
    difference,
    label_efficiency,
    labels_in_words,
    mean_and_interval,
    per_class,
    read_rows,
    write_rows,
)


def rows_of(accuracies: dict[str, list[float]], **more: object) -> pd.DataFrame:
    """A row a variant and seed 0, 1, ..., as of a study."""
    found = [
        {
            "study": "made",
            "variant": variant,
            "seed": seed,
            "model": "Resnet9",
            "labels": 5000,
            "generation": 0,
            "accuracy": accuracy,
            "validation_accuracy": math.nan,
            "pseudo_accuracy": math.nan,
            "kept": math.nan,
            "fit": 90.0,
            "seconds": 1.5,
            "images_per_second": 1000.0,
            "device": "2-core CPU",
            "data": "cifar10-0123456789abcdef",
            "key": f"{variant}{seed}",
            **more,
        }
        for variant, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]
    return pd.DataFrame(found, columns=list(ROW_COLUMNS))


def with_keys(rows: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The same rows with the keys that the study's trainings have."""
    keys = [study.run(row.variant, row.seed, row.data).key for row in rows.itertuples()]
    return rows.assign(key=keys)


# -------------------------------------------------------------------------------------- rows


def test_rows_come_back_as_written_by_variant_and_seed(tmp_path: Path) -> None:
    rows = rows_of({"NA": [80.1234567, 81.0], "plain": [70.0, 71.0]})
    rows["key"] = ["00012345678901234567", "12e45678901234567890", "k", "l"]  # no numbers
    write_rows(rows.sample(frac=1, random_state=0), tmp_path / "x.csv", ["plain", "NA"])
    found = read_rows(tmp_path / "x.csv")
    assert tuple(found) == ROW_COLUMNS and found.variant.tolist() == ["plain"] * 2 + ["NA"] * 2
    assert found.key.tolist() == ["k", "l", "00012345678901234567", "12e45678901234567890"]
    assert found.accuracy.tolist() == [70, 71, 80.1235, 81] and found.kept.isna().all()
    written = (tmp_path / "x.csv").read_bytes()
    write_rows(found.sample(frac=1, random_state=1), tmp_path / "x.csv", ["plain", "NA"])
    assert (tmp_path / "x.csv").read_bytes() == written, "the order of rows means nothing"
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_other_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="the columns a, b: a study's rows have study,"):
        read_rows(tmp_path / "x.csv")
    write_rows(pd.concat([rows_of({"a": [1.0]})] * 2), tmp_path / "y.csv")
    with pytest.raises(ValueError, match="two rows of 'a' with seed 0"):
        read_rows(tmp_path / "y.csv")


def test_data_in_words() -> None:
    assert tables.data_title("cifar10-jpeg-0123456789abcdef") == "CIFAR-10 (JPEG copy)"
    assert tables.data_title("my-photos-0123456789abcdef") == "my-photos"


# ------------------------------------------------------------------------------------- means


def test_mean_and_interval_is_students() -> None:
    values = [60.0, 61.5, 63.0, 60.5]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    mean, half = mean_and_interval(values)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert mean_and_interval([5.0, math.nan])[0] == 5 and math.isnan(mean_and_interval([5.0])[1])


def test_difference_is_paired_by_seed() -> None:
    """As SciPy's paired test has it; a seed that one of the two lacks does not count."""
    rows = rows_of({"a": [80.0, 75.0, 78.0], "b": [70.0, 68.0, 66.0, 99.0]})
    mean, half, pairs = difference(rows.sample(frac=1, random_state=0), "a", "b")
    low, high = stats.ttest_rel([80.0, 75.0, 78.0], [70.0, 68.0, 66.0]).confidence_interval(0.95)
    assert (mean - half, mean + half, pairs) == (pytest.approx(low), pytest.approx(high), 3)
    apart = pd.concat([rows_of({"a": [80.0]}), rows_of({"b": [70.0]}).assign(seed=7)])
    assert math.isnan(difference(apart, "a", "b")[0])
    with pytest.raises(ValueError, match="unknown variant 'bb'; did you mean b"):
        difference(rows, "a", "bb")


def test_held_out_scores_are_not_compared_with_test_scores() -> None:
    held = rows_of({"h": [math.nan] * 2, "g": [math.nan] * 2})
    held["validation_accuracy"] = [1, 2, 4, 5]
    assert difference(held, "g", "h")[0] == 3
    with pytest.raises(ValueError, match="'h' and 'a' were scored on different images"):
        difference(pd.concat([held, rows_of({"a": [80.0, 80.0]})]), "h", "a")


def test_compare_by_hand() -> None:
    """Gains 2 and 4: mean 3; Student's t with 1 degree of freedom is 12.706, std / sqrt(2) is 1."""
    rows = rows_of({"plain": [60, 70], "student": [62, 74], "later": [77.0]})
    rows.loc[rows.variant == "student", ["kept", "pseudo_accuracy"]] = [[0.5, 90], [0.7, 80]]
    found = compare(rows, "plain").set_index("variant")
    assert list(found.index) == ["plain", "student", "later"]
    student = found.loc["student"]
    assert (student.accuracy, student.difference, student.seeds) == (68, 3, 2)
    assert (student.kept, student.pseudo_accuracy) == (pytest.approx(0.6), 85)
    assert student.interval == pytest.approx(12.706, abs=1e-3)
    assert found.difference["later"] == 17 and math.isnan(found.interval["later"])
    assert math.isnan(found.difference["plain"])
    own = compare(rows, {"later": "student"}).set_index("variant")
    assert own.difference["later"] == 15 and own.difference.isna().sum() == 2
    assert compare(rows).difference.isna().all()
    with pytest.raises(ValueError, match="unknown variant 'plane'; did you mean plain"):
        compare(rows, "plane")


@pytest.mark.parametrize(
    "value, said",
    [
        (72.55, "72.6"),
        (66.35, "66.4"),
        (68.25, "68.3"),
        (68.24, "68.2"),
        (-0.25, "-0.3"),
        (-0.04, "0.0"),
    ],
)
def test_means_are_rounded_as_by_hand(value: float, said: str) -> None:
    assert tables.tenths(value) == said


# -------------------------------------------------------------------------- label efficiency


def test_label_efficiency_on_a_known_curve() -> None:
    """Accuracy 60 + 10 log2(labels / 5000) without noise: 65 is worth 5000 sqrt(2) labels."""
    exact = {n: [60 + 10 * math.log2(n / 5000)] * 3 for n in (20000, 5000, 10000)}
    found = label_efficiency(exact, [65.0, 65.0])
    assert found == pytest.approx((5000 * 2**0.5,) * 3)
    for curve, student in (({**exact, 20000: exact[20000][:1]}, [65.0, 65.0]), (exact, [65.0])):
        estimate, *ends = label_efficiency(curve, student)  # something has a single seed
        assert estimate == pytest.approx(found[0]) and all(map(math.isnan, ends))
    assert label_efficiency(exact, [99.0])[0] == math.inf
    assert label_efficiency(exact, [5.0])[0] == -math.inf
    students = [64.5, 65.5, 64.0, 66.0]
    labels, *ends = label_efficiency(exact, students)
    assert labels == pytest.approx(5000 * 2**0.5)
    # on a curve without noise the interval is the students'
    wanted = stats.t.interval(0.95, 3, np.mean(students), stats.sem(students))
    assert [60 + 10 * math.log2(end / 5000) for end in ends] == pytest.approx(wanted, abs=0.15)


def test_label_efficiency_counts_the_noise_of_the_curve_too() -> None:
    """Students at 65; 60 on 5,000 labels, 70 + e on 10,000: log2 of the crossing 5 / (10 + e)."""
    noisy = {5000: [60.0] * 4, 10000: [70.0 + e for e in (-1, 1, -1, 1)]}
    labels, *ends = label_efficiency(noisy, [65.0, 65.0])
    low, high = stats.t.interval(0.95, 3, 10, stats.sem([-1, 1, -1, 1]))
    assert labels == pytest.approx(5000 * 2**0.5)
    assert [math.log2(end / 5000) for end in ends] == pytest.approx([5 / high, 5 / low], abs=0.01)


def test_label_efficiency_is_the_fewest_labels_that_reach_a_level() -> None:
    flat = {100: [50.0], 200: [50.0], 400: [70.0], 800: [70.0]}
    assert label_efficiency(flat, [50.0])[0] == 100
    assert label_efficiency(flat, [70.0])[0] == pytest.approx(400)
    assert label_efficiency(flat, [60.0])[0] == pytest.approx(200 * math.sqrt(2))
    dip = {100: [60.0], 200: [58.0], 400: [70.0]}  # read as 60, 60, 70
    assert label_efficiency(dip, [60.0])[0] == 100
    assert label_efficiency(dip, [65.0])[0] == pytest.approx(200 * math.sqrt(2))


def test_labels_in_words_have_three_digits_and_know_the_ends_of_the_curve() -> None:
    counts = [5000, 20_000]
    assert labels_in_words((12_667.4, 9_925, 15_415), counts) == "12,700 (9,930 to 15,400)"
    assert labels_in_words((216.4, 99.6, 9_996), counts) == "216 (100 to 10,000)"
    assert labels_in_words((8_430, -math.inf, math.inf), counts) == (
        "8,430 (fewer than 5,000 to more than 20,000)"
    )
    assert labels_in_words((math.inf, math.nan, math.nan), counts) == "more than 20,000"
    assert labels_in_words((math.inf, math.inf, math.inf), counts) == "more than 20,000"


# ---------------------------------------------------------------------------------- by class


def test_accuracy_by_class_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 4, 300), rng.integers(0, 5, 300)
    truth[truth == 3] = 4  # class 3 has no test picture
    counts = np.zeros((5, 5), dtype=int)
    np.add.at(counts, (truth, guess), 1)
    found = per_class(counts, "abcde")
    precision, recall, _, count = precision_recall_fscore_support(
        truth, guess, labels=range(5), zero_division=np.nan
    )
    assert found["class"].tolist() == list("abcde") and found["count"].tolist() == count.tolist()
    assert found.recall.to_numpy() == pytest.approx(100 * recall, nan_ok=True)
    assert found.precision.to_numpy() == pytest.approx(100 * precision, nan_ok=True)
    assert found.recall.isna().tolist() == [False, False, False, True, False]
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        wanted = balanced_accuracy_score(truth, guess)
    assert tables.balanced_accuracy(counts) == pytest.approx(100 * wanted)


def test_a_rare_class_counts_as_much_as_a_frequent_one() -> None:
    counts = np.array([[380, 0, 0], [0, 16, 0], [1, 1, 0]])
    assert tables.balanced_accuracy(counts) == pytest.approx(200 / 3)
    assert math.isnan(per_class(counts, "abc").precision[2]), "never predicted"


def test_the_largest_confusions() -> None:
    counts = np.array([[90, 9, 1], [4, 6, 0], [5, 0, 45]])
    found = confusions(counts, ("cat", "dog", "frog"), most=3)
    assert found.to_dict("split", index=False)["data"] == [
        ["cat", "dog", 9, 9.0],
        ["frog", "cat", 5, 10.0],
        ["dog", "cat", 4, 40.0],
    ]
    assert len(confusions(counts, "abc")) == 4, "none without a picture"
    assert confusions(np.eye(3, dtype=int), "abc").empty
