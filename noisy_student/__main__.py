"""The project without Jupyter: python -m noisy_student --help"""

from __future__ import annotations

import argparse
import ast
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from . import figures, pages, report, studies, tables
from .data import Images, Split, check_name
from .experiments import EXPERIMENTS, Plan, Variants, default_labels, possible
from .files import check_writable
from .recipes import RECIPES, named_recipe
from .runs import NoPseudoLabelError, prepare, run_variants
from .sources import load
from .store import Store
from .training import device_title, pick_device
from .workers import default_workers

EPILOG = """examples:
  python -m noisy_student train                                  digits, minutes on a CPU
  python -m noisy_student train --data cifar10 --recipe full     long trainings, for a GPU
  python -m noisy_student train --data photos/ --labels 0.1      photos/train/<class>/*.jpg
  python -m noisy_student train --experiments students --set recipe.epochs=50 --set threshold=0.8
  python -m noisy_student study generations                      what a study lacks, and its rows

Finished runs are kept in --store and never trained again; a killed command goes on where it was."""


def _path(text: str) -> Path:
    return Path(text).expanduser()  # the shell leaves --store=~/runs to us


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        "python -m noisy_student",
        description="Noisy Student self-training of image classifiers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = p.add_subparsers(dest="command", required=True)
    for run, text, options in (
        (train_, "the four experiments on any images, their tables and figures", _train_options),
        (study_, "train what a study lacks, and write its rows into results/", _study_options),
        (
            verify_,
            "train a study's cheapest rows again: how far are they from the committed ones?",
            _verify_options,
        ),
        (plot_, "draw a study, or finished experiments, from their rows alone", _plot_options),
        (
            pages_,
            "write RESULTS.md, the studies' figures, and the README's numbers",
            _pages_options,
        ),
        (tidy_, "list what killed runs left in the store, or remove it", _tidy_options),
    ):
        made = commands.add_parser(run.__name__.removesuffix("_"), help=text, description=text)
        made.set_defaults(run=run)
        options(made.add_argument)
    return p


def _train_options(add: Callable[..., object]) -> None:
    add(
        "--data",
        default="digits",
        help="digits, cifar10, cifar10-jpeg, cifar100, svhn, or a folder "
        "or archive of images (default: digits)",
    )
    add("--size", type=int, default=32, help="pixels a side of images from a folder (default: 32)")
    add("--skip-unreadable", action="store_true", help="leave out pictures that cannot be read")
    add("--drop-test-doubles", action="store_true", help="leave out what is a test picture too")
    add(
        "--recipe",
        default="auto",
        help=f"{', '.join(RECIPES)}; auto: small for up to 5,000 images, "
        "else full on a CUDA GPU and quick elsewhere (default: auto)",
    )
    add("--experiments", default=",".join(EXPERIMENTS), help="which (default: %(default)s)")
    add("--seeds", default="0", help="with commas between, for example 0,1,2 (default: 0)")
    add(
        "--labels",
        help="labelled images, a number or a fraction such as 0.1 (default: the saved "
        "split's; or all that there are, with unlabeled/; or 5,000, of few images a tenth)",
    )
    add("--split", help="a split saved by data_split.ipynb, in place of one drawn from each seed")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a hyper-parameter: "
        "recipe.epochs=50 for both recipes, supervised.epochs or student.epochs for one, "
        "threshold=0.8, chain=Convnet5,Resnet9",
    )
    add("--out", default="out", type=_path, help="folder for tables and figures (default: out)")
    _machine_options(add)
    _store_option(add)


def _machine_options(add: Callable[..., object]) -> None:
    add(
        "--root",
        default="data",
        type=_path,
        help="where downloads and decoded images are kept (default: data)",
    )
    add("--device", help="cuda, mps or cpu (default: the best there is)")
    add(
        "--workers",
        type=int,
        help="runs to train at once (default: one a thread on a CPU, at most "
        "4; one on a GPU, where more pay under NVIDIA's MPS)",
    )


def _store_option(add: Callable[..., object]) -> None:
    add("--store", default="runs", type=_path, help="folder of finished runs (default: runs)")


def _which_study(add: Callable[..., object]) -> None:
    add("name", help=f"a file in studies/, without .py: {', '.join(studies.study_names())}")
    add("--data", help="the same images from elsewhere, such as an archive of their files")
    _machine_options(add)


