"""Generalised cross-entropy: between cross-entropy and mean absolute error, with small gradients for wrong pairs."""

from __future__ import annotations

from varalign.losses.objective import Batch, Objective, Values, both, infonce


class GeneralisedCrossEntropy(Objective):
    """(1 - p^q) / q with p the probability of the positive: a pair of low probability has almost no gradient.

    Args:
        strength: q, above 0 (towards 0: the plain loss) to 1 (mean absolute error).

    Source: Zhang and Sabuncu 2018.
    """

    strength_range = (0.0, 1.0)
    lowest_excluded = True

    def __init__(self, strength: float = 0.7) -> None:
        super().__init__()
        self.q = strength

    def forward(self, batch: Batch) -> Values:
        # -expm1 keeps digits where p is near 1.
        return both(lambda z, positive: -(-self.q * infonce(z, positive)).expm1() / self.q, batch)


LOSS = GeneralisedCrossEntropy
