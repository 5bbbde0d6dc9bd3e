"""Fast adaptive multi-task optimisation (Liu et al. 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varalign.schedules.loss_schedule import SMALLEST_LOSS, Weighting, check


class FAMO(Weighting):
    """Fast adaptive multi-task optimisation: equal progress of the log losses, without a gradient of each task.

    The weights are proportional to z / L with z = softmax(ξ), and ξ follows the decrease of each log loss. The paper
    measures the decrease on the same batch after the step; here it is measured on the next batch, which needs no second
    forward pass.

    Args:
        rate: β, step size of ξ. decay: γ, decay of ξ towards 0.

    Source: Liu et al. 2023, algorithm 1.
    """

    logits: Tensor
    before: Tensor

    def __init__(self, rate: float = 0.025, decay: float = 0.001) -> None:
        super().__init__()
        check("rate", rate, 0 <= rate < math.inf, "0 or more")
        check("decay", decay, 0 <= decay < math.inf, "0 or more")
        self.rate, self.decay = rate, decay
        self.register_buffer("logits", torch.zeros(2))
        self.register_buffer("before", torch.zeros(2))  # 0: no step yet

    def weigh(self, losses: Tensor) -> Tensor:
        z = self.logits.softmax(0)
        fall = self.before.clamp_min(SMALLEST_LOSS).log() - losses.log()
        slope = z * (fall - (z * fall).sum())  # the softmax's Jacobian times the fall
        moved = self.logits - self.rate * (slope + self.decay * self.logits)
        self.logits.copy_(torch.where(self.before.min() > 0, moved, self.logits))
        self.before.copy_(losses)
        weights = self.logits.softmax(0) / losses
        return weights / weights.sum()


SCHEDULE = FAMO
