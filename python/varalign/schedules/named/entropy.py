"""The schedule by the softmax entropy of the queries."""

from __future__ import annotations

import math

from torch import Tensor

from varalign.schedules.direction_stats import DirectionStats
from varalign.schedules.loss_schedule import StatisticSchedule


class Entropy(StatisticSchedule):
    """Mean softmax entropy of the queries, divided by that of the uniform distribution: 0 to 1."""

    def statistic(self, stats: DirectionStats) -> Tensor:
        return stats.mean_entropy / math.log(stats.candidates)


SCHEDULE = Entropy
