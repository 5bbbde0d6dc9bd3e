"""Base classes of the loss schedules: the interface, schedules by a moving average, other people's weightings.

For schedules with a statistic q, q^ is its exponential moving average (bias-corrected) and

    w_d = floor + (1 - 2 floor) q^_d^gamma / (q^_i2t^gamma + q^_t2i^gamma).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from varalign.schedules.direction_stats import DirectionStats

SMALLEST_LOSS = 1e-8  # smaller losses are raised to it before a weighting takes a logarithm or an inverse


class LossSchedule(nn.Module):
    """Gives the two directions' weights at every step.

    A subclass overrides `forward`. State that it keeps between steps belongs in buffers or parameters, so that
    `state_dict` contains it and a resumed run equals an uninterrupted one. In `eval()` mode the state does not change.

    Attributes:
        by_gradients: whether `losses` are instead the gradient norms of the two losses with respect to the embeddings.
    """

    by_gradients = False

    def forward(self, stats_i2t: DirectionStats, stats_t2i: DirectionStats, losses: Tensor | None = None) -> Tensor:
        """The weights of this step.

        Args:
            stats_i2t: the images' statistics. stats_t2i: the texts'. In a process group they cover all ranks.
            losses: (2,) the two directions' losses [i2t, t2i], for weightings that need them.

        Returns:
            (2,) float32 [w_i2t, w_t2i], adding up to 1, without gradient, on the statistics' device.
        """
        raise NotImplementedError


class StatisticSchedule(LossSchedule):
    """Weights in proportion to the moving average of one statistic of each direction.

    Args:
        floor: smallest weight of a direction, 0 to 0.5; at 0.5 both weights are constant.
        beta: decay of the moving average, from 0 (no averaging) to below 1.
        gamma: exponent of the statistic, at least 0. 0 gives equal weights; a large one gives the direction with the
            larger statistic nearly all the weight.
    """

    average: Tensor
    steps: Tensor

    def __init__(self, *, floor: float = 0.05, beta: float = 0.9, gamma: float = 1.0) -> None:
        super().__init__()
        check("floor", floor, 0 <= floor <= 0.5, "from 0 to 0.5")
        check("beta", beta, 0 <= beta < 1, "from 0 up to, not including, 1")
        check("gamma", gamma, 0 <= gamma < math.inf, "0 or more")
        self.floor, self.beta, self.gamma = floor, beta, gamma
        self.register_buffer("average", torch.zeros(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        return f"floor={self.floor}, beta={self.beta}, gamma={self.gamma}"

    @torch.no_grad()
    def forward(self, stats_i2t: DirectionStats, stats_t2i: DirectionStats, losses: Tensor | None = None) -> Tensor:
        follow(self, stats_i2t.lse)
        values = self._value(stats_i2t), self._value(stats_t2i)
        # torch.compile fuses the PyTorch code below with the operations around it, so it takes that path.
        if stats_i2t.means is not None and not torch.compiler.is_compiling():
            from varalign.kernels.weighting import next_weights

            return next_weights(values, self.average, self.steps, self.beta, self.floor, self.gamma, self.training)
        now = torch.stack(values).float()
        # A statistic that is not finite must not enter the average, where it would stay.
        sound = torch.isfinite(now).all()
        average = torch.where(sound, self.average * self.beta + now * (1 - self.beta), self.average)
        steps = self.steps + sound.to(self.steps.dtype)
        if self.training:
            self.average.copy_(average)
            self.steps.copy_(steps)
        corrected = average / (1 - self.beta ** steps.clamp_min(1).float())
        # Only the ratio matters. Dividing by the larger one first keeps a high power from underflowing.
        largest = corrected.max()
        powers = (corrected / largest).pow(self.gamma)
        weights = self.floor + (1 - 2 * self.floor) * powers / powers.sum()
        return torch.where(largest > 0, weights, torch.full_like(weights, 0.5))

    def statistic(self, stats: DirectionStats) -> Tensor:
        """() the statistic of one direction, at least 0; called only with two candidates or more."""
        raise NotImplementedError

    def _value(self, stats: DirectionStats) -> Tensor:
        return stats.lse.new_zeros(()) if stats.candidates < 2 else self.statistic(stats)


class Weighting(LossSchedule):
    """Weights from the two losses; a step whose losses are not finite keeps the last weights and all state."""

    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.full((2,), 0.5))

    @torch.no_grad()
    def forward(self, stats_i2t: DirectionStats, stats_t2i: DirectionStats, losses: Tensor | None = None) -> Tensor:
        if losses is None:
            raise ValueError(f"{type(self).__name__} needs the two losses: pass losses=(2,)")
        if self.last.device != losses.device:
            self.to(losses.device)
        now = losses.detach().float().clamp_min(SMALLEST_LOSS)
        sound = torch.isfinite(now).all()
        kept = [buffer.clone() for buffer in self.buffers()]
        weights = torch.where(sound, self.weigh(now), self.last)
        self.last.copy_(weights)
        for buffer, before in zip(self.buffers(), kept, strict=True):
            buffer.copy_(torch.where(sound, buffer, before) if self.training else before)
        return weights

    def weigh(self, losses: Tensor) -> Tensor:
        """(2,) weights of this step from its (2,) losses, all above 0; also updates the buffers for the next step."""
        raise NotImplementedError


def check(name: str, value: Any, sound: bool, wanted: str) -> None:
    """Raise ValueError unless the value is `sound`; `wanted` names the range."""
    if not sound:
        raise ValueError(f"{name} must be {wanted}, not {value}")


def follow(schedule: LossSchedule, like: Tensor) -> None:
    """Move a schedule to the device of the statistics if it is on another one."""
    buffer = next(schedule.buffers())
    if buffer.device != like.device:
        schedule.to(like.device)
