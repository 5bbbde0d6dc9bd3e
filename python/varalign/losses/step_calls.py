"""One optimiser step that takes several calls of a loss: gradient accumulation, recomputation in the backward pass.

The state of a schedule or a loss must advance once per optimiser step, however often the loss is called.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from varalign.losses.objective import Batch, Objective, Values
from varalign.schedules import LossSchedule
from varalign.schedules.direction_stats import DirectionStats

_Part = tuple[DirectionStats, DirectionStats, Tensor]  # statistics of both directions, losses (2,)


class StepCalls(nn.Module):
    """The calls in training mode that belong to the current optimiser step.

    A call with another step's number begins a step, and so does every call without a number. A further call of the
    step starts from the state that the first one found: the schedule is given the statistics of all the step's calls so
    far. A call in the backward pass is a recomputation (`torch.utils.checkpoint`): it gets the weights that the call
    itself got, and changes nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._step: int | None = None
        self._kind = "first"  # of the current call: "first", "further" or "recomputed"
        self._parts: list[_Part] = []
        self._given: list[tuple[Tensor, Tensor]] = []  # losses (2,) and weights (2,) of each call of the step
        self._schedule_before: list[Tensor] = []
        self._objective_before: list[Tensor] = []

    def _load_from_state_dict(self, *given: Any) -> None:
        self.__init__()  # type: ignore[misc]  # another state was loaded: no call belongs to its step yet

    @property
    def recomputing(self) -> bool:
        """Whether the current call is a recomputation."""
        return self._kind == "recomputed"

    def begin(self, step: int | None) -> None:
        """A call begins.

        Args:
            step: the number of the optimiser step; None: the call is a step of its own.
        """
        if torch.compiler.is_compiling():
            if step is not None:
                raise RuntimeError("inside torch.compile every call is a step: leave `step` out")
        elif self._given and torch._C._current_graph_task_id() != -1:  # -1: no backward pass is running
            self._kind = "recomputed"
        elif step is not None and step == self._step:
            self._kind = "further"
        else:
            self._kind, self._step, self._parts, self._given = "first", step, [], []

    def weights(
        self, schedule: LossSchedule, stats_i2t: DirectionStats, stats_t2i: DirectionStats, losses: Tensor
    ) -> Tensor:
        """(2,) the schedule's weights of this call; arguments as of the schedule."""
        if not schedule.training or torch.compiler.is_compiling():
            return schedule(stats_i2t, stats_t2i, losses=losses)  # type: ignore[no-any-return]
        losses = losses.detach()
        if self._kind == "recomputed":
            # The call with these losses, or the nearest: a recomputation need not be exact. Without a host sync.
            distances = torch.stack([(losses - known).abs().sum() for known, _ in self._given])
            return torch.stack([weights for _, weights in self._given])[distances.argmin()]
        found = losses
        if self._step is not None:
            if self._kind == "first":
                self._schedule_before = _kept(schedule)
            else:
                _put_back(schedule, self._schedule_before)
            self._parts.append((stats_i2t, stats_t2i, losses))
            stats_i2t, stats_t2i, found = _joined(self._parts)
        weights: Tensor = schedule(stats_i2t, stats_t2i, losses=found)
        self._given.append((losses, weights))
        return weights

    def values(self, objective: Objective, batch: Batch) -> Values:
        """The objective's values; a step updates the state of a sample once, however many calls contain the sample."""
        if not objective.training or torch.compiler.is_compiling() or not any(True for _ in objective.buffers()):
            return objective(batch)  # type: ignore[no-any-return]
        if self._kind == "first":
            self._objective_before = _kept(objective)
            return objective(batch)  # type: ignore[no-any-return]
        now = _kept(objective)
        _put_back(objective, self._objective_before)
        values: Values = objective(batch)
        with torch.no_grad():  # samples of the step's other calls keep theirs
            for buffer, before, other in zip(objective.buffers(), self._objective_before, now, strict=True):
                buffer.copy_(torch.where(buffer == before, other, buffer))
        return values


def _kept(module: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in module.buffers()]


@torch.no_grad()
def _put_back(module: nn.Module, kept: list[Tensor]) -> None:
    for buffer, before in zip(module.buffers(), kept, strict=True):
        buffer.copy_(before)


def _joined(parts: list[_Part]) -> _Part:
    """Statistics of all queries of the parts, and mean losses (2,) over them."""
    i2t, t2i, losses = zip(*parts, strict=True)
    counts = losses[0].new_tensor([[len(one.lse), len(other.lse)] for one, other in zip(i2t, t2i, strict=True)])
    mean = (torch.stack(losses) * counts).sum(0) / counts.sum(0)
    return DirectionStats.joined(i2t), DirectionStats.joined(t2i), mean
