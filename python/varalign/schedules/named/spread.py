"""The schedule by the range of the similarities."""

from __future__ import annotations

from torch import Tensor

from varalign.schedules.direction_stats import DirectionStats
from varalign.schedules.loss_schedule import StatisticSchedule


class Spread(StatisticSchedule):
    """Mean over the queries of their largest minus their smallest similarity."""

    def statistic(self, stats: DirectionStats) -> Tensor:
        return stats.mean_spread


SCHEDULE = Spread
