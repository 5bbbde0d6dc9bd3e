"""What unpaired images and texts add to few pairs: `varalign train` without and with self-training.

    python bench/unpaired.py --features FILE --images 600 --seeds 20
    python bench/unpaired.py --features FILE --images 60 --seeds 20 --in-all    # no other pair: there is no dev split

N training images are drawn by seed; of the training images left, some give their images and others their captions, as
features without any pairs. With `--in-all` there is no dev split and cross-validation chooses, else the file's own dev
split does; the file's test split judges. `--fresh` draws train, dev and test of these sizes anew from all images of the
file. `--out` keeps every run, so that a second call goes on where the first one stopped. Prints test R@1 in per cent,
the mean of both directions, its mean over the seeds and Student's 95 % interval.
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
from drawn import part_of_set, redrawn
from harness import print_json, single
from safetensors.numpy import save_file
from varalign.data.features import FeatureSet, load_features, save_features, write_strings
from varalign.options.config import TrainConfig
from varalign.study.inference import interval

CONTENDERS = ("without", "with")
SIDES = ("unpaired_images", "unpaired_texts")
FIELDS = ("data", "images", "unpaired", "seed", "mean_r1", "plain")
Runs = dict[tuple[str, ...], tuple[float, float]]
"""Mean test R@1, corrected and not, of each data set, kind of draw, contender and seed."""


def drawn(data: FeatureSet, options: argparse.Namespace, seed: int, folder: Path) -> dict[str, Path]:
    """The files of one draw: the pairs, and the unpaired images and texts of other training images."""
    data = redrawn(data, seed) if options.fresh else data
    limited = data.limited(options.images, seed)
    split = limited.split.copy()
    if options.in_all:
        split[split == 1] = -1
    rest = np.random.default_rng(1000 + seed).permutation(np.setdiff1d(data.rows("train"), limited.rows("train")))
    images, others = rest[: options.unpaired_images], rest[options.unpaired_images :]
    captions = data.caption_rows(others)[: options.unpaired_texts]
    pairs, pool = folder / f"pairs-{seed}.safetensors", folder / f"pool-{seed}.safetensors"
    # in no split: what is unpaired is not in the file of the pairs either
    used = np.flatnonzero(split >= 0)
    save_features(pairs, part_of_set(dataclasses.replace(limited, split=split), used), dtype="float32")
    save_file({"image_features": data.image_features[images], "text_features": data.text_features[captions]}, str(pool))
    if data.texts is not None:
        write_strings(pool.with_name(f"{pool.stem}.texts.jsonl"), [data.texts[row] for row in captions.tolist()])
    return {"pairs": pairs, "pool": pool}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--images", type=int, default=600, metavar="N")
    parser.add_argument("--unpaired-images", type=int, default=1700, metavar="N")
    parser.add_argument("--unpaired-texts", type=int, default=5000, metavar="N")
    parser.add_argument("--in-all", action="store_true", help="the N images are all pairs there are: no dev split")
    parser.add_argument("--fresh", action="store_true", help="train, dev and test drawn anew by each seed")
    parser.add_argument("--out", type=Path, metavar="CSV")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N")
    parser.add_argument("--only", choices=("without", "with"))
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON list")
    options = parser.parse_args()
    data, kept = load_features(options.features), _kept(options.out)
    kind = (
        f"{options.images} images{' in all' if options.in_all else ''}{', splits drawn anew' if options.fresh else ''}"
    )
    found: dict[str, list[float]] = {}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for contender in CONTENDERS if options.only is None else (options.only,):
            key = (options.features.stem, kind, contender, str(seed))
            if key not in kept:
                kept[key] = _run(data, options, seed, contender)
                _write(options.out, kept)
            for label, value in zip(("", ", uncorrected"), kept[key], strict=True):
                found.setdefault(contender + label, []).append(value)
            print(f"{' '.join(key)}: {kept[key][0]:.2f}", file=sys.stderr, flush=True)
    table = []
    subject = (
        f"mean test R@1, {options.features.stem}, {kind}, {options.unpaired_images} unpaired images and "
        f"{options.unpaired_texts} texts, {options.seeds} seeds"
    )
    for contender, values in found.items():
        mean, half = interval(values)
        table.append(single(subject, contender, mean, "%", note=f"± {half:.2f}", packages=["torch"]))
        print(f"{contender:24}{mean:7.2f} ± {half:.2f}", file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print_json(table)


def _run(data: FeatureSet, options: argparse.Namespace, seed: int, contender: str) -> tuple[float, float]:
    """Mean test R@1 as the run scores, and without hub correction."""
    with tempfile.TemporaryDirectory() as name:
        files = drawn(data, options, seed, Path(name))
        given: dict[str, Any] = {side: str(files["pool"]) for side in SIDES if contender == "with"}
        config = TrainConfig(features=str(files["pairs"]), seed=seed, out=str(Path(name) / "run"), **given)
        test = varalign.train(config, say=lambda line: None, progress=False).test
    as_scored, plain = (
        50 * (figures["i2t_recall@1"] + figures["t2i_recall@1"]) for figures in (test, test.get("uncorrected", test))
    )
    return as_scored, plain


def _kept(out: Path | None) -> Runs:
    if out is None or not out.is_file():
        return {}
    with out.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return {tuple(row[name] for name in FIELDS[:4]): (float(row["mean_r1"]), float(row["plain"])) for row in rows}


def _write(out: Path | None, kept: Runs) -> None:
    if out is None:
        return
    with out.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(FIELDS)
        writer.writerows([*key, f"{at_1:.3f}", f"{plain:.3f}"] for key, (at_1, plain) in kept.items())


if __name__ == "__main__":
    main()
