"""The gradient balance of impartial multi-task learning (IMTL-G; Liu et al. 2021)."""

from __future__ import annotations

from torch import Tensor

from varalign.schedules.loss_schedule import Weighting


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


SCHEDULE = IMTLG
