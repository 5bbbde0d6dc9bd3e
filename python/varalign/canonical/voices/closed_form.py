"""The voice of the closed form: regularised canonical correlation of the features (see `varalign.canonical.maps`).

B batch, F features, k dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from varalign.canonical.choice import FEW
from varalign.canonical.covariance import RunningCovariance
from varalign.canonical.maps import ClosedForm, Whitening
from varalign.canonical.voices.voice_pairs import Pairs

NAME = "closed-form"


class LinearSide(nn.Module):
    """One side: normalise((x − mean) · map), of the first F columns of its input.

    Args:
        features: F.
        dimensions: k.
    """

    mean: Tensor
    map: Tensor

    def __init__(self, features: int, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("map", torch.zeros(features, dimensions))

    @property
    def sizes(self) -> dict[str, int]:
        """The arguments that build another one of these."""
        return {"features": len(self.mean), "dimensions": self.map.shape[1]}

    def forward(self, features: Tensor) -> Tensor:
        """(B, at least F) to (B, k) unit vectors."""
        centred = features[:, : len(self.mean)].to(self.mean.dtype) - self.mean
        return nn.functional.normalize((centred @ self.map).float(), dim=-1)


def side_of(sizes: Mapping[str, int]) -> LinearSide:
    """A side of these sizes, its tensors 0."""
    return LinearSide(**sizes)


class Fit:
    """The closed form of some pairs, to be solved for any setting."""

    grid = FEW

    def __init__(self, pairs: Pairs, *, seed: int = 0, pool: Pairs | None = None) -> None:
        width = pairs.texts.shape[1] - pairs.lexical
        covariance = RunningCovariance(pairs.images.shape[1], width, pairs.images.device)
        self._width = width
        for part in pairs.chunks():
            covariance.update_owned(*self.lifted(part), part.owner, part.weights)
        self.covariance = covariance
        self.whitening = Whitening(covariance)

    def lifted(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """What the linear maps of `whitening` take of other pairs."""
        return pairs.images, pairs.texts[:, : self._width]

    def sides(self, found: ClosedForm) -> tuple[nn.Module, nn.Module]:
        """The image side and the text side of a solution."""
        made = []
        for mean, linear_map in ((found.image_mean, found.image_map), (found.text_mean, found.text_map)):
            side = LinearSide(*linear_map.shape).to(linear_map.device)
            side.mean.copy_(mean)
            side.map.copy_(linear_map)
            made.append(side)
        return made[0], made[1]
