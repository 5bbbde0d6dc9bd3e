"""A comparison loss under a loss schedule, with the statistics that the trainer uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from varalign.losses.contrastive import ContrastiveOutput, contrastive, prepared, prepared_ids
from varalign.losses.gradient_norms import gradient_norms
from varalign.losses.means import mean_over_queries
from varalign.losses.objective import Batch, Objective
from varalign.losses.relation import positive_pairs
from varalign.losses.step_calls import StepCalls

if TYPE_CHECKING:
    from varalign.schedules import LossSchedule


class ComparisonLoss(nn.Module):
    """An objective, its two directions weighted by a loss schedule: the interface of `ContrastiveLoss`.

    The statistics (for schedules, pair moments and metrics) are those of the plain similarities, whatever the loss.

    Args:
        objective: the loss.
        schedule: gives the weights.
    """

    def __init__(self, objective: Objective, schedule: LossSchedule) -> None:
        super().__init__()
        self.objective, self.schedule = objective, schedule
        self._context: dict[str, Any] = {}  # for the next call
        self._shown: dict[str, Any] = {}  # of the last call
        self._calls = StepCalls()

    def see(
        self,
        *,
        image_rows: Tensor | None = None,
        caption_rows: Tensor | None = None,
        image_features: Tensor | None = None,
        text_features: Tensor | None = None,
        inputs: Tensor | None = None,
        embed: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Set further inputs of the next call (see `Batch`); a loss raises ValueError if one it needs is absent."""
        self._context = {name: value for name, value in locals().items() if name != "self"}

    def forward(
        self,
        image_embeddings: Tensor,
        text_embeddings: Tensor,
        logit_scale: Tensor | float,
        image_ids: Tensor | None = None,
        text_image_ids: Tensor | None = None,
        *,
        image_weights: Tensor | None = None,
        text_weights: Tensor | None = None,
        step: int | None = None,
    ) -> ContrastiveOutput:
        """The step's loss; arguments and result as in `ContrastiveLoss`."""
        if self.training:
            self._calls.begin(step)
        with torch.no_grad():
            _, _, stats_i2t, stats_t2i = contrastive(
                image_embeddings, text_embeddings, logit_scale, image_ids, text_image_ids
            )
        ids, text_ids = prepared_ids(image_embeddings, text_embeddings, image_ids, text_image_ids, None)
        images, texts, scale = prepared(image_embeddings, text_embeddings, logit_scale)
        images, texts = images.to(scale.dtype), texts.to(scale.dtype)  # 16 bits lose a loss's digits in the logits
        if not self._calls.recomputing:  # a recomputation has the inputs of the last call
            self._shown, self._context = self._context, {}
        batch = Batch(images, texts, scale, positive_pairs(ids, text_ids), **self._shown)
        values_i2t, values_t2i, added = self._calls.values(self.objective, batch)
        loss_i2t = mean_over_queries(values_i2t, stats_i2t, image_weights)
        loss_t2i = mean_over_queries(values_t2i, stats_t2i, text_weights)
        losses = torch.stack([loss_i2t, loss_t2i])
        if self.schedule.by_gradients:
            losses = gradient_norms(losses, (image_embeddings, text_embeddings))
        weights = self._calls.weights(self.schedule, stats_i2t, stats_t2i, losses)
        loss = weights[0] * loss_i2t + weights[1] * loss_t2i
        if added is not None:
            loss = loss + added
        return ContrastiveOutput(loss, loss_i2t, loss_t2i, weights, stats_i2t, stats_t2i)
