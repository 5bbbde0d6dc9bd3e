"""A control: weights drawn at random at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from varalign.schedules.direction_stats import DirectionStats
from varalign.schedules.loss_schedule import LossSchedule, check, follow


class RandomSchedule(LossSchedule):
    """A control: w_i2t drawn uniformly from [floor, 1 - floor] at each step, a pure function of seed and step.

    Args:
        floor: 0 to 0.5.
        seed: any integer; its lowest 32 bits count.
    """

    steps: Tensor
    seed: Tensor

    def __init__(self, floor: float = 0.05, seed: int = 0) -> None:
        super().__init__()
        check("floor", floor, 0 <= floor <= 0.5, "from 0 to 0.5")
        self.floor = floor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seed", torch.tensor(seed & 0xFFFFFFFF, dtype=torch.int64))

    @torch.no_grad()
    def forward(self, stats_i2t: DirectionStats, stats_t2i: DirectionStats, losses: Tensor | None = None) -> Tensor:
        follow(self, stats_i2t.lse)
        # torch's generators differ between devices; this draw must be the same on all of them.
        uniform = (_mixed(_mixed(self.seed) ^ self.steps) >> 8).float() / (1 << 24)
        if self.training:
            self.steps.add_(1)
        weight = self.floor + (1 - 2 * self.floor) * uniform
        return torch.stack([weight, 1 - weight])


def _mixed(bits: Tensor) -> Tensor:
    """A 32-bit mixing hash in int64 arithmetic (every product stays below 2^63), the same on every device."""
    mask = 0xFFFFFFFF
    for _ in range(2):
        bits = ((bits ^ (bits >> 16)) * 0x45D9F3B) & mask
    return bits ^ (bits >> 16)


SCHEDULE = RandomSchedule
