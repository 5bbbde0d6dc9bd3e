"""Mixup of features: training pairs between the pairs that there are (FuseMix).

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
    """Which pair of a step each pair is mixed with, and how much of itself it keeps: the same on both sides.

    Attributes:
        partner: (B,) places in the batch; a cycle through a shuffle of it, so that no pair is its own partner.
        share: (B,) float32 within [½, 1]: the pair stays the larger part, and pair statistics stay its own.

    Source: Vouitsis et al., FuseMix, CVPR 2024; Zhang et al., mixup, ICLR 2018.
    """

    partner: Rows
    share: np.ndarray[tuple[int], np.dtype[np.float32]]

    @classmethod
    def draw(cls, image_ids: Rows, alpha: float, *, seed: int, epoch: int) -> FeatureMixup:
        """Partners and shares of a batch, a pure function of seed, epoch and the batch.

        Args:
            image_ids: (B,) of the batch, each once.
            alpha: above 0, of the symmetric beta distribution of shares; 1 is uniform, smaller is nearer to no mixing.
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
