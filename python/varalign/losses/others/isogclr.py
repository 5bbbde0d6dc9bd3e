"""iSogCLR: SogCLR with a learned temperature of each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from varalign.losses.objective import Batch, Objective, Values, counted, positive_mean
from varalign.losses.others.sogclr import moved, rows_of


class ISogCLR(Objective):
    """SogCLR with a temperature of each sample, learned: τ log(average of e^((s_ij - s_i+)/τ)) + τ ρ.

    A sample with many near neighbours gets a high temperature, a rare one a low one. The model's logit scale is not
    used: it gets no gradient.

    Args:
        images, captions: as in `SogCLR`.
        strength: ρ, above 0: the larger, the lower the temperatures.

    γ is `GAMMA`, as in `SogCLR`. A temperature moves by `RATE` times the moving average (0.9) of its gradient.

    Source: Qiu et al. 2023.
    """

    LOW, HIGH, FIRST = 0.01, 1.0, 0.07
    GAMMA, RATE = 0.8, 0.01

    strength_range = (0.0, 100.0)
    lowest_excluded = True

    def __init__(self, images: int, captions: int, strength: float = 6.0) -> None:
        super().__init__()
        self.rho = strength
        for side, count in (("image", images), ("text", captions)):
            self.register_buffer(f"{side}_log_average", torch.full((count,), -torch.inf))
            self.register_buffer(f"{side}_temperature", torch.full((count,), self.FIRST))
            self.register_buffer(f"{side}_slope", torch.zeros(count))

    def forward(self, batch: Batch) -> Values:
        image_rows, caption_rows = rows_of(batch)
        s = batch.images @ batch.texts.T
        i2t = self._values(s, batch.positive, "image", image_rows)
        return i2t, self._values(s.T, batch.positive.T, "text", caption_rows), None

    def _values(self, s: Tensor, positive: Tensor, side: str, rows: Tensor) -> Tensor:
        temperatures, slopes = getattr(self, f"{side}_temperature"), getattr(self, f"{side}_slope")
        temperature = temperatures[rows].to(s.dtype)
        away = s - positive_mean(s, positive)[:, None]
        kept = getattr(self, f"{side}_log_average")
        average, weights = moved(kept, rows, away.detach() / temperature[:, None], positive, self.GAMMA, self.training)
        pull = (weights * away).sum(1)
        value = temperature * (average + self.rho)
        if self.training:
            slope = average + self.rho - pull.detach() / temperature
            slope = 0.9 * slopes[rows] + 0.1 * slope.to(slopes.dtype).nan_to_num()
            slopes[rows] = slope
            temperatures[rows] = (temperatures[rows] - self.RATE * slope).clamp(self.LOW, self.HIGH)
        return counted(value + pull - pull.detach(), positive)


LOSS = ISogCLR
