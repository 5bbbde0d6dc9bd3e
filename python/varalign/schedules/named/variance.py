"""The schedule by the variance of the similarities: the paper's.

Pillai 2025 (arXiv 2503.03202) publishes no code: moving average, floor and gamma are this project's reading of it.
"""

from __future__ import annotations

from torch import Tensor

from varalign.schedules.direction_stats import DirectionStats
from varalign.schedules.loss_schedule import StatisticSchedule


class Variance(StatisticSchedule):
    """Mean over the queries of the variance of their similarities."""

    def statistic(self, stats: DirectionStats) -> Tensor:
        return stats.mean_variance


SCHEDULE = Variance
