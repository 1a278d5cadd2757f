from dataclasses import asdict, fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from noisy_student import Images, Recipe, Run, experiments
from noisy_student.experiments import EXPERIMENTS, FOUR, Settings, experiment_runs, override, profile, run_experiment
from noisy_student.runs import STUDENT_OPTIONS, prepare
from noisy_student.statistics import summary


def images(count: int, name: str = "photos", known: int | None = None) -> Images:
    labels = torch.arange(count) % 10
    labels[known:] = -1
    return Images(torch.zeros(count, 3, 1, 1, dtype=torch.uint8), labels if known is not None else torch.arange(count) % 10,
                  tuple("abcdefghij"), name)


FULL = Settings(Recipe(epochs=8), Recipe(epochs=4), seeds=(0, 1))


def test_grid_is_scored_on_labels_and_complete() -> None:
    runs = [run for seed in FULL.seeds for run in EXPERIMENTS["grid"](FULL, seed)]
    assert len(runs) == len({r.key for r in runs}) == 2 * 7 * 6  # models x ns x ms, first seed only
    assert all(r.holdout == 0.2 and r.teacher is None for r in runs)
    without = EXPERIMENTS["grid"](override(FULL, {"grid_ns": [0, 1], "grid_ms": [5, 10]}), 0)
    cells = [(r.recipe.n, r.recipe.m) for r in without if r.model == "Resnet9"]
    assert cells == [(0, 5), (1, 5), (1, 10)], "no ops have no magnitude: one run"


def test_baselines_switch_each_noise_off() -> None:
    runs = EXPERIMENTS["baselines"](FULL, 1)
    for model in FULL.chain:
        noises = [(r.recipe.n > 0, r.recipe.dropout > 0) for r in runs if r.model == model]
        assert noises == [(True, True), (False, True), (True, False), (False, False)]
    assert all(r.seed == 1 and r.labels == 5000 for r in runs)


def test_students_descend_from_one_teacher() -> None:
    runs = EXPERIMENTS["students"](FULL, 0)
    assert [(r.model, r.pseudo, r.generation) for r in runs] == [
        ("Convnet5", "none", 0), ("Convnet6", "soft", 1), ("Resnet6", "soft", 2), ("Resnet9", "soft", 3),
        ("Convnet6", "hard", 1), ("Resnet6", "hard", 2), ("Resnet9", "hard", 3)]
    assert runs[3].teacher == runs[2] and runs[6].teacher == runs[5]
    assert {r.pseudo for r in (runs[4], runs[5], runs[6])} == {"hard"}
    assert runs[0] in EXPERIMENTS["baselines"](FULL, 0), "the teacher is the baseline: trained once"
    assert runs[0].recipe == FULL.supervised and {r.recipe for r in runs[1:]} == {FULL.student}


def test_students_have_the_options_of_the_settings() -> None:
    options = {"threshold": 0.7, "balance": True, "flip_average": True, "temperature": 0.5, "ensemble": 2, "repeat_labels": 3}
    assert set(options) == set(STUDENT_OPTIONS) and not options.items() & asdict(FULL).items()
    settings = override(FULL, {**options, "student_ensemble": 2})
    students = [run for run in EXPERIMENTS["generations"](settings, 0) if run.teacher]
    assert len(students) == 5 and all(getattr(run, name) == value for run in students for name, value in options.items())


def test_what_hard_students_cannot_depend_on_does_not_train_them_again() -> None:
    sharp, plain = (EXPERIMENTS["students"](override(FULL, {"temperature": t}), 0) for t in (0.5, 1.0))
    assert [run in plain for run in sharp if run.pseudo == "hard"] == [True] * 3
    assert [run in plain for run in sharp if run.pseudo == "soft"] == [False] * 3
    for kinds in (["soft", "hard"], ["hard", "soft"]):
        settings = override(FULL, {"temperature": 0.5, "kinds": kinds, "chain": ["Resnet9"], "generations": 1})
        (other,) = [run for run in EXPERIMENTS["student_ablation"](settings, 0) if run.pseudo == kinds[1]]
        assert other in EXPERIMENTS["generations"](replace(settings, kinds=(kinds[1],)), 0), "the ablation's student is the generations'"


