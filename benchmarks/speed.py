"""How fast is it, beside the usual way? `make bench`, or python -m benchmarks.speed --help

All rows are measured in one process on the same images, in turn, round after round, so that a ratio
compares like with like even on a machine whose speed drifts; a row's figure is the median over the
rounds.

limit          forward, backward and optimizer step on one resident batch: what the hardware gives
noisy_student  the project's own loop, `train`: shuffling, flip, crop, RandAugment, normalisation
               and step
usual          DataLoader with a worker a core, PIL images, torchvision v2 flip, crop, RandAugment;
               fp32, batch 128
usual+         the usual loop with the project's precision and memory format
RandAugment    alone, on one core (or on the GPU): the project's; torchvision's on PIL images and on
               tensors; kornia's (which draws one op for a whole batch of 128, the others one an
               image: it has less to do)
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import psutil
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2
from tqdm import tqdm

from noisy_student import (
    MODELS,
    Images,
    RandAugment,
    Recipe,
    Run,
    build,
    figures,
    load,
    run_all,
    train,
)
from noisy_student.augment import chunk_size
from noisy_student.data import check_name
from noisy_student.experiments import EXPERIMENTS
from noisy_student.files import write_whole
from noisy_student.step import make_step, sgd, uses_bf16
from noisy_student.training import device_title, normalise, pick_device

BATCH = 128
PARTS = ("training", "randaugment", "growth", "suite")


class Row(NamedTuple):
    what: str
    model: str
    n: int
    images: int  # processed in one call
    call: Callable[[], object]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --------------------------------------------------------------------------------- what is measured


def limit(name: str, data: Images, device: torch.device, steps: int) -> Row:
    """The step alone, the very function that `train` calls, on one batch that is already there."""
    model = build(name, len(data.classes)).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    step = make_step(model.train(), sgd(model, Recipe()), Recipe())
    x = normalise(data.images[:BATCH].to(device))
    y = F.one_hot(data.labels[:BATCH], len(data.classes)).float().to(device)
    return Row("limit", name, 0, steps * BATCH, lambda: [step(x, y, 0.01) for _ in range(steps)])


def project(
    name: str, n: int, data: Images, device: torch.device, steps: int, what: str = "noisy_student"
) -> Row:
    model = build(name, len(data.classes))
    recipe = Recipe(epochs=1, batch_size=BATCH, lr=0.01, n=n, m=10)
    images, labels = data.images[: steps * BATCH].to(device), data.labels[: steps * BATCH]
    return Row(
        what,
        name,
        n,
        len(images),
        lambda: train(model, images, labels, recipe, device=device, progress=False),
    )


class Pictures(Dataset[tuple[Tensor, int]]):
    """PIL images and their torchvision transforms, as most repositories have them."""

    def __init__(self, data: Images, count: int, n: int) -> None:
        self.pictures = [
            Image.fromarray(image.permute(1, 2, 0).numpy()) for image in data.images[:count]
        ]
        self.labels = data.labels[:count].tolist()
        self.transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomCrop(32, padding=4, padding_mode="reflect"),
                v2.RandAugment(n, 9, fill=128),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.5,) * 3, (0.25,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pictures[index]), self.labels[index]


def usual(name: str, n: int, data: Images, device: torch.device, steps: int, plus: bool) -> Row:
    model = build(name, len(data.classes)).to(device)
    if plus:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader = DataLoader(
        Pictures(data, steps * BATCH, n),
        BATCH,
        shuffle=True,
        num_workers=os.cpu_count() or 1,
        drop_last=True,
        pin_memory=device.type == "cuda",
        persistent_workers=True,
    )
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-3
    )

    def epoch() -> None:
        for x, y in loader:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            x = x.contiguous(memory_format=torch.channels_last) if plus else x
            with torch.autocast(
                device.type, torch.bfloat16, enabled=plus and uses_bf16("auto", device)
            ):
                loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return Row("usual+" if plus else "usual", name, n, len(loader) * BATCH, epoch)


def augmentations(n: int, data: Images, device: torch.device, count: int) -> Iterator[Row]:
    """RandAugment alone. On a CPU every row has one thread: figures are per core."""
    import kornia.augmentation as K

    images, few = data.images[:count].to(device), data.images[: count // 8]
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in few]
    ours, theirs = RandAugment(n, 10), v2.RandAugment(n, 9, fill=128)
    floats = data.images[: count // 8].to(device).float() / 255
    # m is a place in each op's range, of 30, as torchvision's magnitude is; for the colour ops that
    # is 0.1 to 1.9, with no change at 15.
    kornia = K.AugmentationSequential(*[K.auto.RandAugment(n=1, m=9) for _ in range(n)])
    yield Row(
        "RandAugment: noisy_student",
        "",
        n,
        len(images),
        lambda: [ours(part) for part in images.split(chunk_size(images))],
    )
    yield Row(
        "RandAugment: torchvision, PIL",
        "",
        n,
        len(pictures),
        lambda: [theirs(picture) for picture in pictures],
    )
    yield Row(
        "RandAugment: torchvision, tensors",
        "",
        n,
        len(few),
        lambda: [theirs(image) for image in few],
    )
    yield Row(
        "RandAugment: kornia",
        "",
        n,
        len(floats),
        lambda: [kornia(part) for part in floats.split(128)],
    )


# -------------------------------------------------------------------------------------- measurement


def tree_memory_mb(process: psutil.Process) -> float:
    """What a process and its descendants hold now, in Linux with shared pages counted once."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            memory = each.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    return total / 1e6


