"""What each part of the default recipe adds where pairs are few: one part left out at a time, over seeds.

    python bench/little.py --data flickr8k=FILE --data lite2=FILE --data fashion=FILE --data rsicd=FILE --out CSV
    python bench/little.py --data joined=FILE --out CSV     # image features of two encoders side by side
    python bench/little.py … --group official --row "the recipe" --size 600 --seeds 5
    python bench/little.py --out CSV --table                                     # the table of what is there

A row is `varalign train --features FILE --dataset-size N --seed S` with the options that it names, and two sets of test
figures: as the run scores, and without hub correction. Groups: `official`, the file's splits; `fresh`, train, dev and
test of the file's sizes drawn anew by the seed; `wrong`, 40 % of the images with captions of others. (N pairs and no
other data: `bench/unpaired.py --in-all`.)
`--out` keeps every run, so that a second call goes on where the first one stopped. Figures are test recalls in per
cent, means of both directions, with Student's 95 % interval over seeds; differences from the recipe are paired.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import varalign
from drawn import part_of_set, redrawn
from varalign.data.features import load_features, save_features
from varalign.options.config import TrainConfig
from varalign.study.inference import interval

RECIPE = "the recipe"
ROWS: dict[str, dict[str, Any]] = {
    RECIPE: {},
    "closed form": {"voices": "closed-form"},
    "closed form and kernel": {"voices": "closed-form,kernel"},
    "closed form and lexical": {"voices": "closed-form,lexical"},
    "hub correction off": {"hub_correction": "off"},
}
WITH_MEMBERS: dict[str, dict[str, Any]] = {  # of data sets with at least 1,000 training images
    "without members": {"members": 0},
    "closed form and members, no correction": {"voices": "closed-form,members", "hub_correction": "off"},
}
WRONG: dict[str, dict[str, Any]] = {
    RECIPE: {"noise": "swap-images=0.4"},
    "pairs weighted": {"noise": "swap-images=0.4", "pair_weighting": "closed-form"},
}
KEYS = ("group", "data", "images", "row", "seed")
RECALLS = tuple(f"{direction}_recall@{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10))
FIELDS = (*KEYS, *RECALLS, *(f"plain_{name}" for name in RECALLS), "hub_correction", "seconds")
Kept = dict[str, str]


@dataclass(frozen=True)
class Cell:
    """Runs that differ in the seed alone: the options of `varalign train` beside those that say what the data are."""

    group: str
    data: str
    images: int | None
    seeds: int
    row: str
    options: dict[str, Any] = field(default_factory=dict)


def cells() -> Iterator[Cell]:
    """What is measured."""
    few = [("flickr8k", 600), ("flickr8k", 60), ("lite2", 600), ("joined", 600), ("fashion", 300), ("rsicd", 300)]
    whole = ("fashion", "rsicd", "flickr8k")
    for row, options in ROWS.items():
        for group in ("official", "fresh"):
            for data, images in few:
                yield Cell(group, data, images, 20, row, options)
            for data in whole:
                yield Cell(group, data, None, 5 if data == "flickr8k" else 10, row, options)
    for row, options in WITH_MEMBERS.items():
        for group in ("official", "fresh"):
            for data in whole:
                yield Cell(group, data, None, 5 if data == "flickr8k" else 10, row, options)
    for row, options in WRONG.items():
        yield Cell("wrong", "flickr8k", 600, 20, row, options)


def written(cell: Cell, path: Path, seed: int, folder: Path) -> Path:
    """The features file of splits drawn anew."""
    file = redrawn(load_features(path), seed).limited(cell.images, seed)
    place = folder / "pairs.safetensors"
    save_features(place, part_of_set(file, np.flatnonzero(file.split >= 0)), dtype="float32")
    return place


def measured(cell: Cell, path: Path, seed: int, folder: Path) -> dict[str, Any]:
    """One run's figures."""
    begun = time.process_time()
    options = {**cell.options, "dataset_size": cell.images}
    if cell.group == "fresh":
        path, options = written(cell, path, seed, folder), dict(cell.options)
    config = TrainConfig(**options, features=str(path), seed=seed, out=str(folder / "run"), keep=1)
    test = varalign.train(config, say=lambda _: None, progress=False).test
    seconds = time.process_time() - begun
    plain = test.get("uncorrected") or test
    found: dict[str, Any] = {name: f"{100 * test[name]:.3f}" for name in RECALLS}
    found |= {f"plain_{name}": f"{100 * plain[name]:.3f}" for name in RECALLS}
    return found | {"hub_correction": test["hub_correction"] or "", "seconds": f"{seconds:.1f}"}


