"""SogCLR and iSogCLR: each sample remembers its own denominator, so that small batches are no smaller objective."""

from __future__ import annotations

import torch
from torch import Tensor

from varalign.losses.others.base import Batch, Objective, counted, positive_mean


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

    def __init__(self, images: int, captions: int, strength: float = 0.8) -> None:
        super().__init__()
        self.gamma = strength
        self.register_buffer("images", torch.zeros(images))
        self.register_buffer("texts", torch.zeros(captions))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        image_rows, caption_rows = rows_of(batch)
        i2t = self._values(batch.logits, batch.positive, self.images, image_rows)
        return i2t, self._values(batch.logits.T, batch.positive.T, self.texts, caption_rows), None

    def _values(self, logits: Tensor, positive: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
        away = logits - positive_mean(logits, positive)[:, None]
        each, count = away.detach().exp() * ~positive, (~positive).sum(1).clamp_min(1)
        average = moved(kept, rows, each.sum(1) / count, self.gamma, self.training)
        pull = (each / (count * average.clamp_min(1e-30))[:, None] * away).sum(1)
        return counted(average.clamp_min(1e-30).log() + pull - pull.detach(), positive)


class ISogCLR(Objective):
    """SogCLR with a temperature of each sample, learned: τ log(average of e^((s_ij - s_i+)/τ)) + τ ρ.

    A sample with many near neighbours gets a high temperature, a rare one a low one. The model's logit scale is not
    used: it gets no gradient.

    Args:
        images, captions: as in `SogCLR`.
        strength: ρ, above 0: the larger, the lower the temperatures.
        gamma: as in `SogCLR`.
        rate: step of the temperatures, on the moving average (0.9) of their gradient.

    Source: Qiu et al. 2023.
    """

    LOW, HIGH, FIRST = 0.01, 1.0, 0.07

    def __init__(
        self, images: int, captions: int, strength: float = 6.0, gamma: float = 0.8, rate: float = 0.01
    ) -> None:
        super().__init__()
        self.rho, self.gamma, self.rate = strength, gamma, rate
        for side, count in (("image", images), ("text", captions)):
            self.register_buffer(f"{side}_average", torch.zeros(count))
            self.register_buffer(f"{side}_temperature", torch.full((count,), self.FIRST))
            self.register_buffer(f"{side}_slope", torch.zeros(count))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        image_rows, caption_rows = rows_of(batch)
        s = batch.images @ batch.texts.T
        i2t = self._values(s, batch.positive, "image", image_rows)
        return i2t, self._values(s.T, batch.positive.T, "text", caption_rows), None

    def _values(self, s: Tensor, positive: Tensor, side: str, rows: Tensor) -> Tensor:
        temperatures, slopes = getattr(self, f"{side}_temperature"), getattr(self, f"{side}_slope")
        temperature = temperatures[rows].to(s.dtype)
        away = s - positive_mean(s, positive)[:, None]
        each, count = (away.detach() / temperature[:, None]).exp() * ~positive, (~positive).sum(1).clamp_min(1)
        average = moved(getattr(self, f"{side}_average"), rows, each.sum(1) / count, self.gamma, self.training)
        weight = each / (count * average.clamp_min(1e-30))[:, None]
        pull = (weight * away).sum(1)
        value = temperature * (average.clamp_min(1e-30).log() + self.rho)
        if self.training:
            slope = average.clamp_min(1e-30).log() + self.rho - pull.detach() / temperature
            slope = 0.9 * slopes[rows] + 0.1 * slope.to(slopes.dtype).nan_to_num()
            slopes[rows] = slope
            temperatures[rows] = (temperatures[rows] - self.rate * slope).clamp(self.LOW, self.HIGH)
        return counted(value + pull - pull.detach(), positive)


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