def peak_memory_mb(reset: bool = False) -> float:
    """Peak resident memory since the last reset, and what workers hold now (Linux; else NaN).

    On a CPU that includes all that the process has held since its first training, which keeps freed
    memory.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text())
    return (int(found[1]) / 1024 if found else float("nan")) + sum(
        map(tree_memory_mb, psutil.Process().children())
    )


def measure(rows: list[Row], rounds: int, device: torch.device) -> pd.DataFrame:
    """One warm-up call of each row, then all rows in turn, ``rounds`` times."""
    seen: list[dict[str, Any]] = []
    for turn in tqdm(range(rounds + 1), "rounds", leave=False):
        for row in rows:
            threads = torch.get_num_threads()
            torch.set_num_threads(1 if row.what.startswith("RandAugment") else threads)
            peak_memory_mb(reset=True)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            wait(device)
            start = time.perf_counter()
            row.call()
            wait(device)
            seconds = time.perf_counter() - start
            torch.set_num_threads(threads)
            on_device = (
                torch.cuda.max_memory_allocated(device) / 1e6
                if device.type == "cuda"
                else float("nan")
            )
            if turn:
                seen.append(
                    {
                        "what": row.what,
                        "model": row.model,
                        "n": row.n,
                        "images_per_second": row.images / seconds,
                        "peak_memory_mb": peak_memory_mb(),
                        "device_memory_mb": on_device,
                    }
                )
    table = pd.DataFrame(seen).groupby(["what", "model", "n"], sort=False).median().reset_index()
    return table.assign(rounds=rounds)


def with_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Adds images a second relative to the limit, and to the usual way, of the same model and n."""
    speed = table.set_index(["what", "model", "n"]).images_per_second

    def relative(row: pd.Series, to: str) -> float:
        n = 0 if to == "limit" else row.n
        return row.images_per_second / speed.get((to, row.model, n), float("nan"))

    table["ratio_to_limit"] = table.apply(relative, axis=1, to="limit")
    table["ratio_to_usual"] = table.apply(relative, axis=1, to="usual")
    alone = table.what.str.startswith("RandAugment")
    table.loc[alone, "ratio_to_usual"] = table[alone].apply(
        lambda row: row.images_per_second / speed["RandAugment: torchvision, PIL", "", row.n],
        axis=1,
    )
    return table


