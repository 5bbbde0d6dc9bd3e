"""SogCLR: a moving average of each sample's denominator, so that the objective does not depend on the batch size."""

from __future__ import annotations

import torch
from torch import Tensor

from varalign.losses.objective import Batch, Objective, Values, counted, positive_mean


class SogCLR(Objective):
    """log of the moving average of mean over negatives e^(z_ij - z_i+), one average a sample.

    Its gradient is that of the mean with the average in the place of the batch's own denominator.

    Args:
        images: I, rows of the data set; captions: T.
        strength: γ, above 0 to 1, what a step's own value counts in the average; 1 forgets: the decoupled loss.

    Source: Yuan et al. 2022.
    """

    images: Tensor
    texts: Tensor

    strength_range = (0.0, 1.0)
    lowest_excluded = True

    def __init__(self, images: int, captions: int, strength: float = 0.8) -> None:
        super().__init__()
        self.gamma = strength
        self.register_buffer("images", torch.zeros(images))
        self.register_buffer("texts", torch.zeros(captions))

    def forward(self, batch: Batch) -> Values:
        image_rows, caption_rows = rows_of(batch)
        i2t = self._values(batch.logits, batch.positive, self.images, image_rows)
        return i2t, self._values(batch.logits.T, batch.positive.T, self.texts, caption_rows), None

    def _values(self, logits: Tensor, positive: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
        away = logits - positive_mean(logits, positive)[:, None]
        each, count = away.detach().exp() * ~positive, (~positive).sum(1).clamp_min(1)
        average = moved(kept, rows, each.sum(1) / count, self.gamma, self.training)
        pull = (each / (count * average.clamp_min(1e-30))[:, None] * away).sum(1)
        return counted(average.clamp_min(1e-30).log() + pull - pull.detach(), positive)


def rows_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """The batch's rows of the data set.

    Raises:
        ValueError: there are none, and a loss that keeps something of each sample needs them.
    """
    if batch.image_rows is None or batch.caption_rows is None:
        raise ValueError("this loss keeps a value of each sample: pass image_rows and caption_rows to `see`")
    return batch.image_rows, batch.caption_rows


def moved(kept: Tensor, rows: Tensor, now: Tensor, gamma: float, keep: bool) -> Tensor:
    """(Q,) the moving average after this step; 0 in `kept` is a sample never seen, whose first value counts whole."""
    before = kept[rows].to(now.dtype)
    after = torch.where(before > 0, (1 - gamma) * before + gamma * now, now)
    if keep:  # a step that has gone wrong must not stay in the average
        kept[rows] = torch.where(after.isfinite(), after, before).to(kept.dtype)
    return after


LOSS = SogCLR
