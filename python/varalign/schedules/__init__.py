"""Loss schedules: from a step's statistics to the weights of the two directions, on the device, with no host sync.

For schedules with a statistic q, q^ is its exponential moving average (bias-corrected) and

    w_d = floor + (1 - 2 floor) q^_d^gamma / (q^_i2t^gamma + q^_t2i^gamma).

`variance` is the paper's (Pillai 2025, arXiv 2503.03202), which publishes no code: moving average, floor and gamma
are this project's reading of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # the losses import this room: at run time `import varalign.schedules` alone must not go in a circle
    from varalign.losses.direction_stats import DirectionStats


class LossSchedule(nn.Module):
    """Gives the two directions' weights at every step.

    A schedule of one's own overrides `forward`; what it keeps between steps belongs in buffers (or parameters), so that
    `state_dict` has it and a resumed run goes on as if never stopped. In `eval()` mode weights are given and nothing is
    kept.

    Attributes:
        by_gradients: whether `losses` are instead the norms of the two losses' gradients by the embeddings.
    """

    by_gradients = False

    def forward(self, stats_i2t: DirectionStats, stats_t2i: DirectionStats, losses: Tensor | None = None) -> Tensor:
        """The weights of this step.

        Args:
            stats_i2t: the images' statistics; stats_t2i: the texts'; with a process group, over all ranks.
            losses: (2,) the two directions' losses [i2t, t2i], for weightings that need them.

        Returns:
            (2,) float32 [w_i2t, w_t2i], adding up to 1, without gradient, on the statistics' device.
        """
        raise NotImplementedError


class StatisticSchedule(LossSchedule):
    """Weights in proportion to the moving average of one statistic of each direction.

    Args:
        statistic: from a direction's statistics to a () tensor, 0 or more.
        floor: smallest weight of a direction, 0 to 0.5. At 0.5 both are constant.
        beta: decay of the moving average, 0 (none) up to, not including, 1.
        gamma: exponent of the statistic, 0 or more: 0 gives equal weights, large ones nearly all to the larger.
    """

    average: Tensor
    steps: Tensor

    def __init__(
        self,
        statistic: Callable[[DirectionStats], Tensor],
        *,
        floor: float = 0.05,
        beta: float = 0.9,
        gamma: float = 1.0,
    ) -> None:
        super().__init__()
        _check("floor", floor, 0 <= floor <= 0.5, "from 0 to 0.5")
        _check("beta", beta, 0 <= beta < 1, "from 0 up to, not including, 1")
        _check("gamma", gamma, 0 <= gamma < math.inf, "0 or more")
        self.statistic = statistic
        self.floor, self.beta, self.gamma = floor, beta, gamma
        self.register_buffer("average", torch.zeros(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        return f"{self.statistic.__name__}, floor={self.floor}, beta={self.beta}, gamma={self.gamma}"

    @torch.no_grad()
    def forward(self, stats_i2t: DirectionStats, stats_t2i: DirectionStats, losses: Tensor | None = None) -> Tensor:
        _follow(self, stats_i2t.lse)
        values = self._value(stats_i2t), self._value(stats_t2i)
        # torch.compile makes one kernel of what follows, together with what stands around it.
        if stats_i2t.means is not None and not torch.compiler.is_compiling():
            from varalign.kernels.weighting import next_weights

            return next_weights(values, self.average, self.steps, self.beta, self.floor, self.gamma, self.training)
        now = torch.stack(values).float()
        # A step that has gone wrong (NaN, infinity) must not stay in the average for ever.
        sound = torch.isfinite(now).all()
        average = torch.where(sound, self.average * self.beta + now * (1 - self.beta), self.average)
        steps = self.steps + sound.to(self.steps.dtype)
        if self.training:
            self.average.copy_(average)
            self.steps.copy_(steps)
        corrected = average / (1 - self.beta ** steps.clamp_min(1).float())
        # Only the ratio counts: by the larger one first, so that a small number to a high power does not underflow.
        largest = corrected.max()
        powers = (corrected / largest).pow(self.gamma)
        weights = self.floor + (1 - 2 * self.floor) * powers / powers.sum()
        return torch.where(largest > 0, weights, torch.full_like(weights, 0.5))

    def _value(self, stats: DirectionStats) -> Tensor:
        return stats.lse.new_zeros(()) if stats.candidates < 2 else self.statistic(stats)


def variance(stats: DirectionStats) -> Tensor:
    """Mean over the queries of the variance of their similarities."""
    return stats.mean_variance


def entropy(stats: DirectionStats) -> Tensor:
    """Mean softmax entropy of the queries, divided by that of the uniform distribution: 0 to 1."""
    return stats.mean_entropy / math.log(stats.candidates)


def spread(stats: DirectionStats) -> Tensor:
    """Mean over the queries of their largest minus their smallest similarity."""
    return stats.mean_spread


class FixedSchedule(LossSchedule):
    """Constant weights: the baseline.

    Args:
        fixed_weight: w_i2t, 0 to 1; w_t2i is the rest. One half is CLIP's loss.
    """

    weights: Tensor

    def __init__(self, fixed_weight: float = 0.5) -> None:
        super().__init__()
        _check("fixed_weight", fixed_weight, 0 <= fixed_weight <= 1, "from 0 to 1")
        self.register_buffer("weights", torch.tensor([fixed_weight, 1 - fixed_weight], dtype=torch.float32))

    def forward(self, stats_i2t: DirectionStats, stats_t2i: DirectionStats, losses: Tensor | None = None) -> Tensor:
        _follow(self, stats_i2t.lse)
        return self.weights.clone()


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
        _check("floor", floor, 0 <= floor <= 0.5, "from 0 to 0.5")
        self.floor = floor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seed", torch.tensor(seed & 0xFFFFFFFF, dtype=torch.int64))

    @torch.no_grad()
    def forward(self, stats_i2t: DirectionStats, stats_t2i: DirectionStats, losses: Tensor | None = None) -> Tensor:
        _follow(self, stats_i2t.lse)
        # Not torch's generators: their state is the host's or the device's, and this draw must be the same on both.
        uniform = (_mixed(_mixed(self.seed) ^ self.steps) >> 8).float() / (1 << 24)
        if self.training:
            self.steps.add_(1)
        weight = self.floor + (1 - 2 * self.floor) * uniform
        return torch.stack([weight, 1 - weight])


class ReplaySchedule(LossSchedule):
    """A control: the weights that another run had, in an order shuffled in time; from the start again after the last.

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
        _follow(self, stats_i2t.lse)
        weight = self.recorded.index_select(0, (self.steps % self.recorded.shape[0]).reshape(1))
        if self.training:
            self.steps.add_(1)
        return torch.cat([weight, 1 - weight])


