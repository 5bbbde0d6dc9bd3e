"""Other people's multi-task weightings, to compare with the loss schedules: the two directions are their two tasks.

Each takes the two directions' losses and gives weights that add up to 1, so that only the ratio is theirs and the
learning rate keeps its meaning. What they learn they step themselves, by the gradient that the paper writes down, into
buffers: a checkpoint has it, and the model's optimiser is not concerned. For two tasks each is a line or two; libraries
of them (torchjd, LibMTL) take the gradient of every parameter for every task, a backward pass of the towers each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from varalign.losses.direction_stats import DirectionStats
from varalign.schedules import LossSchedule

SMALLEST = 1e-8  # of a loss whose logarithm or inverse is taken


class Weighting(LossSchedule):
    """Weights from the two losses; a step whose losses are not finite keeps the weights and moves nothing."""

    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.full((2,), 0.5))

    @torch.no_grad()
    def forward(self, stats_i2t: DirectionStats, stats_t2i: DirectionStats, losses: Tensor | None = None) -> Tensor:
        if losses is None:
            raise ValueError(f"{type(self).__name__} weighs by the two losses: pass losses=(2,)")
        if self.last.device != losses.device:
            self.to(losses.device)
        now = losses.detach().float().clamp_min(SMALLEST)
        sound = torch.isfinite(now).all()
        kept = [buffer.clone() for buffer in self.buffers()]
        weights = torch.where(sound, self.weigh(now), self.last)
        self.last.copy_(weights)
        for buffer, before in zip(self.buffers(), kept, strict=True):
            buffer.copy_(torch.where(sound, buffer, before) if self.training else before)
        return weights

    def weigh(self, losses: Tensor) -> Tensor:
        """(2,) weights of this step from its (2,) losses above 0; buffers moved to the next step's."""
        raise NotImplementedError


class Uncertainty(Weighting):
    """Minimises e^(-s) L + s over a log variance s of each direction: weights in proportion to e^(-s).

    Args:
        rate: step of s.

    Source: Kendall, Gal and Cipolla 2018.
    """

    log_variance: Tensor

    def __init__(self, rate: float = 0.025) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("log_variance", torch.zeros(2))

    def weigh(self, losses: Tensor) -> Tensor:
        weights = (-self.log_variance).softmax(0)
        self.log_variance -= self.rate * (1 - (-self.log_variance).exp() * losses)
        return weights


class IMTL(Weighting):
    """The loss balance of impartial multi-task learning (IMTL-L): minimises e^s L - s, weights in proportion to e^s.

    Args:
        rate: step of s.

    Source: Liu et al. 2021; `IMTLG` is its other half.
    """

    log_scale: Tensor

    def __init__(self, rate: float = 0.025) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("log_scale", torch.zeros(2))

    def weigh(self, losses: Tensor) -> Tensor:
        weights = self.log_scale.softmax(0)
        self.log_scale -= self.rate * (self.log_scale.exp() * losses - 1)
        return weights


class IMTLG(Weighting):
    """The gradient balance of impartial multi-task learning (IMTL-G): equal projections on both tasks' directions.

    With w_1 g_1 + w_2 g_2 as far along g_1 as along g_2, w_1 |g_1| (1 - cos) = w_2 |g_2| (1 - cos): of two tasks each
    weighs in inverse proportion to its gradient's norm, whatever the angle. The gradients are those by the embeddings,
    the representation that the two directions share; they cost a second and a third backward pass of the loss, not of
    the towers.

    Source: Liu et al. 2021.
    """

    by_gradients = True

    def weigh(self, losses: Tensor) -> Tensor:
        weights = 1 / losses
        return weights / weights.sum()


class DWA(Weighting):
    """Dynamic weight average: softmax of how slowly each loss falls, r = L(t-1) / L(t-2), over means of `period` steps.

    Args:
        period: steps whose mean is one t; the paper's is an epoch.
        temperature: of the softmax.

    Source: Liu, Johns and Davison 2019.
    """

    sums: Tensor
    steps: Tensor
    means: Tensor

    def __init__(self, period: int = 50, temperature: float = 2.0) -> None:
        super().__init__()
        self.period, self.temperature = period, temperature
        self.register_buffer("sums", torch.zeros(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("means", torch.zeros(2, 2))  # of the period before, and of the one before that

    def weigh(self, losses: Tensor) -> Tensor:
        ready = self.steps >= 2 * self.period
        ratio = torch.where(ready, self.means[0] / self.means[1].clamp_min(SMALLEST), torch.ones_like(losses))
        weights = (ratio / self.temperature).softmax(0)
        self.sums += losses
        self.steps += 1
        full = self.steps % self.period == 0
        shifted = torch.stack([self.sums / self.period, self.means[0]])
        self.means.copy_(torch.where(full, shifted, self.means))
        self.sums.copy_(torch.where(full, torch.zeros_like(self.sums), self.sums))
        return weights


class FAMO(Weighting):
    """Fast adaptive multi-task optimisation: equal progress of the logarithms, without a gradient of each task.

    With z = softmax(ξ) the weights are in proportion to z / L, and ξ moves by how much each log loss fell. The paper
    takes the fall on the same batch after the step; here it is the fall to the next batch, which costs no second pass.

    Args:
        rate: β, step of ξ. decay: γ, which pulls ξ to 0.

    Source: Liu et al. 2023, algorithm 1.
    """

    logits: Tensor
    before: Tensor

    def __init__(self, rate: float = 0.025, decay: float = 0.001) -> None:
        super().__init__()
        self.rate, self.decay = rate, decay
        self.register_buffer("logits", torch.zeros(2))
        self.register_buffer("before", torch.zeros(2))  # 0: no step yet

    def weigh(self, losses: Tensor) -> Tensor:
        z = self.logits.softmax(0)
        fall = self.before.clamp_min(SMALLEST).log() - losses.log()
        slope = z * (fall - (z * fall).sum())  # the softmax's Jacobian times the fall
        moved = self.logits - self.rate * (slope + self.decay * self.logits)
        self.logits.copy_(torch.where(self.before.min() > 0, moved, self.logits))
        self.before.copy_(losses)
        weights = self.logits.softmax(0) / losses
        return weights / weights.sum()


WEIGHTINGS: dict[str, type[Weighting]] = {
    "uncertainty": Uncertainty,
    "dwa": DWA,
    "famo": FAMO,
    "imtl": IMTL,
    "imtl-g": IMTLG,
}
