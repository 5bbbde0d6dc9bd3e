"""How much an ensemble's members count beside the closed form: chosen on dev whenever the model is looked at."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from varalign.canonical.choice import DEV_IMAGES
from varalign.canonical.ensemble import EnsembleHead
from varalign.encoders.dual_encoder import MAX_LOGIT_SCALE
from varalign.training.build import Parts
from varalign.training.start_features import PairFeatures, all_pairs

SHARES = (0.0, 0.25, 0.5, 0.75)
SCALES = tuple(float(f"{MAX_LOGIT_SCALE ** (step / 24):.4g}") for step in range(25))


class Fusion:
    """The choice of an ensemble's share and logit scale by the symmetric loss of dev pairs.

    The members never stand alone: at a share of ¾ the closed form still steadies them, and 0 is the closed form itself,
    so that no run ends below it on dev.

    Args:
        parts: data and sources; the towers are frozen, so dev features are read once.
        batch_size: images scored against each other, the run's own.
    """

    def __init__(self, parts: Parts, batch_size: int) -> None:
        self.model, self.batch_size = parts.model, batch_size
        rows = parts.data.rows("dev")
        if len(rows) > DEV_IMAGES:
            rows = rows[np.linspace(0, len(rows) - 1, DEV_IMAGES).astype(np.int64)]
        self._dev: PairFeatures = all_pairs(parts, rows, training=False)
        owner = self._dev.owner
        self._first = torch.searchsorted(owner, torch.arange(len(rows), device=owner.device))

    @torch.no_grad()
    def choose(self) -> float:
        """Set share and logit scale of both heads to the best of the grid on dev; returns the share."""
        image_head, text_head = self.model.image_head, self.model.text_head
        assert isinstance(image_head, EnsembleHead) and isinstance(text_head, EnsembleHead)
        was_training = self.model.training
        self.model.eval()
        images = image_head.parts(self._dev.image_features)
        texts = text_head.parts(self._dev.text_features[self._first])
        self.model.train(was_training)
        closed, members = (self._similarities(u, v) for u, v in zip(images, texts, strict=True))
        losses = torch.stack(
            [
                torch.stack([_loss(torch.lerp(closed, members, share), scale) for scale in SCALES])
                for share in SHARES
            ]
        )  # fmt: skip
        best = int(losses.argmin())  # the host waits for the GPU here, once an epoch
        share, scale = SHARES[best // len(SCALES)], SCALES[best % len(SCALES)]
        for head in (image_head, text_head):
            head.share.fill_(share)
            head.logit_scale.fill_(scale)
        return share

    def _similarities(self, images: Tensor, texts: Tensor) -> Tensor:
        """(batches, N, N): consecutive batches, a last incomplete one left out unless it is the only one."""
        size = min(self.batch_size, len(images))
        whole = len(images) // size * size
        return images[:whole].unflatten(0, (-1, size)) @ texts[:whole].unflatten(0, (-1, size)).transpose(1, 2)


def _loss(similarities: Tensor, scale: float) -> Tensor:
    """() mean symmetric loss of pairs on the diagonals of (batches, N, N)."""
    z = scale * similarities
    own = z.diagonal(dim1=1, dim2=2)
    return (z.logsumexp(1) + z.logsumexp(2)).mean() / 2 - own.mean()