def test_generations_go_on_from_the_chain() -> None:
    runs = EXPERIMENTS["generations"](FULL, 0)
    assert [r.generation for r in runs] == [0, 1, 2, 3, 4, 5] and [r.model for r in runs[3:]] == ["Resnet9"] * 3
    assert runs[5].teacher == runs[4] and runs[3] in EXPERIMENTS["students"](FULL, 0)
    assert {r.pseudo for r in runs[1:]} == {"soft"}, "the first of the kinds"


def test_label_counts_bound_the_steps() -> None:
    runs = EXPERIMENTS["label_counts"](FULL, 0)
    assert [r.labels for r in runs] == list(FULL.label_counts) and {r.model for r in runs} == {FULL.chain[-1]}
    assert [r.recipe.epochs for r in runs if r.labels <= 20000] == [8] * 7
    steps = [r.labels * r.recipe.epochs for r in runs]
    assert max(steps) <= 4.3 * steps[0]
    assert runs[0] in EXPERIMENTS["baselines"](FULL, 0)


def test_road_leads_from_the_original_to_ours() -> None:
    runs = [run for run in experiment_runs("road", replace(FULL, seeds=(0,))) if run.model == "Convnet5"]
    assert len({run.key for run in runs}) == len(runs) == 6 and runs[-1].recipe == FULL.supervised
    assert runs[0].recipe == Recipe.original(faults=True).replace(epochs=8)
    changed = [{f.name for f in fields(Recipe) if getattr(a.recipe, f.name) != getattr(b.recipe, f.name)}
               for a, b in pairwise(runs)]
    assert changed[0] == {"fault_eval"} and changed[1] == {"fault_equalize"} and changed[3] == {"flip", "crop"}


def test_student_ablation_changes_one_part_at_a_time() -> None:
    teacher, ours, *changed = EXPERIMENTS["student_ablation"](FULL, 0)
    assert teacher in EXPERIMENTS["baselines"](FULL, 0) and (ours.model, ours.teacher, ours.pseudo) == ("Resnet9", teacher, "soft")

    def values(run: Run) -> dict[str, object]:
        return asdict(run) | asdict(run.recipe)

    found = [{name: value for name, value in values(run).items() if value != values(ours)[name] and name != "recipe"} for run in changed]
    assert found == [{"n": 0}, {"dropout": 0}, {"n": 0, "dropout": 0}, {"n": 0, "dropout": 0, "flip": False, "crop": 0},
                     {"stochastic_depth": 0.2}, {"pseudo": "hard"}, {"threshold": 0.8}, {"balance": True}, {"flip_average": True},
                     {"ensemble": 3}, {"repeat_labels": 3}]
    other = override(FULL, {"threshold": 0.8, "ensemble": 3, "repeat_labels": 2, "kinds": ["hard"], "recipe.n": 0})
    runs = experiment_runs("student_ablation", replace(other, seeds=(0,)))
    assert len(set(runs)) == len(runs) == 11, "without RandAugment there is none to leave out"
    options = [(r.pseudo, r.threshold, r.ensemble, r.repeat_labels) for r in (runs[-6], runs[-2])]
    assert options == [("soft", 0.8, 3, 2), ("hard", 0.8, 1, 2)]
    plain = EXPERIMENTS["student_ablation"](override(FULL, {"chain": ["Convnet5", "Convnet6"]}), 0)
    assert not any(r.recipe.stochastic_depth for r in plain), "a plain network has no branch to skip"


def test_equal_runs_count_once() -> None:
    """Otherwise a run that two settings share would count as two in means and deviations."""
    silent = override(FULL, {"supervised.dropout": 0, "chain": ["Resnet9", "Resnet9"], "seeds": [0, 1]})
    for name in EXPERIMENTS:
        runs = experiment_runs(name, silent)
        assert len(runs) == len(set(runs)), name
    assert len(experiment_runs("baselines", silent)) == 2 * 2  # with and without RandAugment


