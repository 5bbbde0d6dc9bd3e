"""What hub correction does to the closed form: none, either bank in either form, and the rule that chooses on dev.

    python bench/hub_correction.py --features FILE --images 600 --seeds 20
    python bench/hub_correction.py --features FILE                            # all training images, once

Prints test mean R@1 in percent, its mean over the seeds with a 95 % interval (t), and how often the rule takes it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from harness import Row, print_json, single
from scipy.stats import t as student
from varalign.aligner.hub_bank import thinned_texts
from varalign.canonical import Grid, RunningCovariance, choose_settings, negative_loss
from varalign.canonical.hub_choice import HeldOut, judge, judge_by_halves
from varalign.canonical.hub_correction import FORMS, HubCorrection, HubForm, corrected_ranks
from varalign.canonical.maps import Whitening
from varalign.data.features import FeatureSet, load_features
from varalign.evaluation.retrieval import ranks, recalls
from varalign.inputs.pair_features import thinned
from varalign.losses.pair_loss import best_logit_scale

BATCH = 256


def one_draw(data: FeatureSet) -> dict[str, float]:
    """Test mean R@1 (a fraction) of each contender on one draw of training images, and whether the rule takes any."""
    x, y = torch.from_numpy(data.image_features), torch.from_numpy(data.text_features)
    pairs = torch.from_numpy(data.caption_rows(data.rows("train")))
    owner = torch.from_numpy(data.text_image_ids)[pairs]
    covariance = RunningCovariance(x.shape[1], y.shape[1])
    covariance.update(x[owner], y[pairs])
    whitening = Whitening(covariance)
    dev = data.candidates(data.rows("dev"))
    held_out = x[torch.from_numpy(dev.rows)], y[torch.from_numpy(dev.captions)], torch.from_numpy(dev.owner)
    maps = choose_settings(whitening, *held_out, grid=Grid(), metric=negative_loss)[0].solved(whitening)

    def embedded(rows: np.ndarray) -> HeldOut:
        found = data.candidates(rows)
        u = maps.embed_images(x[torch.from_numpy(found.rows)])
        return HeldOut(u, maps.embed_texts(y[torch.from_numpy(found.captions)]), torch.from_numpy(found.pairs))

    parts = {split: embedded(thinned(data.rows(split))) for split in ("train", "dev")}
    parts["test"] = embedded(data.rows("test"))
    first = torch.from_numpy(dev.first)
    scale = best_logit_scale(
        maps.embed_images(held_out[0][first[:, 0]]), maps.embed_texts(held_out[1][first[:, 1]]), batch_size=BATCH
    )

    def correction(bank: HeldOut, source: str, form: HubForm) -> HubCorrection:
        return HubCorrection.of(bank.images, thinned_texts(bank.texts), scale, source=source, form=form)

    def reached(found: HubCorrection | None) -> float:
        test = parts["test"]
        given = (test.images, test.texts, test.pairs)
        figures = recalls(*(ranks(*given) if found is None else corrected_ranks(*given, found)))
        return (figures["i2t_recall@1"] + figures["t2i_recall@1"]) / 2

    result = {"none": reached(None)}
    for form in FORMS:
        for source in ("train", "dev"):
            result[f"{form} of {source}"] = reached(correction(parts[source], source, form))
        if len(data.rows("train")) < len(data.rows("dev")):
            gain = judge_by_halves(parts["dev"], lambda half, form=form: correction(half, "dev", form), scale)
            chosen = f"{form} of dev"
        else:
            gain = judge(parts["dev"], correction(parts["train"], "train", form), scale)
            chosen = f"{form} of train"
        result[f"{form}, the rule"] = result[chosen if gain.taken else "none"]
        result[f"{form}, taken"] = float(gain.taken)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--features", type=Path, required=True, metavar="FILE")
    parser.add_argument("--images", type=int, metavar="N")
    parser.add_argument("--seeds", type=int, default=1, metavar="N")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = load_features(options.features)
    draws = []
    for seed in range(options.seeds):
        draws.append(one_draw(file.limited(options.images, seed)))
        print(f"seed {seed} done", file=sys.stderr)
    size = f"{options.images or len(file.rows('train')):,} images, {options.seeds} seeds"
    rows: list[Row] = []
    for name in draws[0]:
        values = [100 * draw[name] for draw in draws]
        half = 0.0
        if len(values) > 1:
            half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
        subject = f"test mean R@1, {options.features.stem}, {size}"
        rows.append(single(subject, name, statistics.mean(values), "%", packages=["torch", "numpy"]))
        if not options.json:
            print(f"{subject}: {name:22} {statistics.mean(values):6.2f} ± {half:.2f}")
    if options.json:
        print_json(rows)


if __name__ == "__main__":
    main()
