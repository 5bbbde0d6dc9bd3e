"""Linear heads from random weights: the contrastive loss alone, and with STRUCTURE's term of kept neighbourhoods.

Source: Gröger et al., STRUCTURE, 2025 (`varalign.losses.others.structure`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from drawn import Draw
from torch import Tensor
from varalign.losses.others.structure import structure

from rivals import Model
from rivals.heads import Heads, trained

RATES = (1e-3, 3e-3)
STRENGTHS = (10.0, 100.0)


def models(draw: Draw) -> Iterator[Model]:
    """Every rate, without the term and with every strength of it."""
    for lr in RATES:
        yield trained("linear heads, contrastive", Heads(draw, draw.seed), draw, lambda *_: torch.zeros(()), lr=lr)
        for strength in STRENGTHS:

            def term(x: Tensor, y: Tensor, u: Tensor, v: Tensor, strength: float = strength) -> Tensor:
                return strength * (structure(x, u) + structure(y, v))

            yield trained("linear heads, STRUCTURE", Heads(draw, draw.seed), draw, term, lr=lr)
