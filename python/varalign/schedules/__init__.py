"""Loss schedules: from a step's statistics to the weights of the two directions, on the device, with no host sync.

Importing this package loads no torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from varalign.schedules.named import SCHEDULES

if TYPE_CHECKING:
    from varalign.schedules.loss_schedule import LossSchedule

__all__ = ["SCHEDULES", "LossSchedule", "build_schedule"]


def build_schedule(
    name: str,
    *,
    floor: float = 0.05,
    beta: float = 0.9,
    gamma: float = 1.0,
    fixed_weight: float = 0.5,
    seed: int = 0,
    replay: Sequence[float] = (),
) -> LossSchedule:
    """Build the schedule of that name with those of the options that its class takes.

    Args:
        name: one of `SCHEDULES`.
        floor: smallest weight (statistics, random). beta, gamma: see `StatisticSchedule`.
        fixed_weight: w_i2t of `fixed`.
        seed: of `random` and `replay`.
        replay: w_i2t of another run's steps, in order.

    Raises:
        ValueError: unknown name (the known ones are listed) or an option out of range.
    """
    options = {key: value for key, value in locals().items() if key != "name"}
    if name not in SCHEDULES:
        raise ValueError(f"unknown loss schedule {name!r}; known ones: {', '.join(SCHEDULES)}")
    schedule: type[LossSchedule] = import_module(f"varalign.schedules.named.{name.replace('-', '_')}").SCHEDULE
    taken = inspect.signature(schedule).parameters
    return schedule(**{option: value for option, value in options.items() if option in taken})


def __getattr__(name: str) -> Any:
    if name == "LossSchedule":
        return import_module("varalign.schedules.loss_schedule").LossSchedule
    raise AttributeError(f"module 'varalign.schedules' has no attribute {name!r}")
