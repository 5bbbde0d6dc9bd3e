"""A control: another run's weights, shuffled in time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from varalign.schedules.direction_stats import DirectionStats
from varalign.schedules.loss_schedule import LossSchedule, follow


class ReplaySchedule(LossSchedule):
    """A control: the weights of another run's steps in shuffled order; after the last one it starts again.

    Args:
        replay: w_i2t of each step of that run, each 0 to 1.
        seed: of the shuffle.
    """

    steps: Tensor
    recorded: Tensor

    def __init__(self, replay: Sequence[float], seed: int = 0) -> None:
        super().__init__()
        if not len(replay):
            raise ValueError("schedule replay needs the w_i2t of at least one step of another run, and none were given")
        recorded = torch.tensor(list(replay), dtype=torch.float32)
        wrong = ((recorded >= 0) & (recorded <= 1)).logical_not().nonzero().flatten().tolist()
        if wrong:
            raise ValueError(
                f"schedule replay needs weights from 0 to 1; step {wrong[0]} has {float(recorded[wrong[0]])}, "
                f"{len(wrong)} of {len(replay)} steps are wrong"
            )
        order = torch.randperm(len(replay), generator=torch.Generator().manual_seed(seed))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("recorded", recorded[order])

    @torch.no_grad()
    def forward(self, stats_i2t: DirectionStats, stats_t2i: DirectionStats, losses: Tensor | None = None) -> Tensor:
        follow(self, stats_i2t.lse)
        weight = self.recorded.index_select(0, (self.steps % self.recorded.shape[0]).reshape(1))
        if self.training:
            self.steps.add_(1)
        return torch.cat([weight, 1 - weight])


SCHEDULE = ReplaySchedule
