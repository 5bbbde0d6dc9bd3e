"""The closed-form start: regularised canonical correlation between the features of two frozen encoders.

I images, T texts, dx and dy feature dimensions, k dimensions kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from varalign.canonical.covariance import BLOCK_ROWS, RunningCovariance
from varalign.evaluation.products import exact_products


@dataclass(frozen=True)
class ClosedForm:
    """Two linear maps from image features and text features into one space, and the settings of their fit.

    Attributes:
        image_map: (dx, k) float64, A.
        text_map: (dy, k) float64, B.
        image_mean: (dx,) float64, subtracted first.
        text_mean: (dy,) float64.
        singular_values: (k,) float64, the regularised canonical correlations, descending, in (0, 1].
        ridge: r of the images.
        power: p.
        text_ridge: r of the texts.
    """

    image_map: Tensor
    text_map: Tensor
    image_mean: Tensor
    text_mean: Tensor
    singular_values: Tensor
    ridge: float
    power: float
    text_ridge: float

    @property
    def dimensions(self) -> int:
        """k, the number of dimensions kept: as many as asked for, or the rank of the problem if that is lower."""
        return self.image_map.shape[1]

    def embed_images(self, image_features: Tensor) -> Tensor:
        """Image embeddings (n, k), float32 of unit length; a row equal to the mean has no direction and becomes 0."""
        return torch.nn.functional.normalize(self.projected_images(image_features), dim=1)

    def embed_texts(self, text_features: Tensor) -> Tensor:
        """Text embeddings (n, k), float32 of unit length; a row equal to the mean has no direction and becomes 0."""
        return torch.nn.functional.normalize(self.projected_texts(text_features), dim=1)

    def projected_images(self, image_features: Tensor) -> Tensor:
        """(n, k) float32 (x − mean) A, before the scaling to unit length."""
        return _projected(image_features, self.image_mean, self.image_map)

    def projected_texts(self, text_features: Tensor) -> Tensor:
        """(n, k) float32 (y − mean) B, before the scaling to unit length."""
        return _projected(text_features, self.text_mean, self.text_map)


def _projected(features: Tensor, mean: Tensor, linear_map: Tensor) -> Tensor:
    """(features − mean) · map: shifted in float64, multiplied in float32, block by block."""
    out = torch.empty(len(features), linear_map.shape[1], dtype=torch.float32, device=linear_map.device)
    narrow = linear_map.float()
    with exact_products():
        for start in range(0, len(features), BLOCK_ROWS):
            block = features[start : start + BLOCK_ROWS].to(mean.device, torch.float64)
            out[start : start + len(block)] = (block - mean).float() @ narrow
    return out


class Whitening:
    """Eigendecompositions of C_x and C_y, computed once and used for every ridge and power.

    C + r·mean(diag C)·I has the eigenvectors of C, so one decomposition per side serves all ridges. Each pair of ridges
    then needs one singular value decomposition of a (dx, dy) matrix.

    Args:
        covariance: of the pairs.

    Raises:
        ValueError: it has seen no pair.
    """

    def __init__(self, covariance: RunningCovariance) -> None:
        if covariance.count <= 0:
            raise ValueError("the covariance has seen no pairs: call update with features first")
        self.mean_x, self.mean_y = covariance.mean_x, covariance.mean_y
        self._values_x, self._vectors_x = torch.linalg.eigh(covariance.cov_x)
        self._values_y, self._vectors_y = torch.linalg.eigh(covariance.cov_y)
        self._cross = self._vectors_x.T @ covariance.cov_xy @ self._vectors_y
        self._rounding = covariance.rounding
        self._cache: tuple[tuple[float, float], tuple[_Side, Tensor, _Side]] | None = None

    def solve(self, *, ridge: float, power: float, dimensions: int, text_ridge: float | None = None) -> ClosedForm:
        """The linear maps under which the two sides correlate most.

        With C̃ = C + ridge·mean(diag C)·I on both sides, each with its own ridge, and
        C̃_x^(-1/2) C_xy C̃_y^(-1/2) = U S Vᵀ the maps are A = C̃_x^(-1/2) U_k S_k^power and B = C̃_y^(-1/2) V_k S_k^power.

        Args:
            ridge: at least 0; 1 doubles the mean variance of each side.
            power: 0 gives all kept directions equal weight, 1 weights them by their correlation; ½ lies between.
            dimensions: at least 1; at most the rank of the problem is kept.
            text_ridge: of the texts, at least 0; None: `ridge` on both sides. The side with more dimensions, or with
                less informative features, needs a larger ridge.

        Raises:
            ValueError: for settings outside these ranges.

        Source: Hotelling 1936; for two frozen encoders: Li et al., CSA, ICLR 2025.
        """
        text_ridge = ridge if text_ridge is None else text_ridge
        for name, value in (("ridge", ridge), ("text_ridge", text_ridge)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be at least 0 and finite, got {value}")
        if not math.isfinite(power):
            raise ValueError(f"power must be finite, got {power}")
        if dimensions < 1:
            raise ValueError(f"dimensions must be at least 1, got {dimensions}")
        (root_x, left), values, (root_y, right) = self._canonical(ridge, text_ridge)
        k = min(dimensions, len(values))
        scale = values[:k] ** power
        image_map = self._vectors_x @ (root_x[:, None] * left[:, :k])
        text_map = self._vectors_y @ (root_y[:, None] * right[:, :k])
        # The sign of each pair of directions is arbitrary. Making the largest entry of A's column positive gives the
        # same maps on every machine.
        signs = image_map.gather(0, image_map.abs().argmax(0, keepdim=True)).sign() if k else image_map[:1]
        maps = image_map * signs * scale, text_map * signs * scale
        return ClosedForm(
            *maps,
            self.mean_x,
            self.mean_y,
            values[:k],
            ridge=float(ridge),
            power=float(power),
            text_ridge=float(text_ridge),
        )

    def _canonical(self, ridge: float, text_ridge: float) -> tuple[_Side, Tensor, _Side]:
        """The roots of C̃_x^(-1/2) and U, S, and those of C̃_y^(-1/2) and V, in the bases of eigenvectors."""
        if self._cache is not None and self._cache[0] == (ridge, text_ridge):
            return self._cache[1]
        root_x = _inverse_root(self._values_x, ridge, self._rounding)
        root_y = _inverse_root(self._values_y, text_ridge, self._rounding)
        u, s, v = _svd(root_x[:, None] * self._cross * root_y, self._rounding)
        # Directions without correlation are rounding noise; power 0 would give them as much weight as the first one.
        rank = int((s > max(self._cross.shape) * self._rounding * s[0].clamp_min(1e-300)).sum()) if len(s) else 0
        self._cache = ((ridge, text_ridge), ((root_x, u[:, :rank]), s[:rank].clamp(max=1.0), (root_y, v[:, :rank])))
        return self._cache[1]


_Side = tuple[Tensor, Tensor]


def _svd(matrix: Tensor, rounding: float) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V of a float64 matrix.

    Where its entries are known to single precision only, by the eigenvectors of the smaller of M Mᵀ and Mᵀ M, whose
    squared singular values keep all of these digits: three times as fast.
    """
    if rounding < 1e-8 or not matrix.numel():
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u, s, vh.T
    if matrix.shape[0] > matrix.shape[1]:
        v, s, u = _svd(matrix.T, rounding)
        return u, s, v
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    s, u = values.flip(0).clamp_min(0).sqrt(), vectors.flip(1)
    return u, s, (matrix.T @ u) / torch.where(s > 0, s, torch.ones_like(s))


def _inverse_root(values: Tensor, ridge: float, rounding: float) -> Tensor:
    """(λ + r·mean λ)^(-1/2), and 0 where the sum is only rounding error (rank-deficient or constant features)."""
    loaded = values.clamp(min=0) + ridge * values.clamp(min=0).mean()
    limit = len(values) * rounding * loaded.max()
    return torch.where(loaded > limit, loaded.clamp(min=1e-300).rsqrt(), torch.zeros_like(loaded))
