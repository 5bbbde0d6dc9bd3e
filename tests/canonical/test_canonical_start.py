"""The closed form against slow, literal algebra, on odd features, and its choice on dev."""

from __future__ import annotations

import pytest
import torch
from varalign.canonical import (
    Grid,
    RunningCovariance,
    Whitening,
    choose_settings,
    mean_recall_at_1,
    negative_loss,
)
from varalign.losses.pair_loss import pair_losses


def latent(n: int, dx: int = 12, dy: int = 9, k: int = 5, noise: float = 0.3, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, k, generator=g)
    mix = torch.Generator().manual_seed(99)
    a, b = torch.randn(k, dx, generator=mix), torch.randn(k, dy, generator=mix)
    x = z @ a + noise * torch.randn(n, dx, generator=g)
    y = z @ b + noise * torch.randn(n, dy, generator=g)
    return x, y


def covariance_of(x: torch.Tensor, y: torch.Tensor) -> RunningCovariance:
    running = RunningCovariance(x.shape[1], y.shape[1])
    running.update(x, y)
    return running


def inverse_root(c: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(c)
    return vectors @ torch.diag(values**-0.5) @ vectors.T


@pytest.mark.parametrize("ridge,text_ridge,power", [(0.1, None, 0.0), (1.0, 0.2, 0.5), (3.0, 10.0, 1.0)])
def test_maps_are_those_of_the_definition(ridge, text_ridge, power):
    x, y = (t.double() for t in latent(400))
    running = covariance_of(x, y)
    found = Whitening(running).solve(ridge=ridge, text_ridge=text_ridge, power=power, dimensions=4)
    text_ridge = ridge if text_ridge is None else text_ridge
    assert found.text_ridge == text_ridge
    cx, cy = running.cov_x, running.cov_y
    wx = inverse_root(cx + ridge * cx.diagonal().mean() * torch.eye(12))
    wy = inverse_root(cy + text_ridge * cy.diagonal().mean() * torch.eye(9))
    u, s, vh = torch.linalg.svd(wx @ running.cov_xy @ wy)
    a, b = wx @ u[:, :4] * s[:4] ** power, wy @ vh[:4].T * s[:4] ** power
    assert torch.allclose(found.singular_values, s[:4], atol=1e-10)
    # The sign of a pair of columns is free: compared through the product of both maps.
    assert torch.allclose(found.image_map @ found.text_map.T, a @ b.T, atol=1e-10)
    assert torch.allclose(found.image_map.abs(), a.abs(), atol=1e-8)


def test_without_a_ridge_it_is_canonical_correlation():
    x, y = (t.double() for t in latent(400))
    found = Whitening(covariance_of(x, y)).solve(ridge=0, power=0, dimensions=9)
    u = (x - found.image_mean) @ found.image_map
    v = (y - found.text_mean) @ found.text_map
    n, k = len(x), found.dimensions
    assert torch.allclose(u.T @ u / n, torch.eye(k, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(u.T @ v / n, torch.diag(found.singular_values), atol=1e-9)


ODD = {
    "rank deficient": lambda x, y: (torch.cat([x, x @ torch.ones(12, 3)], 1), y),
    "constant column": lambda x, y: (torch.cat([x, torch.full((len(x), 1), 7.0)], 1), y),
    "duplicated rows": lambda x, y: (x.repeat(3, 1), y.repeat(3, 1)),
    "duplicated columns": lambda x, y: (torch.cat([x, x], 1), torch.cat([y, y], 1)),
    "fewer pairs than dimensions": lambda x, y: (x[:6], y[:6]),
    "one pair": lambda x, y: (x[:1], y[:1]),
    "constant image features": lambda x, y: (torch.ones_like(x), y),
    "one text dimension": lambda x, y: (x, y[:, :1]),
    "huge": lambda x, y: (x * 1e6, y * 1e-6),
}


@pytest.mark.parametrize("ridge", [0.0, 1.0])
@pytest.mark.parametrize("name", ODD)
def test_odd_features_work(name, ridge):
    x, y = ODD[name](*latent(60))
    found = Whitening(covariance_of(x, y)).solve(ridge=ridge, power=0.5, dimensions=256)
    assert found.dimensions <= min(x.shape[1], y.shape[1])
    for embeddings in (found.embed_images(x), found.embed_texts(y)):
        assert embeddings.shape == (len(x), found.dimensions) and bool(embeddings.isfinite().all())
        if found.dimensions:
            norms = embeddings.norm(dim=1)
            assert bool(((norms - 1).abs() < 1e-5).logical_or(norms == 0).all())
    assert bool(((found.singular_values > 0) & (found.singular_values <= 1)).all())
    if name in ("one pair", "constant image features"):
        assert found.dimensions == 0  # there is nothing that both sides share


def test_a_shift_of_the_features_changes_nothing():
    x, y = latent(300)
    plain = Whitening(covariance_of(x, y)).solve(ridge=1, power=0.5, dimensions=4)
    moved = Whitening(covariance_of(x + 1000, y - 500)).solve(ridge=1, power=0.5, dimensions=4)
    assert torch.allclose(plain.embed_images(x), moved.embed_images(x + 1000), atol=2e-4)


@pytest.mark.parametrize(
    "settings", [{"ridge": -1}, {"ridge": float("nan")}, {"text_ridge": -1}, {"dimensions": 0}, {"power": 1e400}]
)
def test_settings_out_of_range_are_refused(settings):
    x, y = latent(20)
    with pytest.raises(ValueError, match=next(iter(settings))):
        Whitening(covariance_of(x, y)).solve(**{"ridge": 1, "power": 0.5, "dimensions": 2, **settings})


def held_out(images: int = 200, captions: int = 3) -> tuple[Whitening, tuple[torch.Tensor, ...]]:
    """What was fitted on one half of noisy features, and the other half: images, captions, whose they are."""
    x, y = latent(2 * images, noise=1.0)
    ids = torch.arange(images).repeat_interleave(captions)
    more = torch.randn(len(ids), 9, generator=torch.Generator().manual_seed(4))
    return Whitening(covariance_of(x[:images], y[:images])), (x[images:], y[images:][ids] + more, ids)


def test_choice_is_the_best_row_of_its_table():
    grid = Grid(ridges=(0.1, 1.0), powers=(0.5, 1.0), dimensions=(2, 8, 100, 200), text_parts=(0.2,))
    whitening, features = held_out()
    best, trials = choose_settings(whitening, *features, grid=grid, metric=negative_loss)
    assert best.score == max(trial.score for trial in trials)
    assert len(trials) == 8  # 100 and 200 keep the same 9 dimensions
    common = max(trials[:4], key=lambda trial: trial.score)
    assert all(t.ridge == t.text_ridge for t in trials[:4])
    assert all(t.ridge == common.ridge and t.text_ridge == common.ridge * 0.2 for t in trials[4:6])
    found = best.solved(whitening)
    assert (found.ridge, found.text_ridge, found.dimensions) == (best.ridge, best.text_ridge, best.dimensions)
    with pytest.raises(ValueError, match="no setting to try"):
        choose_settings(whitening, *features, grid=Grid(powers=()), metric=negative_loss)


def test_a_given_ridge_of_the_texts_is_kept_to():
    grid = Grid(ridges=(0.1, 1.0), powers=(0.5,), dimensions=(8,), text_ridge=0.7)
    whitening, features = held_out()
    _, trials = choose_settings(whitening, *features, grid=grid, metric=negative_loss)
    assert [(trial.ridge, trial.text_ridge) for trial in trials] == [(0.1, 0.7), (1.0, 0.7)]


def test_choice_takes_another_metric():
    whitening, features = held_out()
    worst, trials = choose_settings(
        whitening, *features, grid=Grid(), metric=lambda u, v, ids: -mean_recall_at_1(u, v, ids)
    )
    assert worst.score == max(t.score for t in trials) <= 0


def test_the_judge_takes_the_first_caption_of_each_image_at_its_best_scale():
    whitening, (x, y, ids) = held_out(20)
    maps = whitening.solve(ridge=1, power=0.5, dimensions=8)
    u, v = maps.embed_images(x), maps.embed_texts(y)
    first = torch.arange(0, len(ids), 3)
    losses = [float(pair_losses(u.double() @ v[first].double().T, scale).mean()) for scale in range(1, 101)]
    assert -negative_loss(u, v, ids) == pytest.approx(min(losses), rel=1e-3)
    order = torch.arange(len(ids)).view(-1, 3).T.flatten()  # all first captions, then all second ones
    assert negative_loss(u, v[order], ids[order]) == negative_loss(u, v, ids)
    assert negative_loss(u, v[:1], ids[:1]) == negative_loss(u, v[:0], ids[:0]) == 0.0


def test_recall_counts_ties_against_the_model():
    u, v = torch.eye(3), torch.eye(3)[[0, 0, 1, 2]]
    ids = torch.tensor([0, 0, 1, 2])
    assert mean_recall_at_1(u, v, ids) == 1.0
    assert mean_recall_at_1(torch.ones(3, 3), torch.ones(4, 3), ids) == 0.0
    # Image 1 loses its caption to image 0's second one; that caption's own image is still its best.
    s_u = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    s_v = torch.tensor([[1.0, 0.0], [0.0, 0.9], [0.2, 0.5]])
    assert mean_recall_at_1(s_u, s_v, torch.tensor([0, 0, 1])) == pytest.approx((1 / 2 + 2 / 3) / 2)