@pytest.mark.parametrize(("train", "name"), [
    (images(50000, "cifar10"), "full"), (images(50000, "cifar10"), "long"), (images(50000), "quick"), (images(1300, "digits"), "quick"),
    (images(300), "full"), (images(70000, "svhn", 40000), "full"), (images(60, known=20), "quick"),
])
def test_profiles_fit_the_data(train: Images, name: str) -> None:
    settings = profile(name, train, "cpu")
    known = int((train.labels >= 0).sum())
    assert len(train.classes) <= settings.labels <= known and settings.labels < len(train)
    assert settings.label_counts[0] == settings.labels and max(settings.label_counts) <= known
    digits = train.name in ("digits", "svhn")
    for recipe in (settings.supervised, settings.student):
        assert (recipe.flip, recipe.crop) == ((False, 2) if digits else (True, 4))
    assert settings.flip_average == (not digits), "no teacher sees mirrored digits either"
    for build in EXPERIMENTS.values():
        assert build(settings, settings.seeds[0])


@pytest.mark.parametrize("count", [99, 120, 199, 2000, 5200, 9000])
@pytest.mark.parametrize("name", ["quick", "full"])
def test_without_a_wish_most_images_are_left_to_the_students(count: int, name: str) -> None:
    assert 20 <= profile(name, images(count), "cpu").labels <= count / 2


def test_many_classes_have_labels_to_learn_and_to_validate_on() -> None:
    labels = torch.arange(4000) % 200
    train = Images(torch.zeros(4000, 3, 8, 8, dtype=torch.uint8), labels, tuple(map(str, range(200))), "photos")
    settings = profile("quick", train, "cpu")
    assert settings.labels == 400
    prepare([run for name in FOUR for run in experiment_runs(name, settings)], train, train)


def test_own_folder_with_few_labels_uses_them_all() -> None:
    settings = profile("quick", images(8000, known=300), "cpu")
    assert settings.labels == 300 and settings.label_counts == (300,)
    reference = profile("quick", images(50000, "cifar10"), "cpu")
    assert settings.supervised.epochs == 10 * reference.supervised.epochs
    assert settings.student.epochs == round(6.25 * reference.student.epochs)


@pytest.mark.parametrize(("train", "name"), [(images(1300, "digits"), "full"), (images(6000), "full"), (images(20_000), "full"),
                                             (images(20_000), "long")])
