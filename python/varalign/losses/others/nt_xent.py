"""NT-Xent with the negatives of both modalities: an image's negatives are the other texts and the other images."""

from __future__ import annotations

import torch
from torch import Tensor

from varalign.losses.objective import Batch, Objective, Values, counted, positive_mean


class NTXent(Objective):
    """LSE over all texts and the images that share no text with it, minus the mean positive; for texts the same.

    Source: Chen et al. 2020 (SimCLR), with an image and its caption as the two views.
    """

    def forward(self, batch: Batch) -> Values:
        z, scale = batch.logits, batch.logit_scale
        positive = batch.positive
        # Two images that share a text are no negatives of each other, nor two texts that share an image.
        i2t = _values(z, scale * (batch.images @ batch.images.T), positive)
        t2i = _values(z.T, scale * (batch.texts @ batch.texts.T), positive.T)
        return i2t, t2i, None


def _values(z: Tensor, own: Tensor, positive: Tensor) -> Tensor:
    shared = positive.to(z.dtype)
    same = (shared @ shared.T) > 0
    same = same | torch.eye(len(z), dtype=torch.bool, device=z.device)
    together = torch.cat([z, own.masked_fill(same, -1e30)], 1)
    return counted(torch.logsumexp(together, 1) - positive_mean(z, positive), positive)


LOSS = NTXent
