"""Decoupled contrastive learning: the positive leaves the denominator, and small batches lose less gradient."""

from __future__ import annotations

from torch import Tensor

from varalign.losses.objective import Batch, Objective, Values, both, masked_lse, positive_mean


class DCL(Objective):
    """LSE over the negatives minus the mean positive; 0 for a query without negatives.

    Source: Yeh et al. 2022.
    """

    def forward(self, batch: Batch) -> Values:
        return both(dcl, batch)


def dcl(logits: Tensor, positive: Tensor) -> Tensor:
    """(Q,) values of logits (Q, C) and positives (Q, C)."""
    values = masked_lse(logits, ~positive) - positive_mean(logits, positive)
    return values.masked_fill(positive.all(1), 0.0)


LOSS = DCL
