"""Dynamic weight average (Liu, Johns and Davison 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varalign.schedules.loss_schedule import SMALLEST_LOSS, Weighting, check


class DWA(Weighting):
    """Dynamic weight average: softmax of r = L(t-1) / L(t-2), how slowly each loss falls, over periods of steps.

    Args:
        period: number of steps whose mean loss is L(t); in the paper an epoch.
        temperature: of the softmax.

    Source: Liu, Johns and Davison 2019.
    """

    sums: Tensor
    steps: Tensor
    means: Tensor

    def __init__(self, period: int = 50, temperature: float = 2.0) -> None:
        super().__init__()
        check("period", period, period >= 1, "at least 1")
        check("temperature", temperature, 0 < temperature < math.inf, "above 0")
        self.period, self.temperature = period, temperature
        self.register_buffer("sums", torch.zeros(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("means", torch.zeros(2, 2))  # L(t-1) and L(t-2)

    def weigh(self, losses: Tensor) -> Tensor:
        ready = self.steps >= 2 * self.period
        ratio = torch.where(ready, self.means[0] / self.means[1].clamp_min(SMALLEST_LOSS), torch.ones_like(losses))
        weights = (ratio / self.temperature).softmax(0)
        self.sums += losses
        self.steps += 1
        full = self.steps % self.period == 0
        shifted = torch.stack([self.sums / self.period, self.means[0]])
        self.means.copy_(torch.where(full, shifted, self.means))
        self.sums.copy_(torch.where(full, torch.zeros_like(self.sums), self.sums))
        return weights


SCHEDULE = DWA
