"""What hub correction does to search where the gallery is unlike the training set.

    python bench/other_gallery.py --features FILE --images 600 --seeds 10 --word dog --other FILE --other FILE
    python bench/other_gallery.py … --recipe     # the models of `varalign train`, not the closed form alone

The closed form of a draw of FILE's training images, with settings and logit scale chosen on FILE's dev, ranks three
kinds of galleries: FILE's test images; those of them of which most captions have `--word` (also for a model that was
trained without any such image); the test images of the other files, whose features come from the same encoders. The
queries are the gallery's own captions and images. The bank of the correction: the training pairs or dev, as
`--hub-correction train` and `dev`; or the gallery's own queries, as `gallery`, which a search for one query lacks. With
`--recipe` the correction is the run's own, where the run takes one.
Prints Recall@1 and @10 in per cent, means of both directions, with Student's 95 % interval over draws.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import varalign
from drawn import Part, corrected, drawn, part_of, recall
from rivals.closed_form import models
from torch import Tensor
from varalign.aligner.hub_bank import thinned_texts
from varalign.canonical.hub_correction import HubCorrection
from varalign.canonical.voices.voice_pairs import with_words
from varalign.data.features import FeatureSet, load_features, save_features
from varalign.options.config import TrainConfig
from varalign.study.inference import interval

Found = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Gallery:
    """Images and texts of a file, and the texts' words where the file has them."""

    part: Part
    captions: list[str] | None

    @staticmethod
    def of(file: FeatureSet, rows: np.ndarray) -> Gallery:
        """The gallery of these images."""
        found = file.candidates(rows).captions.tolist()
        return Gallery(part_of(file, rows), None if file.texts is None else [file.texts[row] for row in found])


def with_word(file: FeatureSet, word: str) -> np.ndarray:
    """(I,) bool: whether most of an image's captions have the word."""
    if file.texts is None:
        raise SystemExit("--word needs the texts beside the features file")
    has = np.array([bool(re.search(rf"\b{re.escape(word)}s?\b", text.lower())) for text in file.texts])
    counts = np.bincount(file.text_image_ids, minlength=len(file.split))
    found: np.ndarray = np.bincount(file.text_image_ids, has, len(file.split)) * 2 > counts
    return found


def measured(u: Tensor, v: Tensor, pairs: Tensor, corrections: Mapping[str, HubCorrection], scale: float) -> Found:
    """The recalls of a gallery without a correction, with each, and with that by its own queries."""
    own = HubCorrection.of(u, v, scale, source="gallery")
    s = u @ v.T
    found = {"none": recall((s, s), pairs)}
    for name, correction in {**corrections, "gallery (transductive)": own}.items():
        found[name] = recall(corrected(u, v, correction), pairs)
    return found


def trained(file: FeatureSet, images: int, seed: int, galleries: Mapping[str, Gallery]) -> dict[str, Found]:
    """The figures of each gallery for the run of one draw."""
    with tempfile.TemporaryDirectory() as folder:
        save_features(Path(folder) / "pairs.safetensors", file, dtype="float32")
        config = TrainConfig(features=f"{folder}/pairs.safetensors", dataset_size=images, seed=seed)
        config = dataclasses.replace(config, out=f"{folder}/run", keep=1)
        aligner = varalign.train(config, say=lambda _: None, progress=False).aligner
        model, correction = aligner.model.eval(), aligner.hub.correction
        corrections = {} if correction is None else {"as the run corrects": correction}
        found = {}
        for name, gallery in galleries.items():
            y = gallery.part.y
            if model.lexicon is not None and gallery.captions is not None:
                y = with_words(y, model.lexicon, gallery.captions)
            with torch.no_grad():
                u, v = model.project_images(gallery.part.x), model.project_texts(y)
            found[name] = measured(u, v, gallery.part.pairs, corrections, float(model.evaluation_scale))
    return found


def one_draw(file: FeatureSet, images: int, seed: int, galleries: Mapping[str, Gallery]) -> dict[str, Found]:
    """The figures of each gallery for the closed form of one draw."""
    draw = drawn(file, images, seed)
    model = next(models(draw))
    scale = model.logit_scale(draw)
    banks = {"train": draw.train, "dev": draw.dev}
    corrections = {
        name: HubCorrection.of(model.images(bank.x[:1000]), thinned_texts(model.texts(bank.y)), scale, source=name)
        for name, bank in banks.items()
    }
    parts = {name: gallery.part for name, gallery in galleries.items()}
    return {
        name: measured(model.images(part.x), model.texts(part.y), part.pairs, corrections, scale)
        for name, part in parts.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--features", type=Path, required=True, metavar="FILE")
    parser.add_argument("--images", type=int, default=600, metavar="N")
    parser.add_argument("--seeds", type=int, default=10, metavar="N")
    parser.add_argument("--word", help="a gallery of the test images that most captions say it of")
    parser.add_argument("--other", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--recipe", action="store_true", help="the models of `varalign train`")
    options = parser.parse_args()
    draw_of = trained if options.recipe else one_draw
    torch.set_num_threads(1)
    file = load_features(options.features)
    test = file.rows("test")
    own = {"its own test": Gallery.of(file, test)}
    others = {f"{path.parent.name}/{path.stem}": load_features(path) for path in options.other}
    own |= {f"{name} test": Gallery.of(other, other.rows("test")) for name, other in others.items()}
    without, unseen = file, dict[str, Gallery]()
    if options.word:
        has = with_word(file, options.word)
        own[f"test, {options.word} only"] = Gallery.of(file, test[has[test]])
        without = dataclasses.replace(file, split=np.where(has & (file.split < 2), -1, file.split).astype(np.int8))
        unseen = {f"test, {options.word} only, trained without": own[f"test, {options.word} only"]}
    draws = []
    for seed in range(options.seeds):
        found = draw_of(file, options.images, seed, own)
        draws.append(found | (draw_of(without, options.images, seed, unseen) if unseen else {}))
        print(f"seed {seed} done", file=sys.stderr)
    for gallery, found in draws[0].items():
        part = {**own, **unseen}[gallery].part
        print(f"{gallery}: {len(part.x):,} images, {len(part.y):,} texts")
        for name in [name for name in found if all(name in draw[gallery] for draw in draws)]:
            at_1, half = interval([draw[gallery][name]["mean_recall@1"] for draw in draws])
            gain, gain_half = interval(
                [draw[gallery][name]["mean_recall@1"] - draw[gallery]["none"]["mean_recall@1"] for draw in draws]
            )
            at_10 = statistics.mean(draw[gallery][name]["mean_recall@10"] for draw in draws)
            print(f"  {name:24}{at_1:6.2f} ± {half:.2f}   gain {gain:+.2f} ± {gain_half:.2f}   R@10 {at_10:5.1f}")


if __name__ == "__main__":
    main()
