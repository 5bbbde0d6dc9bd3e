"""Counts by float32 tiles against the definition in float64, where similarities lie nearer than float32 can tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from varalign.evaluation import smaller
from varalign.evaluation.retrieval import ranks


def oracle(images: torch.Tensor, texts: torch.Tensor, owner: np.ndarray) -> tuple[list[int], list[int]]:
    """Ranks from every similarity in float64, rounded to float32, ties and NaN before the right one."""
    u, v = images.double().numpy(), texts.double().numpy()
    table = np.array([[(a * b).sum() for b in v] for a in u]).astype(np.float32)
    right = owner[None] == np.arange(len(u))[:, None]
    found = []
    for similarity, mask in ((table, right), (table.T, right.T)):
        best = np.where(mask & np.isfinite(similarity), similarity, -np.inf).max(1)
        before = (~mask & ~(similarity < best[:, None])).sum(1)
        before[np.isinf(best)] = similarity.shape[1]
        before[~mask.any(1)] = -1
        found.append(before.tolist())
    return found[0], found[1]


def crowded(dtype: torch.dtype, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Unit vectors, most of them within a few float32 steps of four centres: nearly all similarities nearly tie."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, width, generator=generator, dtype=torch.float64)

    def near(count: int) -> torch.Tensor:
        rows = centres[torch.randint(4, (count,), generator=generator)]
        away = torch.randn(count, width, generator=generator, dtype=torch.float64)
        size = 10.0 ** -torch.randint(5, 10, (count, 1), generator=generator)
        return torch.nn.functional.normalize(rows + size * away, dim=1).to(dtype)

    return near(37), near(90), np.random.default_rng(seed).integers(0, 37, 90)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("width", [3, 64, 401])
@pytest.mark.parametrize("most_near", [smaller.MOST_NEAR, 1.0])
def test_near_ties_are_decided_in_float64(
    dtype: torch.dtype, width: int, most_near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles with many near candidates are computed in float64 as a whole, or one by one where that is not allowed."""
    monkeypatch.setattr(smaller, "MOST_NEAR", most_near)
    monkeypatch.setitem(smaller.TILE, "cpu", (10, 16))
    for seed in range(3):
        images, texts, owner = crowded(dtype, width, seed)
        assert [side.tolist() for side in ranks(images, texts, owner)] == list(oracle(images, texts, owner))


def test_a_float32_product_of_these_is_wrong() -> None:
    """So the test above tests something: in float32 alone other candidates stand before."""
    images, texts, owner = crowded(torch.float32, 64, 0)
    similarity = images @ texts.T
    best = similarity[owner, range(90)]
    assert (similarity >= best).sum(0).sub(1).tolist() != oracle(images, texts, owner)[1]


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e10, 1e17])
def test_any_length_of_the_vectors(scale: float) -> None:
    images, texts, owner = crowded(torch.float64, 32, 1)
    images, texts = (images * scale).float(), texts.float()
    images[5, 3], texts[7] = torch.nan, torch.inf
    assert [side.tolist() for side in ranks(images, texts, owner)] == list(oracle(images, texts, owner))


def test_bounds_hold_for_every_float32_product() -> None:
    """The largest error of 250,000 products, among them sums with cancellation, stays within the bound."""
    generator = torch.Generator().manual_seed(2)
    for width in (1, 7, 500):
        u, v = (
            torch.randn(500, width, generator=generator) * 10.0 ** torch.randint(-3, 3, (width,), generator=generator)
            for _ in range(2)
        )
        exact = u.double() @ v.double().T
        norms = u.double().norm(dim=1)
        bounds = smaller._Bounds.of(exact[:, 0].float(), norms, float(v.double().norm(dim=1).max()), width)
        reach = torch.from_numpy(bounds.high).double() - exact[:, 0]
        assert ((u @ v.T).double() - exact).abs().le(reach[:, None]).all()


def test_tiles_of_any_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.nn.functional.normalize(torch.randn(700, 24, generator=generator), dim=1)
    texts = torch.nn.functional.normalize(torch.randn(9000, 24, generator=generator), dim=1)
    owner = torch.randint(0, 650, (9000,), generator=generator)
    whole = ranks(images, texts, owner)
    assert [side.tolist() for side in whole] == [side.tolist() for side in ranks(images, texts, owner, chunk=99)]
    monkeypatch.setattr(smaller, "LARGEST_NORM", 0.0)  # every tile in float64
    assert [side.tolist() for side in whole] == [side.tolist() for side in ranks(images, texts, owner)]
    assert (whole[0][650:] == -1).all()
