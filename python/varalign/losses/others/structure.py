"""STRUCTURE: neighbours in the towers' feature spaces stay neighbours in the shared space."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from varalign.losses.objective import Batch, Objective, Values, both, infonce

TEMPERATURE = 0.05  # of the neighbourhoods


class Structure(Objective):
    """The plain loss plus λ · the divergence of in-modal neighbourhoods before and after the heads, both modalities.

    A neighbourhood is the softmax of the centred unit vectors' similarities at the temperature 0.05. The divergence is
    Jensen's and Shannon's, a mean over rows. Of the paper's levels (powers of the neighbourhoods) the first is taken.

    Args:
        strength: λ, 0 or more.

    Source: Gröger et al. 2025.
    """

    strength_range = (0.0, 1e6)

    def __init__(self, strength: float = 10.0) -> None:
        super().__init__()
        self.factor = strength

    def forward(self, batch: Batch) -> Values:
        if batch.image_features is None or batch.text_features is None:
            raise ValueError("structure needs the towers' features: pass image_features and text_features to `see`")
        i2t, t2i, _ = both(infonce, batch)
        added = structure(batch.image_features.detach(), batch.images)
        added = added + structure(batch.text_features.detach(), batch.texts)
        return i2t, t2i, self.factor * added


def structure(before: Tensor, after: Tensor) -> Tensor:
    """() the divergence of two spaces of the same things: (n, d) features before, (n, D) embeddings after."""
    p, q = _neighbours(before.to(after.dtype)), _neighbours(after)
    middle = ((p + q) / 2).clamp_min(1e-12).log()
    divergence = p * (p.clamp_min(1e-12).log() - middle) + q * (q.clamp_min(1e-12).log() - middle)
    return divergence.sum(1).mean() / 2


def _neighbours(vectors: Tensor) -> Tensor:
    unit = normalize(vectors, dim=1)
    unit = normalize(unit - unit.mean(0), dim=1)
    return torch.softmax(unit @ unit.T / TEMPERATURE, dim=1)


LOSS = Structure
