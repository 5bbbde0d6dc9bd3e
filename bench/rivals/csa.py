"""CSA: canonical correlation; the inner product of the first s directions, each weighted by its correlation.

similarity = Σ_i ρ_i a_i b_i / (‖a‖ ‖b‖), with a and b the canonical variables, unweighted, and ρ their correlations.
The paper has no ridge, which fewer pairs than dimensions need: both are given.

Source: Li, Chinchali and Topcu, CSA, ICLR 2025.
"""

from __future__ import annotations

from collections.abc import Iterator

from drawn import Draw
from varalign.canonical.maps import ClosedForm

from rivals import Model, whitening_of

DIMENSIONS = (16, 32, 64, 128, 256)
RIDGES = {"CSA, no ridge": (1e-6,), "CSA, ridge": (0.1, 0.3, 1.0, 3.0, 10.0)}


def _model(name: str, maps: ClosedForm) -> Model:
    correlations = maps.singular_values.float()
    return Model(name, lambda x: maps.embed_images(x) * correlations, maps.embed_texts)


def models(draw: Draw) -> Iterator[Model]:
    """Every ridge with every s."""
    whitening = whitening_of(draw)
    for name, ridges in RIDGES.items():
        for ridge in ridges:
            for s in DIMENSIONS:
                yield _model(name, whitening.solve(ridge=ridge, power=0.0, dimensions=s))
