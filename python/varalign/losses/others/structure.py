"""STRUCTURE: neighbours in the towers' feature spaces stay neighbours in the shared space."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from varalign.losses.objective import Batch, Objective, Values, both, infonce


class Structure(Objective):
    """The plain loss plus λ · the divergence of in-modal neighbourhoods before and after the heads, both modalities.

    A neighbourhood is the softmax of the centred unit vectors' similarities at the temperature 0.05; its l-th power is
    the one reached in l steps, and level l counts 1/l. The divergence is Jensen's and Shannon's, a mean over rows.

    Args:
        strength: λ, 0 or more.
        levels: L, at least 1.

    Source: Gröger et al. 2025.
    """

    strength_range = (0.0, 1e6)

    def __init__(self, strength: float = 10.0, levels: int = 1) -> None:
        super().__init__()
        self.factor, self.levels = strength, levels

    def forward(self, batch: Batch) -> Values:
        if batch.image_features is None or batch.text_features is None:
            raise ValueError("structure needs the towers' features: pass image_features and text_features to `see`")
        i2t, t2i, _ = both(infonce, batch)
        added = structure(batch.image_features.detach(), batch.images, self.levels)
        added = added + structure(batch.text_features.detach(), batch.texts, self.levels)
        return i2t, t2i, self.factor * added


def structure(before: Tensor, after: Tensor, levels: int = 1, temperature: float = 0.05) -> Tensor:
    """() the divergence of two spaces of the same things.

    Args:
        before: (n, d) features. after: (n, D) embeddings.
        levels: powers of the neighbourhoods compared.
        temperature: of their softmax.
    """
    p, q = _neighbours(before.to(after.dtype), temperature), _neighbours(after, temperature)
    reached_p, reached_q, total = p, q, after.new_zeros(())
    for level in range(1, levels + 1):
        if level > 1:
            reached_p, reached_q = reached_p @ p, reached_q @ q
        middle = ((reached_p + reached_q) / 2).clamp_min(1e-12).log()
        divergence = reached_p * (reached_p.clamp_min(1e-12).log() - middle)
        divergence = divergence + reached_q * (reached_q.clamp_min(1e-12).log() - middle)
        total = total + divergence.sum(1).mean() / 2 / level
    return total / levels


def _neighbours(vectors: Tensor, temperature: float) -> Tensor:
    unit = normalize(vectors, dim=1)
    unit = normalize(unit - unit.mean(0), dim=1)
    return torch.softmax(unit @ unit.T / temperature, dim=1)


LOSS = Structure
