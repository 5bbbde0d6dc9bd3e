"""Training on pairs of which some are wrong: weighted by their probability of being right, plainly, without the wrong.

    python bench/wrong_pairs.py --features FILE [--noise swap-images=0.4] [--seeds 3] [--dataset-size N]
    python bench/wrong_pairs.py --data DIR --seeds 1

Each row is `varalign train --features FILE --noise … --seed S` (or `--data DIR`, from random weights, with `IMAGES`)
with the options that it names; "right pairs only" trains on the images that the noise left alone, which are known
in an experiment only. Figures are test Recall@1 (from images: @10) in per cent, the mean of both directions, with
Student's 95 % interval over seeds. Dev is clean, as `--noise` leaves it.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import varalign
from harness import print_json, single
from varalign.data.datasets import load_dataset
from varalign.data.features import load_features, save_features
from varalign.data.noise import noisy_pairs, parse_noise
from varalign.options.config import TrainConfig
from varalign.study.inference import interval

TARGETS = {"right pairs only": 0.95, "random start, plain, fixed weights": 1.9}
ROWS: dict[str, dict[str, Any]] = {
    "right pairs only": {},
    "weighted": {"pair_weighting": "closed-form"},
    "closed-form start, plain": {},
    "random start, plain, fixed weights": {"start": "random", "schedule": "fixed"},
}

IMAGES: dict[str, Any] = {
    "image_size": 64,
    "epochs": 12,
    "batch_size": 64,
    "lr": 3e-4,
    "precision": "bf16",
    "decoded_cache": "disk",
}
IMAGE_ROWS: dict[str, dict[str, Any]] = {"right pairs only": {}, "weighted": {"pair_weighting": "moments"}, "plain": {}}


def without_wrong(config: TrainConfig, folder: Path) -> Path:
    """A features file in which the images that the noise touches are in no split."""
    features = load_features(str(config.features)).limited(config.dataset_size, config.seed)
    owner, _ = noisy_pairs(
        features.text_image_ids, features.rows("train"), parse_noise(config.noise or ""), config.seed
    )
    split = features.split.copy()
    split[features.text_image_ids[owner != features.text_image_ids]] = -1
    path = folder / f"right-{config.seed}.safetensors"
    save_features(path, dataclasses.replace(features, split=split))
    return path


def without_wrong_images(config: TrainConfig, folder: Path) -> Path:
    """A data folder whose training list leaves out the images that the noise touches."""
    assert config.data is not None
    data = load_dataset(config.data, seed=config.seed, dataset_size=config.dataset_size)
    owner, _ = noisy_pairs(data.caption_image_ids, data.rows("train"), parse_noise(config.noise or ""), config.seed)
    touched = set(data.caption_image_ids[owner != data.caption_image_ids].tolist())
    right = folder / f"right-{config.seed}"
    right.mkdir()
    (right / "Images").symlink_to(data.image_paths[0].parent.resolve())
    with (right / "captions.txt").open("w", newline="", encoding="utf-8") as file:
        lines = zip((data.image_names[row] for row in data.caption_image_ids), data.captions, strict=True)
        csv.writer(file).writerows([("image", "caption"), *lines])
    for split in ("train", "dev", "test"):
        names = [data.image_names[row] for row in data.rows(split).tolist() if row not in touched]
        (right / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--features")
    source.add_argument("--data")
    parser.add_argument("--noise", default="swap-images=0.4")
    parser.add_argument("--dataset-size", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of each run; 0: all cores")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON list")
    arguments = parser.parse_args()
    rows, usual, at = (IMAGE_ROWS, IMAGES, 10) if arguments.data else (ROWS, {}, 1)
    found: dict[str, list[float]] = {row: [] for row in rows}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(arguments.seeds):
            noisy = TrainConfig(
                features=arguments.features,
                data=arguments.data,
                noise=arguments.noise,
                dataset_size=arguments.dataset_size,
                threads=arguments.threads,
                seed=seed,
                **usual,
            )
            kept = without_wrong_images(noisy, folder) if arguments.data else without_wrong(noisy, folder)
            place = {"data" if arguments.data else "features": str(kept)}
            right = dataclasses.replace(noisy, **place, noise=None, dataset_size=None)
            for row, options in rows.items():
                base = right if row == "right pairs only" else noisy
                out = str(folder / f"{seed}-{row.replace(' ', '-')}")
                config = dataclasses.replace(base, **options, out=out)
                test = varalign.train(config, say=lambda _: None, progress=False).test
                found[row].append(50 * (test[f"i2t_recall@{at}"] + test[f"t2i_recall@{at}"]))
                print(f"seed {seed}  {row:36}{found[row][-1]:7.2f}", file=sys.stderr, flush=True)
    weighted, table = float(np.mean(found["weighted"])), []
    subject = f"mean test R@{at}, noise {arguments.noise}, {arguments.seeds} seeds"
    for row, values in found.items():
        (mean, half), target = interval(values), None if arguments.data else TARGETS.get(row)
        ratio = weighted / mean
        verdict = "" if target is None else f"  wanted {target}: {'pass' if ratio >= target else 'MISS'}"
        table.append(single(subject, row, mean, "%", ratio=ratio, note=f"± {half:.2f}{verdict}", packages=["torch"]))
        line = f"{row:36}{mean:7.2f} ± {half:.2f}  weighted / this {ratio:.3f}{verdict}"
        print(line, file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print_json(table)


if __name__ == "__main__":
    main()
