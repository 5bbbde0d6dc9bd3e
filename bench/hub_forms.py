"""How much of hub correction a small state keeps: forms of the bank, at every size, over τ.

    python bench/hub_forms.py --features FILE --images 600 --seeds 3 --out RESULTS.json

The gallery and dev are drawn within the training images: the splits of the file take no part, so that a form and its τ
may be chosen by this. The bank is the training pairs' (at most 1,000 images and 5,000 captions), embedded by the closed
form whose settings dev chose. Figures are the gallery's mean R@1 in per cent. `state` counts the numbers that a
direction keeps, k the dimensions:

    bank                 every query: exp averaged over all of them
    variance             mean and covariance: k + k (k + 1) / 2
    deviation            the same state, b = g·μ + c √(gᵀΣg): what a maximum over normal scores grows like
    calibrated variance  the same state, b = g·μ + c (τ/2) gᵀΣg
    random N             N queries drawn from the bank
    centroids N          k-means of the bank with the shares of its clusters: N (k + 1)
    balls N              the same with each cluster's variance a dimension: N (k + 2)
    normals N            the same with one covariance within clusters for all of them: N (k + 1) + k (k + 1) / 2
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from drawn import Draw, drawn, recall
from torch import Tensor
from varalign.aligner.hub_bank import thinned_texts
from varalign.canonical import Grid, RunningCovariance, choose_settings, negative_loss
from varalign.canonical.maps import Whitening
from varalign.data.features import load_features
from varalign.losses.pair_loss import best_logit_scale
from varalign.study.inference import interval

SHARPNESS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)  # τ / β
SIZES = (8, 32, 128, 512)
Prior = tuple[str, int, Tensor]  # name, state, b of the gallery


def clusters(queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(R,) clusters by k-means, and their (count', k) means."""
    from sklearn.cluster import KMeans

    found = KMeans(min(count, len(queries)), n_init=1, max_iter=50, random_state=0).fit(queries.numpy())
    return torch.from_numpy(found.labels_).long(), torch.from_numpy(found.cluster_centers_).float()


class Forms:
    """The states of one direction's bank (R, k), made once; `priors` gives every form's b at a τ."""

    def __init__(self, queries: Tensor) -> None:
        self.queries = queries
        self.mean = queries.mean(0)
        centred = queries - self.mean
        self.covariance = centred.T @ centred / len(queries)
        order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(0))
        self.random = {size: queries[order[:size]] for size in SIZES}
        self.clusters = {size: self._clusters(size) for size in SIZES}

    def _clusters(self, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        labels, means = clusters(self.queries, size)
        share = torch.bincount(labels, minlength=len(means)) / len(labels)
        rest = self.queries - means[labels]
        spread = torch.zeros(len(means)).index_add_(0, labels, rest.square().sum(1))
        variance = spread / (share * len(labels)).clamp_min(1) / rest.shape[1]
        return means, share.clamp_min(1e-12).log(), variance, rest.T @ rest / len(rest)

    def priors(self, gallery: Tensor, tau: float) -> Iterator[Prior]:
        """Every form at one τ."""
        k = gallery.shape[1]
        square, wide = k * (k + 1) // 2, len(self.queries) * k
        scores = gallery @ self.queries.T
        yield "bank", wide, (tau * scores).logsumexp(1) / tau
        centre = gallery @ self.mean
        variance = ((gallery @ self.covariance) * gallery).sum(1)
        yield "variance", square + k, centre + tau / 2 * variance
        for factor in (1.0, 2.0, 3.0):
            yield f"deviation, c = {factor:g}", square + k, centre + factor * variance.clamp_min(0).sqrt()
        for factor in (0.5, 2.0):
            yield f"calibrated variance, c = {factor:g}", square + k, centre + factor * tau / 2 * variance
        for size, queries in self.random.items():
            yield f"random {size}", len(queries) * k, (tau * (gallery @ queries.T)).logsumexp(1) / tau
        for size, (means, share, balls, within) in self.clusters.items():
            near = tau * (gallery @ means.T) + share
            yield f"centroids {size}", len(means) * (k + 1), near.logsumexp(1) / tau
            yield f"balls {size}", len(means) * (k + 2), (near + tau * tau / 2 * balls).logsumexp(1) / tau
            inside = ((gallery @ within) * gallery).sum(1)
            yield f"normals {size}", len(means) * (k + 1) + square, near.logsumexp(1) / tau + tau / 2 * inside


def figures_of(draw: Draw) -> dict[str, tuple[int, float]]:
    """State and mean R@1 of each form and τ on one draw."""
    covariance = RunningCovariance(draw.pair_x.shape[1], draw.pair_y.shape[1])
    covariance.update(draw.pair_x, draw.pair_y)
    whitening = Whitening(covariance)
    dev = draw.dev
    maps = choose_settings(whitening, dev.x, dev.y, dev.owner, grid=Grid(), metric=negative_loss)[0].solved(whitening)
    scale = best_logit_scale(maps.embed_images(dev.x[dev.first[:, 0]]), maps.embed_texts(dev.y[dev.first[:, 1]]))
    u, v = maps.embed_images(draw.test.x), maps.embed_texts(draw.test.y)
    of_images = Forms(maps.embed_images(draw.train.x[:1000]))
    of_texts = Forms(thinned_texts(maps.embed_texts(draw.train.y)))
    s = u @ v.T
    none = s.clone()
    found = {"none": (0, recall((none, none), draw.test.pairs)["mean_recall@1"])}
    for sharpness in SHARPNESS:
        tau = sharpness * scale
        states = of_images.priors(v, tau), of_texts.priors(u, tau)
        for (name, state, of_v), (_, other, of_u) in zip(*states, strict=True):
            reached = recall((s - of_v, s - of_u[:, None]), draw.test.pairs)["mean_recall@1"]
            found[f"{name} @ {sharpness:g}"] = (max(state, other), reached)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--features", type=Path, required=True, metavar="FILE")
    parser.add_argument("--images", type=int, default=600, metavar="N")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--out", type=Path, help="JSON that keeps the figures of every file and size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = load_features(options.features)
    draws = []
    for seed in range(options.seeds):
        draws.append(figures_of(drawn(file, options.images, 1000 + seed, within_training=True)))
        print(f"seed {seed} done", file=sys.stderr)
    names = [name for name in draws[0] if all(name in draw for draw in draws)]
    rows = []
    for name in names:
        mean, half = interval([draw[name][1] for draw in draws])
        form, _, sharpness = name.partition(" @ ")
        state = draws[0][name][0]
        rows.append({"form": form, "tau": float(sharpness or 0), "state": state, "recall": mean, "half": half})
    for form in dict.fromkeys(row["form"] for row in rows):
        at = {row["tau"]: row["recall"] for row in rows if row["form"] == form}
        state = max(row["state"] for row in rows if row["form"] == form)
        print(f"{form:28} {state:9,}  " + "  ".join(f"{tau:g}: {value:5.2f}" for tau, value in at.items()))
    if options.out:
        kept = json.loads(options.out.read_text()) if options.out.is_file() else {}
        kept[f"{options.features.stem}, {options.images} images, {options.seeds} draws"] = rows
        options.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
