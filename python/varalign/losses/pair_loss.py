"""The symmetric contrastive loss of pairs, row by row: for each pair, as a mean over batches, at its best logit scale.

Row i of the images and row i of the texts are a pair; every other row of the batch is a negative, unless ids say that
its text belongs to the image too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varalign.losses.contrastive import contrastive
from varalign.losses.relation import positive_pairs

Ids = tuple[Tensor, Tensor]
"""Ids of n images, (n,) or (n, K), and of their n texts, as `contrastive` takes them."""


def pair_losses(
    similarities: Tensor,
    scale: float,
    positive: Tensor | None = None,
    *,
    priors: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(..., n) losses of the pairs on the diagonals of (..., n, n) similarities, each the mean of both directions.

    positive: (..., n, n) which texts belong to which images; None: those on the diagonal.
    priors: (..., n) of the images and of the texts, which hub correction takes from their scores as candidates.
    """
    z = scale * similarities
    if priors is None:
        return (z.logsumexp(-2) + z.logsumexp(-1)) / 2 - mean_positive(z, positive)
    images, texts = scale * priors[0][..., :, None], scale * priors[1][..., None, :]
    wrong = ((z - images).logsumexp(-2) + (z - texts).logsumexp(-1)) / 2
    if positive is None:
        return wrong - mean_positive(z - (images + texts) / 2, None)
    right = ((z - texts) * positive).sum(-1) / positive.sum(-1) + ((z - images) * positive).sum(-2) / positive.sum(-2)
    return wrong - right / 2


def mean_positive(values: Tensor, positive: Tensor | None) -> Tensor:
    """(..., n) mean value of row i's positives and of column i's, and of these two the mean."""
    if positive is None:
        return values.diagonal(dim1=-2, dim2=-1)
    chosen = values * positive
    return (chosen.sum(-1) / positive.sum(-1) + chosen.sum(-2) / positive.sum(-2)) / 2


def batched_loss(
    image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: float, batch_size: int, ids: Ids | None = None
) -> float:
    """Mean loss over consecutive batches, the last incomplete one left out unless it is the only one.

    Computed as training does: exact where the loss is small, in memory linear in the batch size.

    Args:
        image_embeddings, text_embeddings: (n, D) unit vectors, n at least 1.
        ids: where texts belong to several images.
    """
    size = min(batch_size, len(image_embeddings))
    scale = torch.tensor(logit_scale, device=image_embeddings.device)
    losses = []
    for start in range(0, len(image_embeddings) - size + 1, size):
        part = slice(start, start + size)
        given = (None, None) if ids is None else (ids[0][part], ids[1][part])
        i2t, t2i, _, _ = contrastive(image_embeddings[part], text_embeddings[part], scale, *given)
        losses.append(float(i2t.mean() + t2i.mean()) / 2)
    return sum(losses) / len(losses)


def best_logit_scale(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    *,
    ids: Ids | None = None,
    batch_size: int = 256,
    high: float = 100.0,
) -> float:
    """The logit scale from 1 to `high` at which the loss of held-out pairs is least, to a relative 1e-6.

    It is the mean over batches of `batch_size` in the given order, because more candidates want a larger scale.

    Args:
        image_embeddings, text_embeddings: (n, D) unit vectors.
        ids: where texts belong to several images.
        batch_size: pairs a batch, as in training; the last incomplete batch counts unless it is a single pair.

    Raises:
        ValueError: for fewer than two pairs, shapes that differ, or a NaN or infinity.
    """
    return _best_scale(_blocks(image_embeddings.double(), text_embeddings.double(), ids, batch_size), high, 1e-6)


def least_loss(
    image_embeddings: Tensor, text_embeddings: Tensor, *, ids: Ids | None = None, batch_size: int = 256
) -> float:
    """Mean loss at the logit scale that suits the pairs best, found to 1 %; arguments as in `best_logit_scale`."""
    blocks = _blocks(image_embeddings.float(), text_embeddings.float(), ids, batch_size)
    scale = _best_scale(blocks, 100.0, 1e-2)
    total = sum(float(pair_losses(block, scale, positive).sum()) for block, positive in blocks)
    return total / sum(len(block) for block, _ in blocks)


_Block = tuple[Tensor, Tensor | None]


def _blocks(images: Tensor, texts: Tensor, ids: Ids | None, batch_size: int) -> list[_Block]:
    """(n, n) similarities and positives of each batch; a last batch of a single pair is left out."""
    count = len(images)
    if images.shape != texts.shape or count < 2 or batch_size < 2:
        raise ValueError(
            "wanted two or more pairs, row by row, in batches of two or more, got "
            f"{tuple(images.shape)} and {tuple(texts.shape)} in batches of {batch_size}"
        )
    parts = [slice(start, start + batch_size) for start in range(0, count - 1, batch_size)]
    blocks = [
        (images[part] @ texts[part].T, None if ids is None else positive_pairs(ids[0][part], ids[1][part]))
        for part in parts
    ]
    if not all(bool(block.isfinite().all()) for block, _ in blocks):
        raise ValueError("the embeddings hold NaN or infinity: no logit scale fits them")
    return blocks


def _best_scale(blocks: list[_Block], high: float, tolerance: float) -> float:
    """The minimum by bisection on the sign of the derivative: the loss is convex in the scale."""
    low = 1.0
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _slope(blocks, middle) < 0 else (low, middle)
        if high / low < 1 + tolerance:
            break
    return math.sqrt(low * high)


def _slope(blocks: list[_Block], scale: float) -> float:
    """Derivative by the scale: expected similarity under the softmax less the pair's own, summed over directions."""
    total = 0.0
    for s, positive in blocks:
        z = scale * s
        expected = (z.softmax(1) * s).sum() + (z.softmax(0) * s).sum()
        total += float(expected - 2 * mean_positive(s, positive).sum())
    return total
