"""Mixup of features (FuseMix): each training pair is a mixture of two pairs of the step.

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
    """The mixing partner and the share of each pair of a step, the same for images and texts.

    Attributes:
        partner: (B,) places in the batch; they form one cycle, so no pair is its own partner.
        share: (B,) float32 in [½, 1], weight of the pair itself; its statistics are therefore mostly its own.

    Source: Vouitsis et al., FuseMix, CVPR 2024; Zhang et al., mixup, ICLR 2018.
    """

    partner: Rows
    share: np.ndarray[tuple[int], np.dtype[np.float32]]

    @classmethod
    def draw(cls, image_ids: Rows, alpha: float, *, seed: int, epoch: int) -> FeatureMixup:
        """Partners and shares of a batch, a pure function of seed, epoch and the batch.

        Args:
            image_ids: (B,) of the batch, without repetitions.
            alpha: parameter of the symmetric beta distribution of shares, above 0; 1 is uniform, smaller values mix
                less.
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
