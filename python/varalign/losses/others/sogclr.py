"""SogCLR: a moving average of each sample's denominator, so that the objective does not depend on the batch size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varalign.losses.objective import Batch, Objective, Values, counted, masked_lse, positive_mean


class SogCLR(Objective):
    """log of the moving average of mean over negatives e^(z_ij - z_i+), one average a sample.

    Its gradient is that of the mean with the average in the place of the batch's own denominator.

    Args:
        images: I, rows of the data set; captions: T.
        strength: γ, above 0 to 1, what a step's own value counts in the average; 1 forgets: the decoupled loss.

    Source: Yuan et al. 2022.
    """

    image_log_average: Tensor
    text_log_average: Tensor

    strength_range = (0.0, 1.0)
    lowest_excluded = True

    def __init__(self, images: int, captions: int, strength: float = 0.8) -> None:
        super().__init__()
        self.gamma = strength
        self.register_buffer("image_log_average", torch.full((images,), -torch.inf))
        self.register_buffer("text_log_average", torch.full((captions,), -torch.inf))

    def forward(self, batch: Batch) -> Values:
        image_rows, caption_rows = rows_of(batch)
        i2t = self._values(batch.logits, batch.positive, self.image_log_average, image_rows)
        return i2t, self._values(batch.logits.T, batch.positive.T, self.text_log_average, caption_rows), None

    def _values(self, logits: Tensor, positive: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
        away = logits - positive_mean(logits, positive)[:, None]
        average, weights = moved(kept, rows, away.detach(), positive, self.gamma, self.training)
        pull = (weights * away).sum(1)
        return counted(average + pull - pull.detach(), positive)


def rows_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """The batch's rows of the data set.

    Raises:
        ValueError: there are none, and a loss that keeps something of each sample needs them.
    """
    if batch.image_rows is None or batch.caption_rows is None:
        raise ValueError("this loss keeps a value of each sample: pass image_rows and caption_rows to `see`")
    return batch.image_rows, batch.caption_rows


def moved(
    kept: Tensor, rows: Tensor, away: Tensor, positive: Tensor, gamma: float, keep: bool
) -> tuple[Tensor, Tensor]:
    """Logarithms of the moving averages after this step, and the weights of the negatives that they give.

    Logarithms, because e^away overflows in float32 where a negative beats the positive by more than 0.88 at a logit
    scale of 100.

    Args:
        kept: logarithms of every sample's average, -inf for one never seen, whose first value counts whole.
        rows: (Q,) the queries' places in `kept`.
        away: (Q, C) what is averaged is e^away over the negatives.
        positive: (Q, C).
        gamma: share of this step.
        keep: whether `kept` is changed.

    Returns:
        (Q,) logarithms, at least log 1e-30; (Q, C) e^away over the average and the number of negatives, 0 at positives.
    """
    before, count = kept[rows].to(away.dtype), (~positive).sum(1)
    now = masked_lse(away, ~positive) - count.clamp_min(1).log()
    mixed = torch.logaddexp(before + math.log1p(-gamma), now + math.log(gamma)) if gamma < 1 else now
    after = torch.where(before > -torch.inf, mixed, now)
    if keep:  # a value that is not finite, or of a query without negatives, must not enter the average
        kept[rows] = torch.where(after.isfinite() & (count > 0), after, before).to(kept.dtype)
    after = after.clamp_min(math.log(1e-30))
    return after, (away - after[:, None]).exp() * ~positive / count.clamp_min(1)[:, None]


LOSS = SogCLR