def flops_a_image(name: str, classes: int) -> float:
    """Floating-point operations of both passes for an image: convolutions and matrix products."""
    model, x = build(name, classes), torch.randn(8, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    return counter.get_total_flops() / 8


def ceilings(device: torch.device) -> dict[str, float]:
    """What the device reaches: TFLOP/s of a large bf16 matrix product, GB/s of a large copy."""
    size, big = (8192, 2**28) if device.type == "cuda" else (1024, 2**24)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source, target = (torch.ones(big, device=device) for _ in range(2))

    def best(call: Callable[[], object]) -> float:
        times = []
        for _ in range(6):
            wait(device)
            start = time.perf_counter()
            call()
            wait(device)
            times.append(time.perf_counter() - start)
        return min(times)

    return {
        "TFLOP/s": 2 * size**3 / best(lambda: a @ b) / 1e12,
        "GB/s": 8 * big / best(lambda: target.copy_(source)) / 1e9,
    }


# ------------------------------------------------------------------------ the whole, and its growth


def growth(data: Images, device: torch.device) -> Iterator[Row]:
    """Resnet9's epoch by number of images and by n; several runs in one process and in two."""
    for count in (1000, 5000, 20000, 50000):
        yield project("Resnet9", 2, data, device, count // BATCH, f"images={count}")
    for n in (0, 1, 2, 5, 9, 14):
        yield project("Resnet9", n, data, device, 5000 // BATCH, "by n")
    for model, epochs in (("Convnet5", 6), ("Resnet9", 3)):
        for workers in (1, 2):
            call = partial(several_runs, model, epochs, workers, data, device)
            yield Row(f"4 runs, workers={workers}", model, 2, 4 * 5000 * epochs, call)


def several_runs(model: str, epochs: int, workers: int, data: Images, device: torch.device) -> None:
    """Four runs of one model from an empty store to the table, with the start of the helper."""
    train_set, test_set = (
        Images(data.images[part].clone(), data.labels[part].clone(), data.classes, "bench")
        for part in (slice(6000), slice(6000, 6100))
    )
    with tempfile.TemporaryDirectory() as store:
        run_all(
            [Run(model, 5000, Recipe(epochs=epochs), seed=s) for s in range(4)],
            train_set,
            test_set,
            store,
            device=device,
            workers=workers,
            progress=False,
        )


def suite(source: str, name: str, device: torch.device, store: str) -> pd.DataFrame:
    """Seconds of each experiment for one seed, as the command line runs it, in an empty store.

    What one has trained, the next does not train again. The peak memory is that of all its
    processes together, libraries included.
    """
    if list(Path(store).glob("*")):
        raise ValueError(f"the store {store} is not empty: finished runs take no time.")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for experiment in EXPERIMENTS:
            start, out = time.perf_counter(), f"{folder}/{experiment}"
            options = {
                "data": source,
                "recipe": name,
                "experiments": experiment,
                "seeds": "0",
                "device": device.type,
                "store": store,
                "out": out,
            }
            command = [
                sys.executable,
                "-m",
                "noisy_student",
                "train",
                *(word for key, value in options.items() for word in (f"--{key}", value)),
            ]
            process, peak = psutil.Popen(command, stdout=subprocess.DEVNULL), 0.0
            while process.poll() is None:
                peak = max(peak, tree_memory_mb(process))
                time.sleep(0.5)
            if process.returncode:
                raise RuntimeError(f"the experiment {experiment} failed: run it alone to see why.")
            seconds, runs = time.perf_counter() - start, len(pd.read_csv(f"{out}/runs.csv"))
            rows.append(
                {
                    "what": f"suite: {experiment}",
                    "model": name,
                    "runs": runs,
                    "seconds": seconds,
                    "peak_memory_mb": peak,
                }
            )
            print(f"{experiment}: {runs} runs, {seconds:.0f} s, {peak:,.0f} MB", flush=True)
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, title: str) -> Figure:
    """Training at the largest n, a group of bars a model; RandAugment alone, where measured."""
    n = int(table[table.what == "noisy_student"].n.max())
    alone = table[table.what.str.startswith("RandAugment") & (table.n == n)]
    figure = Figure(figsize=(11 if len(alone) else 6, 4.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    left, *right = figure.subplots(1, 2 if len(alone) else 1, squeeze=False)[0]
    kinds = {
        "limit": ("bare step", figures.GREY),
        "noisy_student": ("this loop", figures.BLUE),
        "usual+": ("usual loop, same precision", figures.ORANGE),
        "usual": ("usual loop, fp32", figures.RED),
    }
    models = list(table[table.what == "noisy_student"].model.unique())
    for i, (what, (label, colour)) in enumerate(kinds.items()):
        rows = table[(table.what == what) & table.n.isin([0 if what == "limit" else n])].set_index(
            "model"
        )
        bars = left.bar(
            [x + (i - 1.5) * 0.2 for x in range(len(models))],
            rows.images_per_second[models],
            0.19,
            color=colour,
            label=label,
        )
        left.bar_label(bars, fmt="{:,.0f}", fontsize=6.5, rotation=90, padding=3)
    left.set(
        xticks=range(len(models)),
        xticklabels=models,
        ylabel="images a second",
        title=f"training, RandAugment({n}, 10)",
    )
    left.yaxis.set_major_formatter("{x:,.0f}")
    left.set_ylim(top=1.3 * left.get_ylim()[1])
    left.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", columnspacing=1)
    for axes in right:
        bars = axes.barh(
            [w.removeprefix("RandAugment: ") for w in alone.what],
            alone.images_per_second,
            color=figures.BLUE,
        )
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=8, padding=3)
        axes.set(xlabel="images a second, one core", title=f"RandAugment({n}, 10) alone")
        axes.set_xlim(right=1.2 * axes.get_xlim()[1])
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.invert_yaxis()
    return figure


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name: str, default: str | None = None, **more: Any) -> None:
        parser.add_argument(f"--{name}", default=default, **more)

    add(
        "data",
        "digits",
        help="images to measure on (default: digits); speed does not depend on them",
    )
    add("device")
    add("rounds", "3", type=int)
    add("models", ",".join(MODELS))
    add("ns", "2,5")
    add(
        "scale",
        type=int,
        help="steps a call of the project's loop (default: 200 on a GPU, else 16)",
    )
    said = f"which of {', '.join(PARTS)} (default: %(default)s); rows of the others stay"
    add("parts", ",".join(PARTS[:-1]), help=said)
    add("recipe", "quick", help="of the part suite, the four experiments (default: quick)")
    add("store", help="an empty folder that keeps the suite's runs (default: they are not kept)")
    add("out", "results/bench")
    add("assets", "assets")
    return parser.parse_args()


def enlarged(data: Images) -> Images:
    """50,000 images or more, small data sets repeated: what is measured does not see the pixels."""
    times = -(-50_000 // len(data))
    images, labels = data.images.repeat(times, 1, 1, 1), data.labels.clamp(min=0).repeat(times)
    return Images(images, labels, data.classes, data.name)


def trainings(
    args: argparse.Namespace, data: Images, device: torch.device
) -> Iterator[pd.DataFrame]:
    """The part training, a model at a time: few DataLoader workers alive at once."""
    gpu, ns, top = device.type == "cuda", [int(n) for n in args.ns.split(",")], ceilings(device)
    steps = args.scale or (200 if gpu else 16)
    for model in args.models.split(","):
        rows = [limit(model, data, device, steps)]
        rows += [project(model, n, data, device, steps) for n in ns]
        fewer = steps if gpu else steps // 2
        rows += [usual(model, n, data, device, fewer, plus) for n in ns for plus in (False, True)]
        speed = with_ratios(measure(rows, args.rounds, device))
        speed["tflops"] = speed.images_per_second * flops_a_image(model, len(data.classes)) / 1e12
        del rows
        yield speed.assign(tflops_ceiling=top["TFLOP/s"], gb_per_second_ceiling=top["GB/s"])


def measured(
    part: str, args: argparse.Namespace, data: Images, device: torch.device
) -> Iterator[pd.DataFrame]:
    """The rows of a part of the benchmark, in one table or more."""
    if part == "training":
        yield from trainings(args, data, device)
    elif part == "randaugment":
        count = 65536 if device.type == "cuda" else 4096
        alone = [r for n in args.ns.split(",") for r in augmentations(int(n), data, device, count)]
        yield with_ratios(measure(alone, args.rounds, device))
    elif part == "growth":
        yield measure(list(growth(data, device)), args.rounds, device)
    else:
        with tempfile.TemporaryDirectory() as passing:
            yield suite(args.data, args.recipe, device, args.store or passing)


def main() -> None:
    args = options()
    device, parts = pick_device(args.device), args.parts.split(",")
    for part in parts:
        check_name("part", part, PARTS)
    data, title = enlarged(load(args.data)[0]), device_title(device)
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    path = Path(args.out) / f"{name}.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["part"])
    table = table[~table.part.isin(parts)]
    for part in (part for part in PARTS if part in parts):
        for rows in measured(part, args, data, device):
            rows = rows.assign(part=part, device=title, torch=torch.__version__)
            table = pd.concat([table, rows])
            # at once: a stopped benchmark keeps what it measured
            write_whole(path, table.to_csv(index=False, float_format="%.6g").encode())
            print(rows.round(3).to_string(index=False), flush=True)
    drawn = table[table.what == "noisy_student"]
    if len(drawn):  # by another call, perhaps
        figure = draw(
            table,
            f"{title}, torch {drawn.torch.iloc[-1]}, median of {drawn.rounds.iloc[-1]:.0f} rounds",
        )
        print(path, figures.save(figure, Path(args.assets) / f"bench-{name}.png"))


if __name__ == "__main__":
    main()
