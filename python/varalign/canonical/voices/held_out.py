"""The loss of held-out pairs under a similarity, pooled over blocks of pairs at one logit scale.

A block is a batch: its images are scored against its texts, row i of both being a pair. Blocks of different folds of
a cross-validation come from different fits, whose embeddings cannot be compared with each other; their losses can.
Scores that come with those of a bank are corrected for hubs in losses and hits.

n pairs of a block, R images and R' texts of a bank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from varalign.canonical.hub_correction import TRAINED_SHARPNESS
from varalign.canonical.voices.voice_pairs import Pairs
from varalign.losses.pair_loss import mean_positive, pair_losses

BLOCK = 256  # images scored against each other, as in a run's batch
MOST_PAIRS = 2500  # more of them changed no choice
LARGEST_SCALE = 100.0


Embedded = tuple[Tensor, Tensor]
"""Unit vectors of images and of texts."""


@dataclass(frozen=True)
class Scores:
    """The similarities of a block's pairs, and of a bank of queries with them.

    Attributes:
        pairs: (n, n), row i and column i being a pair.
        positive: (n, n) bool, which texts belong to which images; None: those on the diagonal.
        of_texts: (R, n) of the bank's images with the block's texts; None without a bank.
        of_images: (R', n) of the bank's texts with the block's images.
        sharpness: τ of the correction / logit scale.
    """

    pairs: Tensor
    positive: Tensor | None = None
    of_texts: Tensor | None = None
    of_images: Tensor | None = None
    sharpness: float = TRAINED_SHARPNESS

    def bare(self) -> Scores:
        """The same without the bank."""
        return replace(self, of_texts=None, of_images=None)

    def priors(self, scale: float) -> tuple[Tensor, Tensor] | None:
        """(n,) of the images and of the texts, but for a constant of each; None without a bank."""
        if self.of_texts is None or self.of_images is None:
            return None
        tau = self.sharpness * scale
        return (tau * self.of_images).logsumexp(0) / tau, (tau * self.of_texts).logsumexp(0) / tau


@dataclass(frozen=True)
class Block:
    """Pairs that are scored against each other.

    Attributes:
        images, texts: (n,) int64 rows of `Pairs`.
        positive: (n, n) bool, which texts belong to which images; None: those on the diagonal.
    """

    images: Tensor
    texts: Tensor
    positive: Tensor | None

    def scores(
        self, images: Tensor, texts: Tensor, bank: Embedded | None = None, sharpness: float = TRAINED_SHARPNESS
    ) -> Scores:
        """Of the unit vectors of all images and texts, and of those of a bank's."""
        u, v = images[self.images], texts[self.texts]
        if bank is None:
            return Scores(u @ v.T, self.positive)
        return Scores(u @ v.T, self.positive, bank[0] @ v.T, bank[1] @ u.T, sharpness)


def blocks_of(pairs: Pairs, size: int = BLOCK) -> list[Block]:
    """The pairs in blocks of at most `size`, an image at most once in each: all first texts, all second ones and so on.

    At most `MOST_PAIRS` pairs are used, but each image with its first text. A last block of a single pair is left out.
    """
    if not len(pairs.owner):
        return []
    order = torch.argsort(pairs.owner, stable=True)
    owner = pairs.owner[order]
    starts = torch.searchsorted(owner, torch.arange(len(pairs.images), device=owner.device))
    which = torch.arange(len(owner), device=owner.device) - starts[owner]  # of the image's texts
    groups, same = pairs.groups(), pairs.same_texts()
    has = None
    if len(torch.unique(same)) < len(torch.unique(same * (int(groups.max()) + 1) + groups[pairs.owner])):
        has = torch.zeros(int(groups.max()) + 1, int(same.max()) + 1, dtype=torch.bool, device=owner.device)
        has[groups[pairs.owner], same] = True
    found, used = [], 0
    for round_ in range(int(which.max()) + 1 if len(which) else 0):
        texts = order[which == round_]
        if used and used + len(texts) > MOST_PAIRS:
            break
        used += len(texts)
        for part in texts.split(size):
            if len(part) > 1:
                images = pairs.owner[part]
                positive = None if has is None else has[groups[images]][:, same[part]]
                found.append(Block(images, part, positive))
    return found


def mixture(scores: Mapping[str, Sequence[Scores]], weights: Mapping[str, float]) -> list[Scores]:
    """Σ w_v times voice v's scores, of every block; weights of 0 are left out."""
    kept = [(weight, scores[name]) for name, weight in weights.items() if weight > 0]
    return [_mixed([(weight, blocks[place]) for weight, blocks in kept]) for place in range(len(kept[0][1]))]


def _mixed(parts: Sequence[tuple[float, Scores]]) -> Scores:
    def total(values: Iterable[Tensor | None]) -> Tensor | None:
        terms = [weight * value for (weight, _), value in zip(parts, values, strict=True) if value is not None]
        return torch.stack(terms).sum(0) if terms else None

    pairs = total(one.pairs for _, one in parts)
    assert pairs is not None
    return replace(
        parts[0][1],
        pairs=pairs,
        of_texts=total(one.of_texts for _, one in parts),
        of_images=total(one.of_images for _, one in parts),
    )


def best_scale(scored: Sequence[Scores], start: float = 20.0) -> float:
    """The logit scale from 1 to 100 at which the mean uncorrected loss is least, to 1 %, by Newton's method in log
    scale.

    Args:
        scored: of at least one block.
        start: where to begin.
    """
    count = sum(len(one.pairs) for one in scored)
    low, high, scale = 1.0, LARGEST_SCALE, start
    for _ in range(20):
        slope, curvature = _derivatives(scored, scale)
        slope, curvature = slope / count, curvature / count
        low, high = (scale, high) if slope < 0 else (low, scale)
        # of the loss by log scale: first x L', second x L' + x² L''
        bend = scale * slope + scale * scale * curvature
        step = -scale * slope / bend if bend > 0 else math.copysign(1.0, -slope)
        moved = scale * math.exp(max(-1.0, min(1.0, step)))
        moved = math.sqrt(low * high) if not low < moved < high else moved
        if abs(math.log(moved / scale)) < 0.01:
            return moved
        scale = moved
    return scale


def _derivatives(scored: Sequence[Scores], scale: float) -> tuple[float, float]:
    """First and second derivative by the scale of the summed loss."""
    first = second = torch.zeros((), dtype=torch.float64)
    for one in scored:
        s = one.pairs
        z = scale * s
        for dim in (0, 1):
            p = z.softmax(dim)
            mean = (p * s).sum(dim)
            first = first + (mean.sum() / 2).double().cpu()
            second = second + (((p * s * s).sum(dim) - mean * mean).sum() / 2).double().cpu()
        first = first - mean_positive(s, one.positive).sum().double().cpu()
    return float(first), float(second)


def losses_at(scored: Sequence[Scores], scale: float) -> Tensor:
    """(P,) losses of all pairs of the blocks, one after the other, each the mean of both directions."""
    return torch.cat([pair_losses(one.pairs, scale, one.positive, priors=one.priors(scale)) for one in scored])


def hits_at_1(scored: Sequence[Scores], scale: float) -> Tensor:
    """(P,) share of a pair's two queries, its image and its text, whose best candidate in the block is right."""
    return torch.cat([_hits(one, scale) for one in scored])


def _hits(one: Scores, scale: float) -> Tensor:
    s, priors = one.pairs, one.priors(scale)
    right = torch.eye(len(s), dtype=torch.bool, device=s.device) if one.positive is None else one.positive
    as_candidates = (s, s) if priors is None else (s - priors[0][:, None], s - priors[1])
    found = torch.zeros(len(s), device=s.device)
    for dim, scores in enumerate(as_candidates):
        wrong, best = (scores.masked_fill(mask, -torch.inf).amax(dim) for mask in (right, ~right))
        found += (best > wrong).float() / 2
    return found
