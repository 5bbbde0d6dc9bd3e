"""Ridges that no held-out pair chooses: the shrinkage of each side's covariance by Ledoit and Wolf, and by OAS.

(1 − δ) C + δ mean(diag C) I is, up to a factor that cosines do not see, our C + r mean(diag C) I with r = δ / (1 − δ).

Source: Ledoit and Wolf 2004; Chen et al. 2010; δ by scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from drawn import Draw

from rivals import Model, model_of, whitening_of

POWERS = (0.25, 0.5, 0.75, 1.0)
DIMENSIONS = (128, 256, 384)


def models(draw: Draw) -> Iterator[Model]:
    """Both shrinkages; dev chooses power and dimensions."""
    from sklearn.covariance import ledoit_wolf_shrinkage, oas

    whitening = whitening_of(draw)
    sides = torch.unique(draw.pair_x, dim=0).double().numpy(), draw.pair_y.double().numpy()
    for name, shrinkage in (("Ledoit-Wolf ridge", ledoit_wolf_shrinkage), ("OAS ridge", lambda side: oas(side)[1])):
        ridge, text_ridge = (float(delta / max(1 - delta, 1e-9)) for delta in map(shrinkage, sides))
        for power in POWERS:
            for dimensions in DIMENSIONS:
                maps = whitening.solve(ridge=ridge, text_ridge=text_ridge, power=power, dimensions=dimensions)
                yield model_of(name, maps)
