"""What unpaired images and texts add to few pairs: `varalign train` without and with self-training.

    python bench/unpaired.py --features FILE --images 600 --seeds 20
    python bench/unpaired.py --features FILE --images 60 --seeds 20 --in-all    # dev is a tenth of these

N training images are drawn by seed; of the training images left, some give their images and others their captions, as
features without any pairs. With `--in-all` a tenth of the N images is the dev split, else the file's own dev split
chooses. Prints test R@1 in per cent, the mean of both directions, its mean over the seeds and Student's 95 % interval.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import varalign
from harness import print_json, single
from safetensors.numpy import save_file
from varalign.data.features import FeatureSet, load_features, save_features, write_strings
from varalign.options.config import TrainConfig
from varalign.study.inference import interval


def drawn(data: FeatureSet, options: argparse.Namespace, seed: int, folder: Path) -> dict[str, Path]:
    """The files of one draw: the pairs, and the unpaired images and texts of other training images."""
    limited = data.limited(options.images, seed)
    split = limited.split.copy()
    if options.in_all:
        split[split == 1] = -1
        rows = np.random.default_rng(seed).permutation(limited.rows("train"))
        split[rows[: len(rows) // 10]] = 1
    rest = np.random.default_rng(1000 + seed).permutation(np.setdiff1d(data.rows("train"), limited.rows("train")))
    images, others = rest[: options.unpaired_images], rest[options.unpaired_images :]
    captions = data.caption_rows(others)[: options.unpaired_texts]
    pairs, pool = folder / f"pairs-{seed}.safetensors", folder / f"pool-{seed}.safetensors"
    # in no split: what is unpaired is not in the file of the pairs either
    used = np.flatnonzero(split >= 0)
    save_features(pairs, _part(dataclasses.replace(limited, split=split), used), dtype="float32")
    save_file({"image_features": data.image_features[images], "text_features": data.text_features[captions]}, str(pool))
    if data.texts is not None:
        write_strings(pool.with_name(f"{pool.stem}.texts.jsonl"), [data.texts[row] for row in captions.tolist()])
    return {"pairs": pairs, "pool": pool}


def _part(data: FeatureSet, images: np.ndarray) -> FeatureSet:
    """The given images with their captions alone."""
    captions = np.sort(data.caption_rows(images))
    place = np.full(len(data.split), -1)
    place[images] = np.arange(len(images))
    return dataclasses.replace(
        data,
        image_features=data.image_features[images],
        text_features=data.text_features[captions],
        text_image_ids=place[data.text_image_ids[captions]],
        split=data.split[images],
        image_ids=data.image_ids[images],
        image_names=None if data.image_names is None else [data.image_names[row] for row in images.tolist()],
        texts=None if data.texts is None else [data.texts[row] for row in captions.tolist()],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--images", type=int, default=600, metavar="N")
    parser.add_argument("--unpaired-images", type=int, default=1700, metavar="N")
    parser.add_argument("--unpaired-texts", type=int, default=5000, metavar="N")
    parser.add_argument("--in-all", action="store_true", help="the N images are all pairs there are, dev included")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N")
    parser.add_argument("--only", choices=("without", "with"))
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON list")
    options = parser.parse_args()
    data = load_features(options.features)
    found: dict[str, list[float]] = {}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        with tempfile.TemporaryDirectory() as name:
            files = drawn(data, options, seed, Path(name))
            unpaired = {"unpaired_images": str(files["pool"]), "unpaired_texts": str(files["pool"])}
            contenders: dict[str, dict[str, Any]] = {"without": {}, "with": unpaired}
            for contender, given in contenders.items():
                if options.only in (None, contender):
                    out = str(Path(name) / contender)
                    config = TrainConfig(features=str(files["pairs"]), seed=seed, out=out, **given)
                    test = varalign.train(config, say=lambda line: None, progress=False).test
                    for label, figures in (("", test), (", uncorrected", test.get("uncorrected", test))):
                        value = 50 * (figures["i2t_recall@1"] + figures["t2i_recall@1"])
                        found.setdefault(contender + label, []).append(value)
                        print(f"seed {seed}  {contender + label:24}{value:7.2f}", file=sys.stderr, flush=True)
    table = []
    kind = f"{options.images} images{' in all' if options.in_all else ''}"
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


if __name__ == "__main__":
    main()
