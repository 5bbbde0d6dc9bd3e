"""How much of training's time is spent waiting for images: `resnet18` + `lstm` from files and from the decoded cache.

    python bench/data_wait.py [--data DIR] [--image-size 112] [--batch-size 64] [--steps 40] [--device DEVICE]

Each contender is one run of `varalign.train` over as many steps, in a folder that is thrown away; the share is that of
`data_wait` in `seconds`, both summed over the run's `metrics.jsonl` without the first steps. Copying a batch to a GPU
counts as far as the host waits for it. The target is under 1 % on a CPU and under 5 % on a GPU. (OMP_NUM_THREADS sets
torch's threads.)
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import varalign
from harness import Row, main, single
from varalign.data.sample import write_sample
from varalign.options.device import pick_device

PACKAGES = ["numpy", "torch", "torchvision"]
WARM_UP = 5
"""Steps that are not counted: the first threads and batches, kernels chosen, memory laid out."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The script's own options."""
    parser.add_argument("--data", type=Path, help="folder of images and captions (default: the built-in sample)")
    parser.add_argument("--image-size", type=int, default=112, help="side of the square (default: 112)")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step (default: 64)")
    parser.add_argument("--steps", type=int, default=40, help="steps of each run (default: 40)")
    parser.add_argument("--device", help="cpu, cuda, cuda:N (default: the best there is)")


def waited(options: argparse.Namespace, data: Path, folder: Path, cache: str) -> tuple[float, float]:
    """Share of the time spent waiting, and seconds a step, of one run."""
    config = varalign.TrainConfig(
        data=str(data),
        image_size=options.image_size,
        batch_size=options.batch_size,
        dataset_size=options.batch_size * options.steps,
        epochs=1,
        device=options.device,
        decoded_cache=cache,  # type: ignore[arg-type]
        out=str(folder / cache),
        cache=str(folder / "cache"),
    )
    varalign.train(config, say=lambda line: None, progress=False)
    lines = [json.loads(line) for line in (folder / cache / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"][WARM_UP:]
    seconds = sum(line["seconds"] for line in steps)
    return sum(line["data_wait"] for line in steps) / seconds, seconds / len(steps)


def subjects(options: argparse.Namespace) -> Iterator[Sequence[Row]]:
    """From files, and from the cache on disk."""
    device = pick_device(options.device)
    most = 5 if device.type == "cuda" else 1
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = options.data
        if data is None:
            data = folder / "sample"
            write_sample(data, images=max(options.batch_size * options.steps * 2, 200))
        work = f"batches of {options.batch_size} at {options.image_size}, {options.steps} steps"
        threads = f", {torch.get_num_threads()} torch threads" if device.type == "cpu" else ""
        what = f"resnet18 + lstm, {work}, {device.type}{threads}"
        for cache, name in (("off", "from files"), ("disk", "--decoded-cache")):
            share, seconds = waited(options, data, folder, cache)
            verdict = f"target under {most} %: {'pass' if 100 * share < most else 'MISS'}"
            rows = [("data wait", 100 * share, "%", verdict), ("time of a step", seconds, "s", "")]
            for figure, value, unit, note in rows:
                yield [single(f"{figure} of {what}", name, value, unit, note=note, packages=PACKAGES)]


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
