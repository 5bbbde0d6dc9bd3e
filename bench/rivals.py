"""Other ways to align two frozen encoders from few pairs, beside our closed form: same features, draws and splits.

    python bench/rivals.py --features FILE --images 600 --seeds 20 --out bench/results/rivals-x86_64.csv
    python bench/rivals.py --features FILE --images 600 --seeds 20 --only csa --only asif --out …

A rival is a file of bench/rivals/. Each draws its training images by the seed, chooses its settings on dev, and is
measured on test as it is and, where it has embeddings, with our hub correction by its own training pairs. `--out`
keeps every draw's figures: a second call goes on where the first one stopped. Prints test R@1 and R@5 / R@10 in per
cent, means of both directions, with Student's 95 % interval over the draws; for a single draw 1.96 standard errors over
test images.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from drawn import Draw, corrected, drawn, recall
from rivals import FILES, Model, best_of, models_of, scores_of
from rivals.closed_form import models as ours
from varalign.data.features import load_features
from varalign.study.inference import interval

KEYS = ("data", "images", "seed", "file")
RECALLS = ("mean_recall@1", "mean_recall@5", "mean_recall@10")
FIELDS = (*KEYS, "name", *RECALLS, "error", "seconds")
CORRECTED = " + our hub correction"


def measured(file: str, draw: Draw, base: Model) -> Iterator[tuple[str, dict[str, float]]]:
    """The rows of one rival on one draw."""
    if (models := models_of(file)) is None:
        for name, scores in scores_of(file)(draw, base):
            yield name, recall(scores, draw.test.pairs)
        return
    for name, model in best_of(models(draw), draw).items():
        u, v = model.images(draw.test.x), model.texts(draw.test.y)
        s = u @ v.T
        yield name, recall((s, s), draw.test.pairs)
        yield name + CORRECTED, recall(corrected(u, v, model.correction(draw)), draw.test.pairs)


def print_table(rows: list[dict[str, Any]], out: Any) -> None:
    """A line a contender, in the order of the rivals."""
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        mean, half = interval([float(row["mean_recall@1"]) for row in own])
        half = 1.96 * float(own[0]["error"]) if len(own) == 1 else half
        wider = " / ".join(f"{statistics.mean(float(row[f'mean_recall@{k}']) for row in own):.1f}" for k in (5, 10))
        print(f"{name:48}{mean:7.2f} ± {half:.2f}   {wider}   {len(own)} draws", file=out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--features", type=Path, required=True, metavar="FILE")
    parser.add_argument("--images", type=int, metavar="N", help="training images drawn; all without it")
    parser.add_argument("--seeds", type=int, default=1, metavar="N")
    parser.add_argument("--only", action="append", choices=FILES, help="this rival; may be given several times")
    parser.add_argument("--out", type=Path, required=True, metavar="CSV")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = load_features(options.features)
    data, images = options.features.stem, options.images or len(file.rows("train"))
    kept: list[dict[str, Any]] = []
    if options.out.is_file():
        with options.out.open(newline="", encoding="utf-8") as lines:
            kept = list(csv.DictReader(lines))
    done = {tuple(row[key] for key in KEYS) for row in kept}
    for seed in range(options.seeds):
        wanted = [name for name in options.only or FILES if (data, str(images), str(seed), name) not in done]
        if not wanted:
            continue
        draw = drawn(file, options.images, seed)
        base = next(ours(draw))
        for rival in wanted:
            begun = time.process_time()
            for name, figures in measured(rival, draw, base):
                row = {"data": data, "images": images, "seed": seed, "file": rival, "name": name}
                kept.append(row | {key: f"{value:.4f}" for key, value in figures.items()} | {"seconds": 0})
            kept[-1]["seconds"] = f"{time.process_time() - begun:.1f}"
            with options.out.open("w", newline="", encoding="utf-8") as lines:
                writer = csv.DictWriter(lines, FIELDS)
                writer.writeheader()
                writer.writerows(kept)
            print(f"seed {seed} {rival}: {kept[-1]['seconds']} s", file=sys.stderr)
    own = [row for row in kept if row["data"] == data and str(row["images"]) == str(images)]
    print(f"{data}, {images} images")
    print_table(own, sys.stdout)


if __name__ == "__main__":
    main()
