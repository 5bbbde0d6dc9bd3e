"""Homoscedastic uncertainty (Kendall, Gal and Cipolla 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varalign.schedules.loss_schedule import Weighting, check


class Uncertainty(Weighting):
    """Minimises e^(-s) L + s over a log variance s of each direction; weights proportional to e^(-s).

    Args:
        rate: step size of s.

    Source: Kendall, Gal and Cipolla 2018.
    """

    log_variance: Tensor

    def __init__(self, rate: float = 0.025) -> None:
        super().__init__()
        check("rate", rate, 0 <= rate < math.inf, "0 or more")
        self.rate = rate
        self.register_buffer("log_variance", torch.zeros(2))

    def weigh(self, losses: Tensor) -> Tensor:
        weights = (-self.log_variance).softmax(0)
        self.log_variance -= self.rate * (1 - (-self.log_variance).exp() * losses)
        return weights


SCHEDULE = Uncertainty
