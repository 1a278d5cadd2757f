"""The project without Jupyter: python -m noisy_student --help"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from . import figures, pages, report, studies, tables
from .data import Images, Split, check_name
from .experiments import EXPERIMENTS, Plan, Variants, baseline_of, default_labels, possible
from .files import check_writable
from .recipes import RECIPES, named_recipe
from .runs import prepare, run_variants
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

    def command(run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(run.__name__.removesuffix("_"), help=text, description=text)
        made.set_defaults(run=run)
        return made

    def images(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--data", help="the same images from elsewhere, such as an archive of their files"
        )

    def machine(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--root",
            default="data",
            type=_path,
            help="where downloads and decoded images are kept (default: data)",
        )
        made.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
        made.add_argument(
            "--workers",
            type=int,
            help="runs to train at once (default: one a thread on a CPU, at most 4; one on a "
            "GPU, where more pay under NVIDIA's MPS)",
        )
        made.add_argument(
            "--store", default="runs", type=_path, help="folder of finished runs (default: runs)"
        )

    made = command(train_, "the four experiments on any images, their tables and figures")
    made.add_argument(
        "--data",
        default="digits",
        help="digits, cifar10, cifar10-jpeg, cifar100, svhn, or a folder or archive of images "
        "(default: digits)",
    )
    made.add_argument(
        "--size", type=int, default=32, help="pixels a side of images from a folder (default: 32)"
    )
    made.add_argument(
        "--skip-unreadable", action="store_true", help="leave out pictures that cannot be read"
    )
    made.add_argument(
        "--recipe",
        default="auto",
        help=f"{', '.join(RECIPES)}; auto: small for up to 5,000 images, else full on a CUDA GPU "
        "and quick elsewhere (default: auto)",
    )
    made.add_argument(
        "--experiments",
        default=",".join(EXPERIMENTS),
        help="which, with commas between (default: %(default)s)",
    )
    made.add_argument(
        "--seeds", default="0", help="with commas between, for example 0,1,2 (default: 0)"
    )
    made.add_argument(
        "--labels",
        help="labelled images, a number or a fraction such as 0.1 (default: the saved split's; or "
        "all that there "
        "are, with unlabeled/; or 5,000, of few images a tenth)",
    )
    made.add_argument(
        "--split", help="a split saved by data_split.ipynb, in place of one drawn from each seed"
    )
    made.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a hyper-parameter: recipe.epochs=50 for "
        "both, supervised.epochs or student.epochs for one, threshold=0.8, chain=Convnet5,Resnet9",
    )
    made.add_argument(
        "--out", default="out", type=_path, help="folder for tables and figures (default: out)"
    )
    machine(made)
    made = command(study_, "train what a study lacks, and write its rows into results/")
    made.add_argument(
        "name", help="a file in studies/, without .py: " + ", ".join(studies.study_names())
    )
    images(made)
    machine(made)
    made = command(
        verify_,
        "train a study's cheapest rows again, and say how far they are from the committed ones",
    )
    made.add_argument("name", help="as of study")
    images(made)
    made.add_argument("--runs", type=int, default=2, help="how many rows (default: 2)")
    machine(made)
    made = command(
        plot_,
        "draw the figures of a study, or of finished experiments, from their rows alone; nothing "
        "is trained",
    )
    made.add_argument("name", help="as of study; or a folder with a runs.csv of train")
    made.add_argument(
        "--out", default="out", type=_path, help="folder for the figure (default: out)"
    )
    made = command(
        pages_, "write RESULTS.md, the figures of the studies, and the numbers of the README"
    )
    made.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 where a page is not what the rows say",
    )
    made = command(tidy_, "list what killed runs left in the store, or remove it")
    made.add_argument(
        "--store", default="runs", type=_path, help="folder of finished runs (default: runs)"
    )
    made.add_argument("--remove", action="store_true", help="remove it")
    return p


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
    if count < 1 or count != int(count):
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
    seeds, device, store = (
        numbers("--seeds", args.seeds),
        pick_device(args.device),
        Store(args.store),
    )
    check_writable(args.out, store.folder)  # before hours of training
    images, test = load(args.data, args.root, size=args.size, skip_unreadable=args.skip_unreadable)
    saved = Split.load(args.split, images) if args.split else None
    plan = Plan(
        named_recipe(args.recipe, images, device), number_of_labels(args.labels, images, saved)
    ).replace(changes(args.set))
    experiments: dict[str, Variants] = {}
    for name in dict.fromkeys(word.strip() for word in args.experiments.split(",")):
        check_name("experiment", name, EXPERIMENTS)
        runs, left_out = possible(EXPERIMENTS[name](plan), images)
        if left_out:
            print(f"{name}: {left_out}")
        if runs:
            experiments[name] = runs
    if not experiments:
        raise ValueError(
            f"no experiment can be made with labels={plan.labels:,} of these images: {left_out}"
        )
    trainings = prepare(
        [
            run.throughout(seed=s)
            for runs in experiments.values()
            for run in runs.values()
            for s in seeds
        ],
        images,
        test,
        saved,
    )[1]  # what cannot be fails now
    print(
        f"{images}; {len(test):,} test images; {device_title(device)}; seeds {args.seeds}\n"
        f"{plan.labels:,} labelled images, {len(images) - plan.labels:,} unlabelled; "
        f"{len(trainings):,} trainings in all"
    )
    done: list[pd.DataFrame] = []
    for name, runs in experiments.items():
        table = run_variants(
            runs,
            seeds,
            images,
            test,
            store,
            saved_split=saved,
            device=device,
            workers=_workers(args, device),
        )
        table.insert(0, "experiment", name)
        done.append(table)
        shown = tables.compare(table, baseline_of(table)).dropna(axis=1, how="all")
        # else it is the accuracy
        if test.labels.bincount(minlength=len(test.classes)).unique().numel() > 1:
            shown.insert(
                2,
                "balanced_accuracy",
                shown.variant.map(table.groupby("variant").balanced_accuracy.mean()),
            )
        print(f"\n{name}\n{shown.round(2).to_string(index=False)}", flush=True)
        report.write_tables(pd.concat(done), store, args.out)
    table = pd.concat(done)
    if (table.generation > 0).any():
        last = table[table.generation > 0].iloc[-1]
        counts = np.array(store.record(last.key)["result"]["confusion"])
        print(
            f"\nby class, {last.variant}, seed "
            f"{last.seed}\n{tables.per_class(counts, test.classes).round(1).to_string(index=False)}"
        )
    paths = report.save_figures(table, store, images, test, args.out, device)
    print(f"\ntables and {len(paths)} figures: {args.out.resolve()}")
    return 0


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
        found,
        images,
        test,
        Store(args.store),
        args.runs,
        device=device,
        workers=_workers(args, device),
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
        drawn = report.from_tables(table)
    else:
        found = studies.load_study(args.name)
        drawn = {found.name: found.figure(found.rows())}
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