def test_students_of_smaller_data_take_about_as_many_steps(train: Images, name: str) -> None:
    def steps(train: Images) -> int:
        settings = profile(name, train, "cpu", labels=len(train) // 10)
        pool = len(train) - settings.labels + settings.labels * settings.repeat_labels
        assert settings.student.lr / settings.student.batch_size == pytest.approx(0.1 / 128)
        return settings.student.epochs * (pool // settings.student.batch_size)

    assert 0.8 < steps(train) / steps(images(50_000, "cifar10")) < 1.7


def test_auto_profile_is_full_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    train = images(50000)
    assert profile("quick", train) != profile("full", train)
    for device, name in {"cpu": "quick", "mps": "quick", "cuda": "full"}.items():
        monkeypatch.setattr(experiments, "pick_device", lambda _, device=device: torch.device(device))
        assert profile("auto", train) == profile(name, train)
    with pytest.raises(ValueError, match="unknown profile 'fast'"):
        profile("fast", train)


def test_overrides() -> None:
    changed = override(FULL, {"labels": None, "seeds": [4], "recipe.epochs": 3, "student.lr": 0.5, "threshold": 1, "grid_ms": range(2, 4)})
    assert changed.labels == 5000 and changed.seeds == (4,) and changed.threshold == 1 and changed.grid_ms == (2, 3)
    assert override(FULL, {"grid_ms": [2.5]}).grid_ms == (2.5,)
    numpy = override(FULL, {"labels": np.int64(5000), "seeds": list(np.arange(2)), "threshold": np.float32(0.5), "student.n": np.int8(2)})
    assert [r.key for r in experiment_runs("students", numpy)] == [r.key for r in experiment_runs("students", replace(FULL, threshold=0.5))]
    assert changed.supervised.epochs == changed.student.epochs == 3 and (changed.supervised.lr, changed.student.lr) == (0.1, 0.5)


@pytest.mark.parametrize(("change", "message"), [
    ({"lables": 5}, "did you mean labels"), ({"recipe.epoch": 5}, "did you mean epochs"),
    ({"lables": None}, "did you mean labels"), ({"student.epoch": None}, "did you mean epochs"),
    ({"seeds": ()}, "is empty: one int or more"),
    ({"grid_ns": [1, 1]}, "names a value twice"),
    ({"grid_seeds": 0}, "grid_seeds=0 is not a whole number from 1"), ({"labels": 0}, "labels=0 is not a whole number from 2\\.$"),
    ({"generations": -1}, "generations=-1 is not a whole number from 0"),
    ({"student_ensemble": 0}, "student_ensemble=0 is not a whole number from 1"),
    ({"ablation_models": ["Resnet6"], "chain": ["Resnet9"]}, "ablation_models names Resnet6, which is not in the chain, Resnet9"),
    ({"label_counts": [50, 80, 200], "labels": 100}, "has a count below labels=100"),
    ({"labels": "many"}, "not of the right kind"), ({"labels": np.True_}, "not of the right kind"),
    ({"seeds": [0.5]}, "not of the right kind"), ({"recipe.dropout": 1.5}, "dropout=1.5"),
])
def test_bad_overrides(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(FULL, change)


def test_run_experiment(tiny: tuple[Images, Images], tmp_path: object) -> None:
    recipe = Recipe(epochs=1, batch_size=10, n=1)
    settings = Settings(recipe, recipe, seeds=(0, 1), labels=20, chain=("Convnet5", "Convnet6"))
    table = run_experiment("students", settings, *tiny, f"{tmp_path}", device="cpu", workers=1, progress=False)
    assert list(table.experiment.unique()) == ["students"] and len(table) == 6
    shown = summary(table)
    assert list(shown.seeds) == [2, 2, 2]
    for _, row in shown.iterrows():
        group = table[(table.model == row.model) & (table.pseudo == row.pseudo)]
        assert row.accuracy == pytest.approx(group.accuracy.mean(), abs=0.006)
        assert row["std"] == pytest.approx(abs(group.accuracy.iloc[0] - group.accuracy.iloc[1]) / 2**0.5, abs=0.006)
    with pytest.raises(ValueError, match="did you mean students"):
        run_experiment("student", settings, *tiny, f"{tmp_path}")


def test_students_that_teach_are_ensembles_where_asked() -> None:
    settings = Settings(Recipe(), Recipe(), chain=("Convnet5", "Resnet9"), ensemble=5, student_ensemble=3, generations=2)
    runs = EXPERIMENTS["generations"](settings, 0)
    assert [run.ensemble for run in runs] == [1, 5, 3, 3]
    assert [[(t.model, t.generation, t.member) for t in run.teachers] for run in runs[2:]] == [
        [("Resnet9", 1, 0), ("Resnet9", 1, 1), ("Resnet9", 1, 2)], [("Resnet9", 2, 0), ("Resnet9", 2, 1), ("Resnet9", 2, 2)]]
    assert {t.teacher for t in runs[3].teachers} == {runs[1]}, "members share their teachers"


def test_by_default_only_the_first_teacher_is_an_ensemble_and_kinds_choose_the_chains() -> None:
    settings = Settings(Recipe(), Recipe(), ensemble=3, kinds=("hard",))
    runs = EXPERIMENTS["generations"](settings, 0)
    assert [run.ensemble for run in runs] == [1, 3, 1, 1, 1, 1] and {run.pseudo for run in runs[1:]} == {"hard"}
    assert len(runs[1].teachers) == 3 and len({teacher.key for teacher in runs[1].teachers}) == 3
    assert runs[0] == runs[1].teachers[0], "the teacher of the table is the ensemble's first"
    assert [run.pseudo for run in EXPERIMENTS["students"](settings, 0)] == ["none", "hard", "hard", "hard"]


def test_labels_are_known_before_the_profile_fits_the_epochs() -> None:
    settings = profile("quick", images(50000), "cpu", labels=200)
    assert settings.labels == 200 and settings.label_counts == (200, 400, 800, 2000)
    assert settings.supervised.epochs == 10 * profile("quick", images(50000), "cpu").supervised.epochs


def test_experiments_are_named() -> None:
    assert list(EXPERIMENTS) == [*FOUR, "road", "student_ablation"]
    assert list(FOUR) == ["grid", "baselines", "students", "generations", "label_counts"]
    assert all(getattr(experiments, name) is function for name, function in EXPERIMENTS.items())