def mean_of(row: Kept, k: int, prefix: str = "") -> float:
    """Mean of both directions' Recall@k."""
    return statistics.mean(float(row[f"{prefix}{direction}_recall@{k}"]) for direction in ("i2t", "t2i"))


def print_table(kept: list[Kept]) -> None:
    """Each cell's recalls with and without hub correction, and what the recipe has on the same seeds."""
    by_cell: dict[tuple[str, ...], dict[str, Kept]] = {}
    for row in kept:
        by_cell.setdefault(tuple(row[key] for key in KEYS[:-1]), {})[row["seed"]] = row
    for (group, data, images, name), runs in by_cell.items():
        at_1, half = interval([mean_of(row, 1) for row in runs.values()])
        plain, plain_half = interval([mean_of(row, 1, "plain_") for row in runs.values()])
        wider = " / ".join(f"{statistics.mean(mean_of(row, k) for row in runs.values()):.1f}" for k in (5, 10))
        hub = sum(bool(row["hub_correction"]) for row in runs.values())
        seconds = statistics.median(float(row["seconds"]) for row in runs.values())
        line = f"{group:9} {data:9} {images:>6} {name:34}{at_1:6.2f} ± {half:.2f}  {wider:>12}"
        line += f"  without correction {plain:6.2f} ± {plain_half:.2f}"
        recipe = by_cell.get((group, data, images, RECIPE), {})
        if both := [seed for seed in runs if seed in recipe and name != RECIPE]:
            gain, gain_half = interval([mean_of(runs[seed], 1) - mean_of(recipe[seed], 1) for seed in both])
            line += f"  − the recipe {gain:+.2f} ± {gain_half:.2f}"
        print(f"{line}  hub in {hub} of {len(runs)}  {seconds:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FILE", help="a features file")
    parser.add_argument("--group", action="append", help="these groups alone")
    parser.add_argument("--row", action="append", help="rows that hold this text alone")
    parser.add_argument("--size", type=int, action="append", help="these numbers of training images alone; 0: all")
    parser.add_argument("--seeds", type=int, default=20, help="at most so many")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, required=True, metavar="CSV")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept: list[Kept] = []
    if options.out.is_file():
        with options.out.open(newline="", encoding="utf-8") as lines:
            kept = list(csv.DictReader(lines))
    done = {tuple(row[key] for key in KEYS) for row in kept}
    paths = {name: Path(path) for name, _, path in (given.partition("=") for given in options.data)}
    for cell in () if options.table else cells():
        if cell.data not in paths or (options.group and cell.group not in options.group):
            continue
        if options.row and not any(text in cell.row for text in options.row):
            continue
        if options.size and (cell.images or 0) not in options.size:
            continue
        for seed in range(min(cell.seeds, options.seeds)):
            key = (cell.group, cell.data, str(cell.images or "all"), cell.row, str(seed))
            if key in done:
                continue
            with tempfile.TemporaryDirectory() as folder:
                found = measured(cell, paths[cell.data], seed, Path(folder))
            kept.append(dict(zip(KEYS, key, strict=True)) | found)
            with options.out.open("w", newline="", encoding="utf-8") as lines:
                writer = csv.DictWriter(lines, FIELDS)
                writer.writeheader()
                writer.writerows(kept)
            print(f"{' '.join(key)}: {mean_of(kept[-1], 1):.2f}, {found['seconds']} s", file=sys.stderr, flush=True)
    print_table(kept)


if __name__ == "__main__":
    main()
