import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from noisy_student import Run
from noisy_student.statistics import gains, labels_worth, mean_and_interval, part_gains, summary, worth, worth_text


def test_mean_and_interval_is_students() -> None:
    values = [60.0, 61.5, 63.0, 60.5]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    mean, half = mean_and_interval(values)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert mean_and_interval([5.0, math.nan])[0] == 5 and math.isnan(mean_and_interval([5.0])[1])


def test_labels_worth_on_a_known_curve() -> None:
    """Accuracy 60 + 10 log2(labels / 5000) without noise: 65 is worth 5000 sqrt(2) labels."""
    exact = pd.DataFrame([{"labels": n, "accuracy": 60 + 10 * math.log2(n / 5000)} for n in (5000, 10000, 20000) for _ in range(3)])
    worth = labels_worth(exact, [65.0, 65.0])
    assert worth == pytest.approx((5000 * 2**0.5,) * 3)
    once = labels_worth(exact.drop([7, 8]), [65.0, 65.0])  # 20,000 labels in one seed
    assert once[0] == labels_worth(exact, [65.0])[0] == worth[0] and all(map(math.isnan, [*once[1:], *labels_worth(exact, [65.0])[1:]]))
    assert labels_worth(exact, [99.0])[0] == math.inf and labels_worth(exact, [5.0])[0] == -math.inf
    students = [64.5, 65.5, 64.0, 66.0]
    labels, *ends = labels_worth(exact, students)
    assert labels == pytest.approx(5000 * 2**0.5)
    wanted = stats.t.interval(0.95, 3, np.mean(students), stats.sem(students))  # on a curve without noise the interval is the students'
    assert [60 + 10 * math.log2(end / 5000) for end in ends] == pytest.approx(wanted, abs=0.15)


def test_labels_worth_counts_the_noise_of_the_curve_too() -> None:
    """Students without noise at 65; curve 60, 70 at 5,000 and 10,000 with one of its ends uncertain: log2 crossing 5 / (10 + e)."""
    noisy = pd.DataFrame([{"labels": 5000, "accuracy": 60.0} for _ in range(4)] + [{"labels": 10000, "accuracy": 70 + e}
                                                                                  for e in (-1, 1, -1, 1)])
    labels, *ends = labels_worth(noisy, [65.0, 65.0])
    low, high = stats.t.interval(0.95, 3, 10, stats.sem([-1, 1, -1, 1]))
    assert labels == pytest.approx(5000 * 2**0.5)
    assert [math.log2(end / 5000) for end in ends] == pytest.approx([5 / high, 5 / low], abs=0.01)


def test_gains_are_paired_by_seed() -> None:
    """Against a table worked out by hand: gains 2 and 4, mean 3, Student's t with 1 degree of freedom 12.706."""
    def row(experiment: str, pseudo: str, seed: int, accuracy: float) -> dict[str, object]:
        return {"experiment": experiment, "model": "Resnet9", "pseudo": pseudo, "seed": seed, "accuracy": accuracy, "generation": 1,
                "key": f"{pseudo}{seed}{accuracy}"}

    table = pd.DataFrame([row("baselines", "none", 0, 60), row("baselines", "none", 0, 10), row("baselines", "none", 1, 70),
                          row("students", "soft", 1, 74), row("students", "soft", 0, 62), row("generations", "soft", 0, 62),
                          row("generations", "soft", 0, 77) | {"generation": 2}])
    result, later = (row for _, row in gains(table).iterrows())
    assert (later.generation, later.gain, later.seeds) == (2, 17, 1), "a run of two experiments counts once"
    assert (result.supervised, result.student, result.gain, result.seeds) == (65, 68, 3, 2)
    assert result.interval == pytest.approx(12.706 * 1, abs=0.01)  # std sqrt(2), over sqrt(2) seeds


def test_worth_of_the_last_students() -> None:
    """On a curve of 10 points a doubling: students at 65 are worth 5000 sqrt(2) labels; those of an earlier generation do not count."""
    counts = [{"experiment": "label_counts", "labels": n, "accuracy": 60 + 10 * math.log2(n / 5000), "seed": s}
              for n in (5000, 10000) for s in (0, 1)]
    students = [{"experiment": "students", "model": "Resnet9", "labels": 5000, "pseudo": "soft", "generation": g, "accuracy": a, "seed": s,
                 "key": f"{g}{s}"}
                for g, a in ((1, 99.0), (3, 65.0)) for s in (0, 1)]
    (row,) = worth(pd.DataFrame(counts + students)).itertuples()
    assert (row.student, row.worth, row.low, row.high) == (65, 7071.1, 7071.1, 7071.1)


