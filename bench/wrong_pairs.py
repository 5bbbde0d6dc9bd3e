"""Training on pairs of which some are wrong: weighted by their probability of being right, plainly, without the wrong.

    python bench/wrong_pairs.py --features FILE [--noise swap-images=0.4] [--seeds 3] [--dataset-size N]

Each row is `varalign train --features FILE --noise … --seed S` with the options that it names; "right pairs only"
trains on the images that the noise left alone, which nobody has outside an experiment. Figures are test Recall@1 in per
cent, the mean of both directions.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import varalign
from varalign.data.features import load_features, save_features
from varalign.evaluation.noise import noisy_pairs, parse_noise
from varalign.training.build import limited
from varalign.training.config import TrainConfig

TARGETS = {"right pairs only": 0.95, "random start, plain, fixed weights": 1.9}
ROWS: dict[str, dict[str, Any]] = {
    "right pairs only": {},
    "weighted": {"pair_weighting": "closed-form"},
    "closed-form start, plain": {},
    "random start, plain, fixed weights": {"start": "random", "schedule": "fixed"},
}


def without_wrong(config: TrainConfig, folder: Path) -> Path:
    """A features file in which the images that the noise touches are in no split."""
    features = limited(load_features(str(config.features)), config)
    owner, _ = noisy_pairs(
        features.text_image_ids, features.rows("train"), parse_noise(config.noise or ""), config.seed
    )
    split = features.split.copy()
    split[features.text_image_ids[owner != features.text_image_ids]] = -1
    path = folder / f"right-{config.seed}.safetensors"
    save_features(path, dataclasses.replace(features, split=split))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--features", required=True)
    parser.add_argument("--noise", default="swap-images=0.4")
    parser.add_argument("--dataset-size", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {row: [] for row in ROWS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(arguments.seeds):
            noisy = TrainConfig(
                features=arguments.features, noise=arguments.noise, dataset_size=arguments.dataset_size, seed=seed
            )
            right = dataclasses.replace(
                noisy, features=str(without_wrong(noisy, folder)), noise=None, dataset_size=None
            )
            for row, options in ROWS.items():
                base = right if row == "right pairs only" else noisy
                out = str(folder / f"{seed}-{len(found[row])}-{row.replace(' ', '-')}")
                test = varalign.train(dataclasses.replace(base, **options, out=out), say=lambda _: None).test
                found[row].append(50 * (test["i2t_recall@1"] + test["t2i_recall@1"]))
                print(f"seed {seed}  {row:36}{found[row][-1]:7.2f}", flush=True)
    weighted = float(np.mean(found["weighted"]))
    for row, values in found.items():
        mean, target = float(np.mean(values)), TARGETS.get(row)
        ratio = f"  weighted / this {weighted / mean:.3f}"
        verdict = "" if target is None else f"  wanted {target}: {'pass' if weighted / mean >= target else 'MISS'}"
        print(f"{row:36}{mean:7.2f} ± {np.std(values):.2f}{ratio}{verdict}")


if __name__ == "__main__":
    main()
