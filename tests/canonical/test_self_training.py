"""Self-training against its definition, written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from varalign.canonical.covariance import RunningCovariance
from varalign.canonical.self_training import pseudo_pairs, rounds_for, self_train

SCALE = 12.0


def drawn(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def unit(rows: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(drawn(rows, 6, seed), dim=1)


def wanted_means(queries: torch.Tensor, items: torch.Tensor, features: torch.Tensor, k: int) -> torch.Tensor:
    """(n, d) by the formulas, a number at a time."""
    p, tau = queries.double() @ items.double().T, 0.7 * SCALE
    prior = [math.log(sum(math.exp(tau * float(s)) for s in column) / len(queries)) / tau for column in p.T]
    rows = []
    for row in p:
        score = sorted(((float(s) - b, j) for j, (s, b) in enumerate(zip(row, prior, strict=True))), reverse=True)[:k]
        total = sum(math.exp(2 * SCALE * s) for s, _ in score)
        rows.append(sum(math.exp(2 * SCALE * s) / total * features[j].double() for s, j in score))
    return torch.stack(rows)


@pytest.mark.parametrize("images, texts", [(17, 40), (3, 25), (30, 4), (1, 1)])
def test_partners_are_the_best_ten_without_hubs(images: int, texts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    u, v, x, y = unit(images, 0), unit(texts, 1), drawn(images, 5, 2), drawn(texts, 7, 3)
    monkeypatch.setattr("varalign.canonical.self_training._SIMILARITIES", 3 * max(images, texts))  # several blocks
    found = pseudo_pairs(u, v, SCALE)
    assert found.of_images.items.shape == (images, min(10, texts))
    for partners, wanted, features in (
        (found.of_images, wanted_means(u, v, y, 10), y),
        (found.of_texts, wanted_means(v, u, x, 10), x),
    ):
        torch.testing.assert_close(partners.mean(features).double(), wanted, atol=1e-5, rtol=0)


def test_pairs_and_both_kinds_of_pseudo_pairs_have_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varalign.canonical.self_training.BLOCK_ROWS", 6)
    pairs, x, y = (drawn(20, 5, 0), drawn(20, 7, 1)), drawn(17, 5, 2), drawn(40, 7, 3)
    found = pseudo_pairs(unit(17, 4), unit(40, 5), SCALE)
    running = RunningCovariance(5, 7)
    running.update(*pairs)
    found.add_to(running, x, y)
    left = torch.cat([pairs[0], x, found.of_texts.mean(x)]).double()
    right = torch.cat([pairs[1], found.of_images.mean(y), y]).double()
    weights = torch.cat([torch.ones(20), torch.full((17,), 0.75), torch.full((40,), 0.25)]).double()[:, None]
    assert running.count == pytest.approx(20 + 0.75 * 17 + 0.25 * 40)
    mean_x, mean_y = ((weights * side).sum(0) / weights.sum() for side in (left, right))
    cross = (weights * (left - mean_x)).T @ (right - mean_y) / weights.sum()
    torch.testing.assert_close(running.mean_x, mean_x, atol=1e-6, rtol=0)
    torch.testing.assert_close(running.cov_xy, cross, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "losses, kept",
    [([2.0, 1.5, 1.2], 4), ([2.0, 2.0, 1.0], 2), ([3.5], 1), ([math.nan], 1), ([], 1), ([2.999], 1), ([2.8], 2)],
)
def test_a_round_is_kept_while_the_held_out_loss_falls_beyond_chance(losses: list[float], kept: int) -> None:
    spread = drawn(100, 1, 0)[:, 0]  # each round's own: the differences have a standard error of about 0.05
    all_losses = [3.0 + 0.3 * spread.roll(0), *(loss + 0.3 * spread.roll(1 + at) for at, loss in enumerate(losses))]
    rounds = self_train(0, lambda number: number + 1, all_losses.__getitem__, len(losses))
    assert rounds == list(range(kept))


def test_few_images_take_more_rounds() -> None:
    assert [rounds_for(images) for images in (2, 299, 300, 6000)] == [3, 3, 1, 1]
