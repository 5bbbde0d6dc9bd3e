"""The symmetric loss of pairs against its definition, and the logit scale at its minimum."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize
from varalign.losses.pair_loss import batched_loss, best_logit_scale, least_loss, pair_losses


def pairs(count: int, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    u = torch.randn(count, 6, generator=g)
    return normalize(u, dim=1), normalize(u + noise * torch.randn(count, 6, generator=g), dim=1)


def both(u: torch.Tensor, v: torch.Tensor, scale: float) -> float:
    z, own = scale * u.double() @ v.double().T, torch.arange(len(u))
    return float(cross_entropy(z, own) + cross_entropy(z.T, own)) / 2


def test_losses_are_the_mean_of_both_directions() -> None:
    u, v = pairs(12)
    s = (u @ v.T).unflatten(0, (1, 12))
    assert float(pair_losses(s, 7.0).mean()) == pytest.approx(both(u, v, 7.0))
    assert pair_losses(torch.zeros(2, 3, 3), 5.0).tolist() == [[pytest.approx(math.log(3))] * 3] * 2


def test_texts_that_several_images_have_are_positives() -> None:
    """Image 0 and 2 have one text, image 3 has it beside its own: losses, their batches and the best scale."""
    u, v = (x.double() for x in pairs(12))
    ids = torch.stack([torch.arange(12), 100 + torch.arange(12)], 1), torch.arange(12)
    for image in (0, 2, 3):
        ids[0][image, 1] = 50
    for text in (0, 2):
        ids[1][text] = 50
    positive = torch.eye(12, dtype=torch.bool)
    for image in (0, 2, 3):
        positive[image, [0, 2]] = True

    def written_out(scale: float) -> torch.Tensor:
        z, values = scale * u @ v.T, []
        for i in range(12):
            row, column = z[i][positive[i]].mean(), z[:, i][positive[:, i]].mean()
            values.append((z[i].logsumexp(0) - row + z[:, i].logsumexp(0) - column) / 2)
        return torch.stack(values)

    torch.testing.assert_close(pair_losses(u @ v.T, 7.0, positive), written_out(7.0))
    assert batched_loss(u, v, 7.0, 12, ids) == pytest.approx(float(written_out(7.0).mean()))
    best = best_logit_scale(u, v, ids=ids)
    grid = [float(written_out(best * f).mean()) for f in (0.99, 1.0, 1.01)]
    assert min(grid) == grid[1] and best != pytest.approx(best_logit_scale(u, v), rel=1e-3)
    assert least_loss(u, v, ids=ids) == pytest.approx(grid[1], rel=1e-4)


def test_batched_loss_leaves_an_incomplete_batch_out_unless_it_is_the_only_one() -> None:
    u, v = pairs(11)
    parts = [both(u[:4], v[:4], 9.0), both(u[4:8], v[4:8], 9.0)]
    assert batched_loss(u, v, 9.0, 4) == pytest.approx(sum(parts) / 2, abs=1e-6)
    assert batched_loss(u[:3], v[:3], 9.0, 4) == pytest.approx(both(u[:3], v[:3], 9.0), abs=1e-6)


def test_logit_scale_is_the_minimum_of_the_loss() -> None:
    u, v = pairs(300)
    best = best_logit_scale(u, v, batch_size=300)
    grid = [both(u, v, best * f) for f in (0.9, 0.99, 1.0, 1.01, 1.1)]
    assert min(grid) == grid[2]
    assert best_logit_scale(u, v, batch_size=10) < best  # fewer candidates ask for less
    assert best_logit_scale(u, v, batch_size=300, high=2.0) == pytest.approx(2.0)
    assert least_loss(u, v, batch_size=300) == pytest.approx(grid[2], rel=1e-4)
    # A last batch of one pair says nothing and is left out.
    assert best_logit_scale(u[:201], v[:201], batch_size=100) == best_logit_scale(u[:200], v[:200], batch_size=100)
    eye = torch.eye(8)
    # Perfect pairs want the largest scale; the search stops where the loss is nothing but rounding.
    assert 7 * math.exp(-best_logit_scale(eye, eye)) < 1e-15


def test_what_has_no_best_scale_is_refused() -> None:
    u, v = pairs(4)
    with pytest.raises(ValueError, match="two or more pairs"):
        best_logit_scale(u[:1], v[:1])
    with pytest.raises(ValueError, match="two or more pairs"):
        least_loss(u, v[:3])
    with pytest.raises(ValueError, match="NaN"):
        best_logit_scale(u * math.nan, v)
    with pytest.raises(ValueError, match="infinity"):
        best_logit_scale(torch.full_like(u, math.inf), v)