def _study_options(add: Callable[..., object]) -> None:
    _which_study(add)
    _store_option(add)


def _verify_options(add: Callable[..., object]) -> None:
    _which_study(add)
    add("--runs", type=int, default=2, help="how many rows (default: 2)")


def _plot_options(add: Callable[..., object]) -> None:
    add("name", help="a study; or a folder with a runs.csv of train")
    add("--out", default="out", type=_path, help="folder for the figures (default: out)")


def _pages_options(add: Callable[..., object]) -> None:
    add(
        "--check",
        action="store_true",
        help="write nothing; exit 1 where a page is not what the rows say",
    )


def _tidy_options(add: Callable[..., object]) -> None:
    _store_option(add)
    add("--remove", action="store_true", help="remove it")


# ---------------------------------------------------------------------------------------- arguments


def _value(text: str) -> object:
    """A number, a word, or several with commas between, with or without the brackets and quotes of
    Python, which a shell removes.
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        words = [word.strip() for word in text.strip("[]()").split(",")]
        return tuple(words) if len(words) > 1 or text.startswith(("[", "(")) else text


def changes(settings: list[str]) -> dict[str, object]:
    """The hyper-parameters that --set changes. Raises ValueError for what cannot be read."""
    found: dict[str, object] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or _value(value) is None:
            raise ValueError(f"--set {text!r} is not NAME=VALUE, as in --set recipe.epochs=50.")
        found[name.strip()] = _value(value)
    return found


def number_of_labels(text: str | None, train: Images, saved: Split | None) -> int:
    """A count, or of a fraction that share of the images with a label; by default the saved
    split's, or as many as fit the images.
    """
    if text is None:
        return len(saved.labeled) if saved else default_labels(train)
    try:
        count = float(text)
    except ValueError:
        count = 0
    if 0 < count < 1:
        return round(count * int((train.labels >= 0).sum()))
    if not 1 <= count < math.inf or count != int(count):
        raise ValueError(
            f"--labels {text} is neither a number of images nor a fraction between 0 and 1."
        )
    return int(count)


def numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ValueError(
            f"{option} {text!r} are not whole numbers with commas between, as in 0,1,2."
        ) from None


# ----------------------------------------------------------------------------------------- commands


def train_(args: argparse.Namespace) -> int:
    seeds, device = numbers("--seeds", args.seeds), pick_device(args.device)
    store = Store(args.store)
    check_writable(args.out, store.folder)  # before hours of training
    images, test = load(
        args.data,
        args.root,
        size=args.size,
        skip_unreadable=args.skip_unreadable,
        drop_test_doubles=args.drop_test_doubles,
    )
    saved = Split.load(args.split, images) if args.split else None
    labels = number_of_labels(args.labels, images, saved)
    plan = Plan(named_recipe(args.recipe, images, device), labels).replace(changes(args.set))
    experiments = _experiments(args.experiments, plan, images)
    runs = [run for variants in experiments.values() for run in variants.values()]
    every = [run.throughout(seed=seed) for run in runs for seed in seeds]
    trainings = prepare(every, images, test, saved)[1]  # what cannot be fails now
    print(
        f"{images}; {len(test):,} test images; {device_title(device)}; seeds {args.seeds}\n"
        f"{plan.labels:,} labelled images, {len(images) - plan.labels:,} unlabelled; "
        f"{len(trainings):,} trainings in all"
    )
    finish = partial(
        run_variants,
        seeds=seeds,
        train_set=images,
        test_set=test,
        store=store,
        saved_split=saved,
        device=device,
        workers=_workers(args, device),
    )
    done: list[pd.DataFrame] = []
    for name, variants in experiments.items():
        try:
            table = finish(variants)
        except NoPseudoLabelError as error:  # of one student; the other experiments go on
            print(f"\n{name}: left out: {error}")
            continue
        done.append(table.assign(experiment=name))
        print(f"\n{name}\n{report.summary(table, test).to_string()}", flush=True)
        report.write_tables(pd.concat(done), store, args.out)
    if not done:
        raise ValueError("no experiment could be finished, see above.")
    table = pd.concat(done)
    if (table.generation > 0).any():
        last = table[table.generation > 0].iloc[-1]
        found = report.by_class(last, store)
        print(f"\nby class: {last.variant}, seed {last.seed}\n{found.to_string()}")
    paths = report.save_figures(table, store, images, test, args.out, device)
    print(f"\ntables and {len(paths)} figures: {args.out.resolve()}")
    for left in store.unfinished(trainings):
        print(
            f"{left} is of a training that was begun and that this command does not need: "
            f"python -m noisy_student tidy --store {args.store} --remove"
        )
    return 0


def _experiments(names: str, plan: Plan, images: Images) -> dict[str, Variants]:
    """The experiments by name, without what these images cannot give, which is said.

    Raises ValueError for an unknown name, and where nothing is left.
    """
    found: dict[str, Variants] = {}
    for name in dict.fromkeys(word.strip() for word in names.split(",")):
        check_name("experiment", name, EXPERIMENTS)
        found[name], left_out = possible(EXPERIMENTS[name](plan), images)
        if left_out:
            print(f"{name}: {left_out}")
    if not any(found.values()):
        raise ValueError(f"no experiment can be made with {plan.labels:,} labels: {left_out}")
    return {name: variants for name, variants in found.items() if variants}


def study_(args: argparse.Namespace) -> int:
    found, device = studies.load_study(args.name), pick_device(args.device)
    images, test = load(args.data or found.data, args.root)
    rows = studies.train_study(
        found, images, test, Store(args.store), device=device, workers=_workers(args, device)
    )
    print(tables.compare(rows, found.baseline).round(2).to_string(index=False))
    return 0


def verify_(args: argparse.Namespace) -> int:
    found, device = studies.load_study(args.name), pick_device(args.device)
    images, test = load(args.data or found.data, args.root)
    again = studies.verify(
        found, images, test, args.runs, device=device, workers=_workers(args, device)
    )
    print(again.to_string(index=False))
    print(
        f"mean difference {again.difference.abs().mean():.2f} points, at most "
        f"{again.difference.abs().max():.2f}"
    )
    return 0


def plot_(args: argparse.Namespace) -> int:
    check_writable(args.out)
    if (Path(args.name) / "runs.csv").is_file():
        # a folder of images may be called 2024, or null
        words = dict.fromkeys(("teacher", "title", "device", "key"), str)
        table = pd.read_csv(
            Path(args.name) / "runs.csv", dtype=words, keep_default_na=False, na_values=[""]
        )
        drawn, most = report.from_tables(table), table.seed.nunique()
        counts = table.groupby("variant", sort=False).seed.nunique()
        for place, count in counts[counts < most].items():
            print(f"{place}: {count} of {most} seeds are in the table")
    else:
        found = studies.load_study(args.name)
        rows = found.rows()
        if missing := [name for name in found.runs if name not in set(rows.variant)]:
            raise ValueError(
                f"the study {found.name} has no rows of {missing[0]!r}"
                f"{f' and {len(missing) - 1} more' if missing[1:] else ''}: "
                f"make study NAME={found.name}."
            )
        drawn = {found.name: found.figure(rows)}
    print(
        "\n".join(
            str(figures.save(figure, args.out / f"{name}.png")) for name, figure in drawn.items()
        )
    )
    return 0


def pages_(args: argparse.Namespace) -> int:
    if args.check and (stale := pages.check()):
        print("\n".join(f"{path} is not what the rows say: make pages writes it" for path in stale))
        return 1
    print("up to date" if args.check else "\n".join(f"{path} written" for path in pages.write()))
    return 0


def tidy_(args: argparse.Namespace) -> int:
    store = Store(args.store)
    for folder in store.tidy() if args.remove else store.unfinished():
        print(
            folder,
            "removed"
            if args.remove
            else "is of a training that was begun and is not at work: --remove removes it",
        )
    return 0


def _workers(args: argparse.Namespace, device: object) -> int:
    return default_workers(device) if args.workers is None else args.workers  # type: ignore[arg-type]


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0; 1 where a training's numbers are no longer finite, or a page is
    not what the rows say; 2 for input, a file, memory or a disk that cannot be used (each with one
    sentence on stderr); 130 for Ctrl-C.
    """
    args = parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except (ValueError, TypeError, OSError, MemoryError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
