"""Hard negatives: each negative's weight in the denominator grows with its similarity."""

from __future__ import annotations

import torch
from torch import Tensor

from varalign.losses.objective import Batch, Objective, Values, both, masked_lse, positive_mean


class HardNegatives(Objective):
    """log(sum of positives e^z + sum of negatives w e^z) - mean positive, w = n e^(βz) / sum of negatives e^(βz).

    Args:
        strength: β, 0 (all alike: the plain loss) or more.

    Source: Robinson et al. 2021; for images and texts Radenovic et al. 2023 (HN-NCE).
    """

    strength_range = (0.0, 10.0)

    def __init__(self, strength: float = 0.25) -> None:
        super().__init__()
        self.beta = strength

    def forward(self, batch: Batch) -> Values:
        return both(lambda z, positive: hard_negatives(z, positive, self.beta), batch)


def hard_negatives(logits: Tensor, positive: Tensor, beta: float) -> Tensor:
    """(Q,) values of logits (Q, C) and positives (Q, C)."""
    negative = ~positive
    count = negative.sum(1).clamp_min(1).to(logits.dtype)
    # n * sum e^((1+β)z) / sum e^(βz), in logs.
    hard = count.log() + masked_lse((1 + beta) * logits, negative) - masked_lse(beta * logits, negative)
    hard = hard.masked_fill(~negative.any(1), -1e30)
    whole = torch.logaddexp(masked_lse(logits, positive), hard)
    return whole - positive_mean(logits, positive)


LOSS = HardNegatives
