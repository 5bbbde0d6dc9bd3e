"""Computes each query's loss, statistics and backward terms from the sums of one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from varalign.kernels import query_fields as f


def negative_lse(sums: Tensor) -> Tensor:
    """(Q,) log-sum-exp of each query's negatives from its (QUERY_SUMS, Q) sums; -inf without any."""
    return sums[f.NEGATIVE_MAX] + sums[f.NEGATIVE_SUM].log()


def settle(
    sums: Tensor, scale: Tensor, variance: Tensor | None, ignored: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the sums of one pass into losses, statistics and the terms of the backward pass.

    With L- and L+ the log-sum-exps of negatives and positives, d = L- - L+ and c positives,

        LSE - mean z+  =  log(1 + e^d) + (L+ - max z+) + (max z+ - mean z+),

    where every summand is at least 0: nothing cancels, and at a loss of 1e-6 all digits are there. The plain difference
    LSE - z+ has an error of |z| eps, 1e-5 at a logit scale of 100.

    Args:
        sums: (QUERY_SUMS, Q) of all candidates.
        scale: (), the logit scale.
        variance: (Q,) of the similarities; None: NaN.
        ignored: for `duplicates="ignore"`, (2, Q): sums over the positives of log(1 + e^(L- - z)) and of its
        derivative.

    Returns:
        values (Q,), statistics (7, Q) in the order of `STATISTICS`, terms (QUERY_TERMS, Q).
    """
    count = sums[f.POSITIVE_COUNT]
    found = count > 0
    inverse = torch.where(found, 1 / count.clamp_min(1), torch.zeros_like(count))
    negatives = negative_lse(sums)
    positives = sums[f.POSITIVE_MAX] + sums[f.POSITIVE_SUM].log()
    difference = negatives - positives
    share = torch.sigmoid(difference)
    lse = torch.logaddexp(negatives, positives)
    positive_mean = sums[f.POSITIVE_TOTAL] * inverse

    if ignored is None:
        values = torch.logaddexp(difference, torch.zeros_like(difference))
        values = values + sums[f.POSITIVE_SUM].log() + (sums[f.POSITIVE_MAX] - positive_mean)
        terms = torch.stack([lse, lse, share, inverse])
    else:
        values = ignored[0] * inverse
        kept = ignored[1] * inverse
        # Without negatives L- is -inf and so is log(kept): the negatives' gradient is 0, not NaN.
        shift = torch.where(kept == 0, torch.full_like(kept, torch.inf), negatives - kept.log())
        terms = torch.stack([shift, negatives, kept, inverse])
    values = torch.where(found, values, torch.zeros_like(values))

    # A sum of exponentials is at least 1 (its own maximum) or exactly 0 (no such candidate), so the clamp changes
    # nothing.
    weighted = share * sums[f.NEGATIVE_WEIGHTED] / sums[f.NEGATIVE_SUM].clamp_min(1)
    weighted = weighted + torch.sigmoid(-difference) * sums[f.POSITIVE_WEIGHTED] / sums[f.POSITIVE_SUM].clamp_min(1)
    none = torch.full_like(count, -torch.inf)
    statistics = torch.stack(
        [
            lse,
            torch.where(found, positive_mean / scale, none),
            sums[f.POSITIVE_MAX] / scale,
            sums[f.NEGATIVE_MAX] / scale,
            sums[f.MINIMUM] / scale,
            weighted / scale,
            torch.full_like(count, torch.nan) if variance is None else variance,
        ]
    )
    return values, statistics, terms
