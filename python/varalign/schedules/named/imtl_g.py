"""The gradient balance of impartial multi-task learning (IMTL-G; Liu et al. 2021)."""

from __future__ import annotations

from torch import Tensor

from varalign.schedules.loss_schedule import Weighting


class IMTLG(Weighting):
    """The gradient balance of impartial multi-task learning (IMTL-G): equal projections onto both tasks' gradients.

    If w_1 g_1 + w_2 g_2 has equal projections onto g_1 and g_2, then w_1 |g_1| (1 - cos) = w_2 |g_2| (1 - cos). Each
    weight is thus inversely proportional to the norm of its gradient, whatever the angle. The gradients are taken with
    respect to the embeddings, which both directions share; this costs two more backward passes of the loss, but none of
    the towers.

    Source: Liu et al. 2021.
    """

    by_gradients = True

    def weigh(self, losses: Tensor) -> Tensor:
        weights = 1 / losses
        return weights / weights.sum()


SCHEDULE = IMTLG
