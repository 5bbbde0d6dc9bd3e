"""Mixup of features: training pairs made by mixing two pairs of a step (FuseMix).

B images of a step, D feature dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from varalign.inputs.sources import Rows


@dataclass(frozen=True)
class FeatureMixup:
    """The partner and the share of each pair of a step, the same for images and texts.

    Attributes:
        partner: (B,) places in the batch; one cycle through all of it, so that no pair is its own partner.
        share: (B,) float32 within [½, 1] of the pair itself, so that the statistics of a mixed pair are mostly its own.

    Source: Vouitsis et al., FuseMix, CVPR 2024; Zhang et al., mixup, ICLR 2018.
    """

    partner: Rows
    share: np.ndarray[tuple[int], np.dtype[np.float32]]

    @classmethod
    def draw(cls, image_ids: Rows, alpha: float, *, seed: int, epoch: int) -> FeatureMixup:
        """Partners and shares of a batch, a pure function of seed, epoch and the batch.

        Args:
            image_ids: (B,) of the batch, each once.
            alpha: above 0, of the symmetric beta distribution of shares; 1 is uniform, smaller values mix less.
            seed, epoch: of the draw.
        """
        generator = np.random.default_rng([seed, epoch, *image_ids[:2].tolist()])
        order = generator.permutation(len(image_ids))
        partner = np.empty(len(image_ids), np.int64)
        partner[order] = np.roll(order, 1)
        share = generator.beta(alpha, alpha, len(image_ids))
        return cls(partner, np.maximum(share, 1 - share).astype(np.float32))

    def __call__(self, values: Tensor) -> Tensor:
        """Mixed values of a step's pairs, (B, D) features or (B,) weights."""
        share = torch.from_numpy(self.share).to(values.device, non_blocking=True)
        partner = torch.from_numpy(self.partner).to(values.device, non_blocking=True)
        share = share.view(-1, *[1] * (values.ndim - 1)).to(values.dtype)
        return share * values + (1 - share) * values[partner]
