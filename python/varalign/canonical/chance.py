"""Whether held-out losses are lower beyond chance: the rule by which a voice, or a round of self-training, is taken."""

from __future__ import annotations

import math

from torch import Tensor

STANDARD_ERRORS = 2.0


def clearly_lower(losses: Tensor, others: Tensor) -> bool:
    """Whether the mean of `losses` lies more than two standard errors of the paired differences below that of `others`.

    Args:
        losses, others: (n,) of the same held-out items, which are independent of each other: images, not captions.
            Never true of fewer than two.
    """
    if len(losses) < 2:
        return False
    gain = (others - losses).double()
    return float(gain.mean()) > STANDARD_ERRORS * float(gain.std()) / math.sqrt(len(gain))
