"""ASIF: an image or a text is its similarities to the training images or texts, only the k largest, raised to a power.

The anchor of a training image on the side of the texts is the mean of its captions.

Source: Norelli et al., ASIF, NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from drawn import Draw
from torch import Tensor
from torch.nn.functional import normalize

from rivals import Model

KEPT = (10, 25, 50, 100, 200, 400, 800)
POWERS = (1, 2, 4, 8)


def relative(features: Tensor, anchors: Tensor, mean: Tensor, kept: int, power: int) -> Tensor:
    """(n, A) unit vectors: the cosines to the (A, d) anchors, all but the largest set to 0."""
    cosines = normalize(features - mean, dim=1) @ anchors.T
    if kept < len(anchors):
        cosines = torch.where(cosines >= cosines.topk(kept, dim=1).values[:, -1:], cosines, 0.0)
    return normalize(cosines.clamp_min(0).pow(power), dim=1)


def models(draw: Draw) -> Iterator[Model]:
    """Every k and power, on raw and on centred features."""
    x, own = torch.unique(draw.pair_x, dim=0, return_inverse=True)
    counts = torch.bincount(own)[:, None]
    y = torch.zeros(len(x), draw.pair_y.shape[1]).index_add_(0, own, draw.pair_y) / counts
    for centred in (0.0, 1.0):
        means = centred * x.mean(0), centred * y.mean(0)
        anchors = [normalize(side - mean, dim=1) for side, mean in zip((x, y), means, strict=True)]
        for kept in (k for k in KEPT if k <= len(x)):
            for power in POWERS:
                images, texts = (
                    partial(relative, anchors=side, mean=mean, kept=kept, power=power)
                    for side, mean in zip(anchors, means, strict=True)
                )
                yield Model("ASIF", images, texts)
