"""The loss of held-out pairs under a similarity, pooled over blocks of pairs at one logit scale.

A block is a batch: its images are scored against its texts, row i of both being a pair. Blocks of different folds of
a cross-validation come from different fits, whose embeddings cannot be compared with each other; their losses can.

n pairs of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varalign.canonical.voices.voice_pairs import Pairs
from varalign.losses.pair_loss import mean_positive, pair_losses

BLOCK = 256  # images scored against each other, as in a run's batch
MOST_PAIRS = 2500  # more of them changed no choice
LARGEST_SCALE = 100.0


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

    def similarities(self, image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        """(n, n) of the unit vectors of all images and texts."""
        return image_embeddings[self.images] @ text_embeddings[self.texts].T


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


Scored = Sequence[tuple[Tensor, Tensor | None]]
"""(n, n) similarities of each block and its positives."""


def best_scale(scored: Scored, start: float = 20.0) -> float:
    """The logit scale from 1 to 100 at which the mean loss is least, to about 1 %: Newton's method in log scale.

    Args:
        scored: of at least one block.
        start: where to begin.
    """
    count = sum(len(s) for s, _ in scored)
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


def _derivatives(scored: Scored, scale: float) -> tuple[float, float]:
    """First and second derivative by the scale of the summed loss."""
    first = second = torch.zeros((), dtype=torch.float64)
    for s, positive in scored:
        z = scale * s
        for dim in (0, 1):
            p = z.softmax(dim)
            mean = (p * s).sum(dim)
            first = first + (mean.sum() / 2).double().cpu()
            second = second + (((p * s * s).sum(dim) - mean * mean).sum() / 2).double().cpu()
        first = first - mean_positive(s, positive).sum().double().cpu()
    return float(first), float(second)


def losses_at(scored: Scored, scale: float) -> Tensor:
    """(P,) losses of all pairs of the blocks, one after the other, each the mean of both directions."""
    return torch.cat([pair_losses(s, scale, positive) for s, positive in scored])


def hits_at_1(scored: Scored) -> Tensor:
    """(P,) share of a pair's two queries, its image and its text, whose best candidate in the block is right."""
    return torch.cat(list(_hits(scored)))


def _hits(scored: Scored) -> Iterator[Tensor]:
    for s, positive in scored:
        right = torch.eye(len(s), dtype=torch.bool, device=s.device) if positive is None else positive
        wrong = s.masked_fill(right, -torch.inf)
        best = s.masked_fill(~right, -torch.inf)
        yield sum((best.amax(dim) > wrong.amax(dim)).float() for dim in (0, 1)) / 2  # type: ignore[misc]
