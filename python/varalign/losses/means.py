"""Mean loss of each direction over its queries, and the means of the statistics that loss schedules use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from varalign.schedules.direction_stats import DirectionStats


def direction_losses(
    values: Tensor,
    table: Tensor,
    scale: Tensor,
    m: int,
    image_weights: Tensor | None,
    text_weights: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor | None]:
    """Mean loss of either direction, (2,), over the queries with a positive, and means of their statistics.

    Args:
        values: (M + N,) losses, the images' first, with a gradient.
        table: (7, M + N) statistics.
        scale: () logit scale.
        m: M.
        image_weights: (M,) how much each counts, or None; text_weights: (N,).
        backend: of the losses; "triton" takes one launch forward and one backward.

    Returns:
        losses (2,); with "triton" also means (3, 2) for the `means` of both `DirectionStats`, else None, and
        `DirectionStats` computes them when they are read.
    """
    n = values.shape[0] - m
    # torch.compile fuses the plain operations with those around them.
    if backend == "triton" and not torch.compiler.is_compiling():
        from varalign.kernels.weighting import DirectionMeans

        pairs = ((image_weights, m), (text_weights, n))
        weights = [None if w is None else check_weights(w, (q,), values).contiguous() for w, q in pairs]
        return DirectionMeans.apply(values, table, scale, m, *weights)  # type: ignore[no-any-return]
    nll_i2t, nll_t2i = values.split([m, n])
    stats = [DirectionStats.from_stacked(part, 0, scale) for part in (table[:, :m], table[:, m:])]
    loss_i2t = mean_over_queries(nll_i2t, stats[0], image_weights)
    loss_t2i = mean_over_queries(nll_t2i, stats[1], text_weights)
    return torch.stack([loss_i2t, loss_t2i]), None


def mean_over_queries(values: Tensor, stats: DirectionStats, weights: Tensor | None = None) -> Tensor:
    """Mean of (queries,) values over the queries that have a positive: () in the values' dtype, 0 where none has.

    Args:
        values: (queries,), for example the losses of one direction; 0 at queries without positives.
        stats: that direction's statistics.
        weights: (queries,) at least 0, how much each query counts in the mean; 0 where they add up to 0. None: all 1.
    """
    total, count = query_totals(values, stats, weights)
    return total / count


def query_totals(values: Tensor, stats: DirectionStats, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """() weighted sum of the values, and () what to divide it by: the weights of the queries with a positive."""
    if weights is None:
        return values.sum(), stats.has_positive.sum().clamp_min(1)
    weights = check_weights(weights, values.shape, values)
    count = (weights * stats.has_positive).sum()
    return (values * weights).sum(), torch.where(count > 0, count, torch.ones_like(count))


def check_weights(weights: Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
    """The weights without gradient, in the values' dtype and on their device; an error where they are not one each."""
    if tuple(weights.shape) != tuple(shape):
        raise ValueError(f"wanted one weight a query, {tuple(shape)}, not {tuple(weights.shape)}")
    return weights.detach().to(like.device, like.dtype)
