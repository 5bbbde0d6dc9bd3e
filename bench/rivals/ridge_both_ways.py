"""Ridge regression of texts on images and of images on texts: the mean of the cosines in the two feature spaces.

Source: the usual baseline; both directions together halve its hubs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from drawn import Draw
from torch import Tensor
from torch.nn.functional import normalize
from varalign.canonical import RunningCovariance

from rivals import Model

RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def _solved(covariance: Tensor, cross: Tensor, ridge: float) -> Tensor:
    loaded = covariance + ridge * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)
    return torch.linalg.solve(loaded, cross).float()


def models(draw: Draw) -> Iterator[Model]:
    """Every ridge of the images with every ridge of the texts."""
    moments = RunningCovariance(draw.pair_x.shape[1], draw.pair_y.shape[1])
    moments.update(draw.pair_x, draw.pair_y)
    mean_x, mean_y = moments.mean_x.float(), moments.mean_y.float()
    to_y = {ridge: _solved(moments.cov_x, moments.cov_xy, ridge) for ridge in RIDGES}
    to_x = {ridge: _solved(moments.cov_y, moments.cov_xy.T, ridge) for ridge in RIDGES}

    def both(own: Tensor, other: Tensor) -> Tensor:
        return torch.cat([normalize(own, dim=1), normalize(other, dim=1)], dim=1) / 2**0.5

    for forward in to_y.values():
        for back in to_x.values():
            yield Model(
                "ridge both ways",
                lambda x, forward=forward: both((x - mean_x) @ forward, x - mean_x),  # type: ignore[misc]
                lambda y, back=back: both(y - mean_y, (y - mean_y) @ back),  # type: ignore[misc]
            )
