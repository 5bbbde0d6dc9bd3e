"""CyCLIP: penalises differences between the geometries of the two modalities."""

from __future__ import annotations

from varalign.losses.objective import Batch, Objective, Values, both, infonce


class CyCLIP(Objective):
    """The plain loss plus λ · (mean (s_ij - s_ji)² + mean (u_i·u_j - v_i·v_j)²), v_i the mean text of image i.

    Args:
        strength: λ, 0 or more, for both terms (cross-modal and in-modal consistency).

    Source: Goel et al. 2022.
    """

    strength_range = (0.0, 1e6)

    def __init__(self, strength: float = 0.25) -> None:
        super().__init__()
        self.factor = strength

    def forward(self, batch: Batch) -> Values:
        i2t, t2i, _ = both(infonce, batch)
        images, texts = batch.images, batch.share @ batch.texts
        cross = images @ texts.T
        within = images @ images.T - texts @ texts.T
        return i2t, t2i, self.factor * ((cross - cross.T).square().mean() + within.square().mean())


LOSS = CyCLIP
