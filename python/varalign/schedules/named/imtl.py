"""The loss balance of impartial multi-task learning (IMTL-L; Liu et al. 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varalign.schedules.loss_schedule import Weighting, check


class IMTL(Weighting):
    """The loss balance of impartial multi-task learning (IMTL-L): minimises e^s L - s; weights proportional to e^s.

    Args:
        rate: step size of s.

    Source: Liu et al. 2021; `IMTLG` is the gradient balance of the same paper.
    """

    log_scale: Tensor

    def __init__(self, rate: float = 0.025) -> None:
        super().__init__()
        check("rate", rate, 0 <= rate < math.inf, "0 or more")
        self.rate = rate
        self.register_buffer("log_scale", torch.zeros(2))

    def weigh(self, losses: Tensor) -> Tensor:
        weights = self.log_scale.softmax(0)
        self.log_scale -= self.rate * (self.log_scale.exp() * losses - 1)
        return weights


SCHEDULE = IMTL
