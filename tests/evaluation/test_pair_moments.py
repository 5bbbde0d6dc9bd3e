"""PairMoments against NumPy in float64, merging, and states."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from varalign.evaluation.pair_moments import PairMoments

finite = st.floats(-1e6, 1e6, allow_nan=False, width=32)


def test_pairs_agree_with_numpy_over_epochs() -> None:
    rng = np.random.default_rng(4)
    epochs, n = 7, 50
    values = rng.random((epochs, n, 2)).astype(np.float32)
    pairs = PairMoments(n + 1)
    for epoch in values:
        order = rng.permutation(n)
        for batch in np.array_split(order, 6):
            pairs.update(batch, epoch[batch])
    wide = values.astype(np.float64)
    assert pairs.count.tolist() == [epochs] * n + [0]
    np.testing.assert_allclose(pairs.probability_mean[:n], wide[..., 0].mean(0), rtol=1e-12)
    np.testing.assert_allclose(pairs.probability_variance[:n], wide[..., 0].var(0), rtol=1e-10)
    np.testing.assert_allclose(pairs.margin_mean[:n], wide[..., 1].mean(0), rtol=1e-12)
    np.testing.assert_allclose(pairs.margin_variance[:n], wide[..., 1].var(0), rtol=1e-10)
    assert np.isnan(pairs.probability_mean[n]) and np.isnan(pairs.margin_variance[n])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 4), finite, finite), max_size=30), st.integers(0, 30))
def test_pairs_merge_and_restore(observations: list[tuple[int, float, float]], cut: int) -> None:
    def fill(part: list[tuple[int, float, float]]) -> PairMoments:
        pairs = PairMoments(5)
        pairs.update(np.array([o[0] for o in part], dtype=np.int64), np.array([o[1:] for o in part]).reshape(-1, 2))
        return pairs

    whole, merged = fill(observations), fill(observations[:cut])
    merged.merge(pickle.loads(pickle.dumps(fill(observations[cut:]))))
    np.testing.assert_array_equal(merged.count, whole.count)
    np.testing.assert_allclose(merged.margin_mean, whole.margin_mean, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(merged.margin_variance, whole.margin_variance, rtol=1e-9, atol=1e-2)
    again = PairMoments.from_state(whole.state())
    assert all(np.array_equal(again.state()[key], whole.state()[key]) for key in whole.state())


def test_pairs_refuse_wrong_indices_and_change_nothing() -> None:
    pairs = PairMoments(3)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=f"pair index {wrong} is not within 0 to 3"):
            pairs.update(np.array([0, wrong]), np.ones((2, 2)))
    with pytest.raises(ValueError, match="integers"):
        pairs.update(np.array([0.5]), np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"\(B, 2\)"):
        pairs.update(np.array([0]), np.ones(2))
    with pytest.raises(ValueError, match="cannot merge moments of 2 pairs into those of 3"):
        pairs.merge(PairMoments(2))
    assert pairs.count.tolist() == [0, 0, 0]


def test_merging_with_itself_counts_everything_twice() -> None:
    pairs, twice = PairMoments(3), PairMoments(3)
    observed = np.array([0, 2, 0]), np.array([[1.0, 5.0], [2.0, 3.0], [4.0, 5.0]])
    pairs.update(*observed)
    pairs.merge(pairs)
    twice.update(*observed)
    twice.update(*observed)
    for key, part in pairs.state().items():
        np.testing.assert_allclose(part, twice.state()[key], rtol=1e-15)
