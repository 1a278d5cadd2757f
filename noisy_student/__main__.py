"""The experiments without Jupyter: python -m noisy_student --help"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

import pandas as pd

from .data import Split, load
from .experiments import EXPERIMENTS, FOUR, PROFILES, experiment_runs, override, profile, run_experiment
from .report import plot_tables, save_figures, write_tables
from .runs import prepare
from .statistics import gains, part_gains, summary, worth
from .store import Store
from .training import device_title, pick_device
from .workers import default_workers

EPILOG = """examples:
  python -m noisy_student                                        handwritten digits, a few minutes on a CPU
  python -m noisy_student --data cifar10 --profile full          long trainings, for a GPU
  python -m noisy_student --data photos/ --labels 200            your own images: photos/train/<class>/*.jpg
  python -m noisy_student --experiments students --set recipe.epochs=50 --set student.dropout=0.2

Finished runs are kept in --store and never trained again; a killed command goes on where it was.
Every name that --set knows: the fields of Settings and Recipe (recipe.*, or supervised.* and student.* apart)."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m noisy_student", description="Noisy Student self-training: four experiments, "
                                "their tables and figures.", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", default="digits", help="digits, cifar10, cifar100, svhn, or a folder or archive of images (default: digits)")
    p.add_argument("--root", default="data", help="where downloads and decoded images are kept (default: data)")
    p.add_argument("--size", type=int, default=32, help="pixels a side of images from a folder (default: 32)")
    p.add_argument("--skip-unreadable", action="store_true", help="leave out pictures that cannot be read")
    p.add_argument("--profile", default="auto", help=f"{', '.join(PROFILES)}; auto: full on a CUDA GPU, else quick (default: auto)")
    p.add_argument("--experiments", default=",".join(FOUR), help="which, with commas between (default: %(default)s; "
                   f"also: {', '.join(sorted(EXPERIMENTS.keys() - FOUR))})")
    p.add_argument("--seeds", help="with commas between, for example 0,1,2 (default: the profile's)")
    p.add_argument("--labels", type=int, help="number of labelled images (default: the saved split's, or the profile's)")
    p.add_argument("--split", help="a split saved by data_split.ipynb, in place of one drawn from each seed")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                   help="change a hyper-parameter and nothing else: recipe.epochs=50, chain=Convnet5,Resnet9 (labels=200 leaves "
                   "the epochs and label_counts as they are, --labels 200 fits them to it)")
    p.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    p.add_argument("--workers", type=int, help="runs to train at once (default: one a thread on a CPU, at most 4; one on a GPU, "
                   "where more pay under NVIDIA's MPS)")
    p.add_argument("--store", default="runs", help="folder of finished runs (default: runs)")
    p.add_argument("--out", default="out", help="folder for tables and figures (default: out)")
    p.add_argument("--figures", help="folder for the figures, if another (default: that of --out)")
    p.add_argument("--replot", metavar="FOLDER", help="draw the figures from FOLDER/runs.csv and history.csv alone; nothing is trained")
    return p


def _value(text: str) -> object:
    """A number, a word, or several with commas between, with or without the brackets and quotes of Python, which a shell removes."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        words = [word.strip() for word in text.strip("[]").split(",")]
        return words if len(words) > 1 or text.startswith("[") else text


def changes(args: argparse.Namespace) -> dict[str, object]:
    """The hyper-parameters that the arguments change, for :func:`override`. Raises ValueError for what cannot be read."""
    found: dict[str, object] = {}
    for text in args.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r} is not NAME=VALUE, as in --set recipe.epochs=50.")
        found[name.strip()] = _value(value)
        if found[name.strip()] is None:
            raise ValueError(f"--set {text!r} gives no value: leave it out for the profile's (threshold=0 keeps every pseudo-label).")
    if args.seeds:
        try:
            found["seeds"] = tuple(int(s) for s in args.seeds.split(","))
        except ValueError:
            raise ValueError(f"--seeds {args.seeds!r} are not whole numbers with commas between, as in 0,1,2.") from None
    return found


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0; 1 where a training's numbers are no longer finite, 2 for input, a file or a disk that cannot be used
    (each with one sentence on stderr); 130 for Ctrl-C."""
    args = parser().parse_args(arguments)
    out = Path(args.out)
    pictures = Path(args.figures or out)
    try:
        if args.replot:
            if not (Path(args.replot) / "runs.csv").is_file():
                raise ValueError(f"{args.replot} has no runs.csv: give a folder of tables, such as out or one of results/.")
            words = dict.fromkeys(("teacher", "title", "device", "key"), str)  # a folder may be called 2024, or null
            table, history = (pd.read_csv(Path(args.replot) / name, dtype=words, keep_default_na=False, na_values=[""])
                              for name in ("runs.csv", "history.csv"))
            paths = plot_tables(table.fillna({"teacher": ""}), history, pictures)
            print("\n".join(map(str, paths)) or "no figure shows these experiments")
            return 0
        device, store = pick_device(args.device), Store(args.store)
        workers = default_workers(device) if args.workers is None else args.workers
        train, test = load(args.data, args.root, size=args.size, skip_unreadable=args.skip_unreadable)
        saved = Split.load(args.split, train) if args.split else None
        labels = len(saved.labeled) if saved and args.labels is None else args.labels
        settings = override(profile(args.profile, train, device, labels), changes(args))
        names = list(dict.fromkeys(name.strip() for name in args.experiments.split(",")))
        wanted = [run for name in names for run in experiment_runs(name, settings)]
        trainings = prepare(wanted, train, test, saved)[1]  # what cannot be fails now
        print(f"{train}; {len(test):,} test images; {device_title(device)}; seeds {', '.join(map(str, settings.seeds))}\n"
              f"{settings.labels:,} labelled images, {len(train) - settings.labels:,} unlabelled; {len(trainings):,} trainings in all; "
              f"{settings.supervised.epochs:,} epochs on labels alone, {settings.student.epochs:,} of a student")
        tables = []
        for name in names:
            table = run_experiment(name, settings, train, test, store, saved_split=saved, device=device,
                                   workers=workers)
            tables.append(table)
            print(f"\n{name}\n{summary(table).to_string(index=False)}", flush=True)
            write_tables(pd.concat(tables), store, out)
        table = pd.concat(tables)
        for title, found in {"what Noisy Student gained, in points, with the 95% interval over seeds": gains(table),
                             "how many labels the last students are worth": worth(table),
                             "what a changed part of the student gains or costs, in points": part_gains(table)}.items():
            if len(found):  # none is there without students and what they are compared with
                print(f"\n{title}\n{found.to_string(index=False)}")
        paths = save_figures(table, store, train, test, pictures, device)
        print(f"\ntables: {out.resolve()}\n{len(paths)} figures: {pictures.resolve()}")
        return 0
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
