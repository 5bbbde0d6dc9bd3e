"""Pairs sorted by their probability over epochs: known mixtures come back, and nothing is found where nothing is."""

from __future__ import annotations

import numpy as np
import pytest
from varalign.evaluation.cartography import KINDS, UNSEEN, cartography


def made_up(share: float, pairs: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    wrong = random.random(pairs) < share
    odds = np.where(wrong, random.normal(-5, 1.0, pairs), random.normal(1, 1.0, pairs))
    return 1 / (1 + np.exp(-odds)), np.full(pairs, 0.01), np.repeat(np.arange(pairs // 4), 4), wrong


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_a_known_share_comes_back(share: float) -> None:
    mean, variance, owner, wrong = made_up(share)
    found = cartography(mean, variance, owner, chance=0.004)
    assert found.wrong_share == pytest.approx(wrong.mean(), abs=0.02) and found.low <= wrong.mean() <= found.high
    sure = found.kind == KINDS.index("probably wrong")
    assert wrong[sure].mean() > 0.98 and sure[wrong].mean() > 0.98


def test_one_hump_is_no_noise() -> None:
    mean, variance, owner, _ = made_up(0.0)
    found = cartography(mean, variance, owner, chance=0.004)
    assert found.wrong_share == found.low == 0 and found.high == 3 / 1000 and not (found.kind == 2).any()
    assert (found.kind == 0).all() and not found.abstains
    assert (cartography(np.full(20, 0.5), np.zeros(20), np.arange(20), chance=0.1).kind == 0).all()


def test_one_hump_that_reaches_chance_leaves_the_share_open() -> None:
    random = np.random.default_rng(0)
    mean = 1 / (1 + np.exp(-random.normal(-4, 1.5, 4000)))
    found = cartography(mean, np.full(4000, 0.01), np.arange(4000), chance=0.004)
    low = mean <= 0.008
    assert found.wrong_share == found.low == 0 and found.high == pytest.approx(2 * low.mean())
    assert (found.kind[low] == 1).all() and (found.kind[~low] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_model_at_chance_is_no_judge(seed: int) -> None:
    """Softmax over 32 equal candidates, of similarities that know nothing, mean of six epochs; collapsed; few pairs."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (400, 6, 32))
    mean = (np.exp(logits[:, :, 0]) / np.exp(logits).sum(2)).mean(1)
    some = np.full(400, 0.01), np.repeat(np.arange(100), 4)
    for given in (mean, np.full(400, 1 / 32) + 1e-8 * mean):
        found = cartography(given, *some, chance=1 / 32)
        assert (
            "hardly tells pairs apart" in found.abstains and np.isnan([found.wrong_share, found.low, found.high]).all()
        )
        assert (found.kind == UNSEEN).all() and np.isnan(found.probability_wrong).all()
    mean[19:] = np.nan
    assert "19 pairs, too few" in cartography(mean, *some, chance=1 / 32).abstains


def test_unsteady_pairs_are_ambiguous_and_unseen_ones_have_no_kind() -> None:
    mean, variance, owner, _ = made_up(0.3)
    variance[:10], mean[10:20] = 0.09, np.nan
    found = cartography(mean, variance, owner, chance=0.004)
    assert (found.kind[:10] == 1).all() and (found.kind[10:20] == UNSEEN).all()
    assert np.isnan(found.probability_wrong[10:20]).all() and sum(found.counts().values()) == 3990


def test_nothing_seen_and_odd_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="no pair was seen"):
        cartography(np.full(3, np.nan), np.full(3, np.nan), np.arange(3), chance=0.1)
    with pytest.raises(ValueError, match="one shape"):
        cartography(np.zeros(3), np.zeros(2), np.arange(3), chance=0.1)
