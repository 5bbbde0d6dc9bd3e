"""Soft targets: part of the target is the similarity within the query's own modality."""

from __future__ import annotations

import torch
from torch import Tensor

from varalign.losses.objective import Batch, Objective, Values, counted


class SoftTargets(Objective):
    """Cross-entropy with (1 - λ) · positives + λ · softmax of the similarities within the query's own modality.

    An image's target over texts is its mean similarity to the texts' images, a text's target over images its mean
    similarity to the images' texts. Targets carry no gradient.

    Args:
        strength: λ, 0 (the plain loss) to 1.

    Source: Gao et al. 2023 (SoftCLIP).
    """

    strength_range = (0.0, 1.0)

    def __init__(self, strength: float = 0.2) -> None:
        super().__init__()
        self.mix = strength

    def forward(self, batch: Batch) -> Values:
        scale = batch.logit_scale.detach()
        images, texts = batch.images.detach(), batch.texts.detach()
        like_images = (scale * (images @ images.T) @ batch.text_share).softmax(1)
        like_texts = (scale * (texts @ texts.T) @ batch.share.T).softmax(1)
        i2t = self._values(batch.logits, batch.positive, like_images)
        t2i = self._values(batch.logits.T, batch.positive.T, like_texts)
        return i2t, t2i, None

    def _values(self, logits: Tensor, positive: Tensor, like: Tensor) -> Tensor:
        hard = positive.to(logits.dtype) / positive.sum(1, keepdim=True).clamp_min(1)
        target = (1 - self.mix) * hard + self.mix * like
        return counted(torch.logsumexp(logits, 1) - (target * logits).sum(1), positive)


LOSS = SoftTargets