def test_worth_in_words_has_three_digits_and_knows_the_ends_of_the_curve() -> None:
    table = pd.DataFrame({"labels": [5000, 20_000]})
    assert worth_text(12_667.4, 9_925, 15_415, table) == "12,700 (9,930 to 15,400)"
    assert worth_text(216.4, 99.6, 9_996, table) == "216 (100 to 10,000)"
    assert worth_text(8_430, -math.inf, math.inf, table) == "8,430 (fewer than 5,000 to more than 20,000)"
    assert worth_text(math.inf, math.nan, math.nan, table) == "more than 20,000"
    assert worth_text(math.inf, math.inf, math.inf, table) == "more than 20,000"


def test_worth_is_the_fewest_labels_that_reach_a_level_and_empty_without_students() -> None:
    flat = pd.DataFrame([{"experiment": "label_counts", "labels": n, "accuracy": a, "seed": 0}
                         for n, a in ((100, 50.0), (200, 50.0), (400, 70.0), (800, 70.0))])
    assert labels_worth(flat, [50.0])[0] == 100
    assert labels_worth(flat, [70.0])[0] == pytest.approx(400)
    assert labels_worth(flat, [60.0])[0] == pytest.approx(200 * math.sqrt(2))
    dip = pd.DataFrame({"labels": [100, 200, 400], "accuracy": [60.0, 58.0, 70.0]})  # read as 60, 60, 70
    assert labels_worth(dip, [60.0])[0] == 100 and labels_worth(dip, [65.0])[0] == pytest.approx(200 * math.sqrt(2))
    teacher = {"experiment": "students", "model": "Resnet9", "labels": 100, "pseudo": "none", "generation": 0, "accuracy": 60.0, "seed": 0,
               "key": "t"}
    assert worth(pd.concat([flat, pd.DataFrame([teacher])])).empty and worth(pd.DataFrame([teacher])).empty


def test_part_gains_are_paired_by_seed() -> None:
    """By hand: without RandAugment -2 and -4 points, mean -3; Student's t with 1 degree of freedom is 12.706."""
    def row(seed: int, accuracy: float, **changed: object) -> dict[str, object]:
        run = Run("Resnet9", 500, teacher=Run("Resnet9", 500, seed=seed), pseudo="soft", seed=seed)
        return {"experiment": "student_ablation", **asdict(run), **asdict(run.recipe), "teacher": "Resnet9", "generation": 1,
                "accuracy": accuracy, "kept": 1.0, "pseudo_accuracy": 50.0, **changed}

    table = pd.DataFrame([row(0, 70, pseudo="none"), row(0, 80), row(0, 78, n=0, dropout=0.0), row(0, 81, pseudo="hard"),
                          row(1, 60, pseudo="none"), row(1, 75), row(1, 71, n=0, dropout=0.0), row(1, 74, pseudo="hard")])
    found = part_gains(table).set_index("changed")
    assert list(found.index) == ["n=0, dropout=0.0", "pseudo=hard"], "in the order of the runs"
    assert found.difference["n=0, dropout=0.0"] == -3 and found.interval["n=0, dropout=0.0"] == pytest.approx(12.706, abs=0.01)
    assert found.difference["pseudo=hard"] == 0 and found.accuracy["pseudo=hard"] == 77.5 and (found.seeds == 2).all()
    assert part_gains(table[table.pseudo == "none"]).empty
    more = part_gains(pd.concat([table, pd.DataFrame([row(2, 60), row(2, 69, n=0, dropout=0.0)])])).set_index("changed")
    assert more.difference["n=0, dropout=0.0"] == 1, "the mean of -2, -4 and 9"


def test_summary_does_not_mix_options() -> None:
    """Students that differ in an option alone have a row each; what never differs within a row's setting has no column."""
    teacher = Run("Resnet9", 500)
    runs = [teacher, *(Run("Resnet9", 500, teacher=teacher, pseudo="soft", threshold=t, repeat_labels=2) for t in (0.0, 0.8))]
    table = pd.DataFrame([{"experiment": "x", **asdict(run), **asdict(run.recipe), "teacher": "", "generation": run.generation,
                           "accuracy": 70.0 + i, "pseudo_accuracy": math.nan, "kept": math.nan} for i, run in enumerate(runs)])
    found = summary(table)
    assert found.accuracy.tolist() == [70, 71, 72] and found.threshold.tolist() == [0, 0, 0.8] and "repeat_labels" not in found
    assert "kept" not in found
    held = summary(table.assign(validation_accuracy=table.accuracy - 9, accuracy=math.nan))  # a grid
    assert held.validation_accuracy.tolist() == [61, 62, 63] and "accuracy" not in held
    assert summary(pd.concat([table, table.assign(member=1)])).seeds.tolist() == [1, 1, 1], "two trainings of one seed"
    shown = summary(table.assign(kept=[math.nan, 1, 0.25]))  # images without labels: how much was kept is known, how right it is not
    assert shown.kept.tolist()[1:] == [1, 0.25] and "pseudo_accuracy" not in shown
