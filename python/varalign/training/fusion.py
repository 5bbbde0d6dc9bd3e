"""Chooses on dev, before each evaluation, the share of an ensemble's members in the similarity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varalign.encoders.dual_encoder import MAX_LOGIT_SCALE, DualEncoder
from varalign.encoders.ensemble import EnsembleHead
from varalign.encoders.voices_head import VoicesHead
from varalign.inputs.pair_features import dev_pairs, first_pairs
from varalign.inputs.parts import Parts
from varalign.losses.pair_loss import Ids, pair_losses
from varalign.losses.relation import positive_pairs

SHARES = (0.0, 0.25, 0.5, 0.75)
SCALES = tuple(float(f"{MAX_LOGIT_SCALE ** (step / 24):.4g}") for step in range(25))


class Fusion:
    """The choice of an ensemble's share and logit scale by the symmetric loss of dev pairs.

    The share is at most ¾. Share 0 is the closed form alone; a larger share is chosen only if its loss is lower by more
    than twice the standard error of the pairs' differences, so that with few dev pairs chance does not decide.

    Args:
        model: with ensemble heads.
        image_features: (N, Dx) of dev. text_features: (N, Dy) of one caption of each image.
        batch_size: number of images that are scored against each other, as in the run.
        ids: of images and captions, where a caption belongs to several images.
    """

    def __init__(
        self,
        model: DualEncoder,
        image_features: Tensor,
        text_features: Tensor,
        batch_size: int,
        ids: Ids | None = None,
    ) -> None:
        self.model, self.batch_size = model, batch_size
        self.image_features, self.text_features = image_features, text_features
        self._positive = None if ids is None else positive_pairs(*(self._batches(part) for part in ids))

    @staticmethod
    def of(parts: Parts, batch_size: int) -> Fusion:
        """For a run's dev split and the first caption of each image, at most `DEV_IMAGES` images.

        Args:
            parts: model, data and sources; the towers are frozen, so dev features are read once.
            batch_size: as for the class.
        """
        dev = dev_pairs(parts)
        images, texts, ids = first_pairs(parts.data, dev)
        return Fusion(parts.model, dev.image_features[images], dev.text_features[texts], batch_size, ids)

    @torch.no_grad()
    def choose(self, *, trained: bool = True) -> float:
        """Set share and logit scale of both heads to the best of the grid on dev; returns the share.

        Args:
            trained: whether the members have been trained; if not, the share is 0 and only the scale is chosen.
        """
        image_head, text_head = self.model.image_head, self.model.text_head
        assert isinstance(image_head, EnsembleHead | VoicesHead) and isinstance(text_head, EnsembleHead | VoicesHead)
        was_training = self.model.training
        self.model.eval()
        images = image_head.parts(self.image_features)
        texts = text_head.parts(self.text_features)
        self.model.train(was_training)
        closed, members = (self._similarities(u, v) for u, v in zip(images, texts, strict=True))
        best: tuple[float, float, Tensor] | None = None
        for share in SHARES if trained else SHARES[:1]:
            mixed = torch.lerp(closed, members, share)
            means = torch.stack([pair_losses(mixed, scale, self._positive).mean() for scale in SCALES])
            scale = SCALES[int(means.argmin())]  # the host waits for the GPU here, once per share and evaluation
            losses = pair_losses(mixed, scale, self._positive).flatten()
            if best is None or _clearly_lower(losses, best[2], kept=best[0]):
                best = (share, scale, losses)
        assert best is not None
        for head in (image_head, text_head):
            head.share.fill_(best[0])
            head.logit_scale.fill_(best[1])
        return best[0]

    def _similarities(self, images: Tensor, texts: Tensor) -> Tensor:
        """(batches, N, N) of consecutive batches."""
        return self._batches(images) @ self._batches(texts).transpose(1, 2)

    def _batches(self, rows: Tensor) -> Tensor:
        """(batches, N, ..) consecutive rows, without the last incomplete batch unless it is the only one."""
        size = min(self.batch_size, len(rows))
        return rows[: len(rows) // size * size].unflatten(0, (-1, size))


def _clearly_lower(ours: Tensor, theirs: Tensor, *, kept: float) -> bool:
    """Whether losses `ours` (n,) have the lower mean; if `theirs` have share 0, by more than two standard errors."""
    gain = (theirs - ours).double()
    margin = 0.0 if kept > 0 else float(2 * gain.std() / math.sqrt(len(gain))) if len(gain) > 1 else math.inf
    return float(gain.mean()) > margin