STATISTICS = {"variance": variance, "entropy": entropy, "spread": spread}
SCHEDULES = (*STATISTICS, "fixed", "random", "replay")


def build_schedule(
    name: str,
    *,
    floor: float = 0.05,
    beta: float = 0.9,
    gamma: float = 1.0,
    fixed_weight: float = 0.5,
    seed: int = 0,
    replay: Sequence[float] | None = None,
) -> LossSchedule:
    """The schedule of that name; each takes the options that it has and leaves the others.

    Args:
        name: one of `SCHEDULES`.
        floor: smallest weight (statistics, random). beta, gamma: see `StatisticSchedule`.
        fixed_weight: w_i2t of `fixed`.
        seed: of `random` and `replay`.
        replay: w_i2t of another run's steps, in order.

    Raises:
        ValueError: unknown name (the known ones are listed) or an option out of range.
    """
    if name in STATISTICS:
        return StatisticSchedule(STATISTICS[name], floor=floor, beta=beta, gamma=gamma)
    if name == "fixed":
        return FixedSchedule(fixed_weight)
    if name == "random":
        return RandomSchedule(floor, seed)
    if name == "replay":
        return ReplaySchedule(() if replay is None else replay, seed)
    raise ValueError(f"unknown loss schedule {name!r}; known ones: {', '.join(SCHEDULES)}")


def _check(name: str, value: Any, sound: bool, wanted: str) -> None:
    if not sound:
        raise ValueError(f"{name} must be {wanted}, not {value}")


def _follow(schedule: LossSchedule, like: Tensor) -> None:
    """Bring a schedule that was left on another device to the statistics' one, once."""
    buffer = next(schedule.buffers())
    if buffer.device != like.device:
        schedule.to(like.device)


def _mixed(bits: Tensor) -> Tensor:
    """A 32-bit mixing hash in int64 arithmetic (every product stays below 2^63), the same on every device."""
    mask = 0xFFFFFFFF
    for _ in range(2):
        bits = ((bits ^ (bits >> 16)) * 0x45D9F3B) & mask
    return bits ^ (bits >> 16)
