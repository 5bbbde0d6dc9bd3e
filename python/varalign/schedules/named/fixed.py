"""Constant weights: the baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from varalign.schedules.direction_stats import DirectionStats
from varalign.schedules.loss_schedule import LossSchedule, check, follow


class FixedSchedule(LossSchedule):
    """Constant weights: the baseline.

    Args:
        fixed_weight: w_i2t, 0 to 1; w_t2i is the rest. One half is CLIP's loss.
    """

    weights: Tensor

    def __init__(self, fixed_weight: float = 0.5) -> None:
        super().__init__()
        check("fixed_weight", fixed_weight, 0 <= fixed_weight <= 1, "from 0 to 1")
        self.register_buffer("weights", torch.tensor([fixed_weight, 1 - fixed_weight], dtype=torch.float32))

    def forward(self, stats_i2t: DirectionStats, stats_t2i: DirectionStats, losses: Tensor | None = None) -> Tensor:
        follow(self, stats_i2t.lse)
        return self.weights.clone()


SCHEDULE = FixedSchedule
