"""What hub correction does to search where the gallery is unlike the training set.

    python bench/other_gallery.py --features FILE --images 600 --seeds 10 --word dog --other FILE --other FILE

The closed form of a draw of FILE's training images, with settings and logit scale chosen on FILE's dev, ranks three
kinds of galleries: FILE's test images; those of them of which most captions have `--word` (also for a model that was
trained without any such image); the test images of the other files, whose features come from the same encoders. The
queries are the gallery's own captions and images. The bank of the correction: the training pairs or dev, as
`--hub-correction train` and `dev`; or the gallery's own queries, as `gallery`, which a search for one query lacks.
Prints Recall@1 and @10 in per cent, means of both directions, with Student's 95 % interval over draws.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from drawn import Part, corrected, drawn, part_of, recall
from rivals import Model
from rivals.closed_form import models
from varalign.aligner.hub_bank import thinned_texts
from varalign.canonical.hub_correction import HubCorrection
from varalign.data.features import FeatureSet, load_features
from varalign.study.inference import interval

Found = dict[str, dict[str, float]]


def with_word(file: FeatureSet, word: str) -> np.ndarray:
    """(I,) bool: whether most of an image's captions have the word."""
    if file.texts is None:
        raise SystemExit("--word needs the texts beside the features file")
    has = np.array([bool(re.search(rf"\b{re.escape(word)}s?\b", text.lower())) for text in file.texts])
    counts = np.bincount(file.text_image_ids, minlength=len(file.split))
    found: np.ndarray = np.bincount(file.text_image_ids, has, len(file.split)) * 2 > counts
    return found


def measured(model: Model, gallery: Part, corrections: dict[str, HubCorrection], scale: float) -> Found:
    """The recalls of a gallery without a correction, with each, and with that by its own queries."""
    u, v = model.images(gallery.x), model.texts(gallery.y)
    own = HubCorrection.of(u, v, scale, source="gallery")
    s = u @ v.T
    found = {"none": recall((s, s), gallery.pairs)}
    for name, correction in {**corrections, "gallery (transductive)": own}.items():
        found[name] = recall(corrected(u, v, correction), gallery.pairs)
    return found


def one_draw(file: FeatureSet, images: int, seed: int, galleries: dict[str, Part]) -> dict[str, Found]:
    """The figures of each gallery for the model of one draw."""
    draw = drawn(file, images, seed)
    model = next(models(draw))
    scale = model.logit_scale(draw)
    banks = {"train": draw.train, "dev": draw.dev}
    corrections = {
        name: HubCorrection.of(model.images(bank.x[:1000]), thinned_texts(model.texts(bank.y)), scale, source=name)
        for name, bank in banks.items()
    }
    return {name: measured(model, gallery, corrections, scale) for name, gallery in galleries.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--features", type=Path, required=True, metavar="FILE")
    parser.add_argument("--images", type=int, default=600, metavar="N")
    parser.add_argument("--seeds", type=int, default=10, metavar="N")
    parser.add_argument("--word", help="a gallery of the test images that most captions say it of")
    parser.add_argument("--other", type=Path, action="append", default=[], metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = load_features(options.features)
    test = file.rows("test")
    own = {"its own test": part_of(file, test)}
    others = {path.stem: load_features(path) for path in options.other}
    own |= {f"{name} test": part_of(other, other.rows("test")) for name, other in others.items()}
    without, unseen = file, dict[str, Part]()
    if options.word:
        has = with_word(file, options.word)
        own[f"test, {options.word} only"] = part_of(file, test[has[test]])
        without = dataclasses.replace(file, split=np.where(has & (file.split < 2), -1, file.split).astype(np.int8))
        unseen = {f"test, {options.word} only, trained without": own[f"test, {options.word} only"]}
    draws = []
    for seed in range(options.seeds):
        found = one_draw(file, options.images, seed, own)
        draws.append(found | (one_draw(without, options.images, seed, unseen) if unseen else {}))
        print(f"seed {seed} done", file=sys.stderr)
    for gallery, found in draws[0].items():
        part = {**own, **unseen}[gallery]
        print(f"{gallery}: {len(part.x):,} images, {len(part.y):,} texts")
        for name in found:
            at_1, half = interval([draw[gallery][name]["mean_recall@1"] for draw in draws])
            gain, gain_half = interval(
                [draw[gallery][name]["mean_recall@1"] - draw[gallery]["none"]["mean_recall@1"] for draw in draws]
            )
            at_10 = statistics.mean(draw[gallery][name]["mean_recall@10"] for draw in draws)
            print(f"  {name:24}{at_1:6.2f} ± {half:.2f}   gain {gain:+.2f} ± {gain_half:.2f}   R@10 {at_10:5.1f}")


if __name__ == "__main__":
    main()
