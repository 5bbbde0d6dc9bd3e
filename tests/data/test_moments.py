"""RunningMoments against NumPy in float64, closed forms, merging, and states."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from varalign.data.moments import RunningMoments

finite = st.floats(-1e6, 1e6, allow_nan=False, width=32)


def moments_of(values: np.ndarray, columns: int | None = None, threads: int = 1) -> RunningMoments:
    moments = RunningMoments(columns)
    moments.update(values, threads=threads)
    return moments


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 4095, 4096, 4097, 100_003])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_scalars_agree_with_numpy_float64_to_12_digits(count: int, dtype: type) -> None:
    values = (np.random.default_rng(count).random(count) * 255).astype(dtype)
    wide = values.astype(np.float64)
    moments = moments_of(values)
    assert moments.count == count
    assert moments.mean == pytest.approx(wide.mean(), rel=1e-12)
    assert moments.variance() == pytest.approx(wide.var(), rel=1e-12, abs=1e-20)
    assert moments.std() == pytest.approx(wide.std(), rel=1e-12, abs=1e-10)
    assert (moments.min, moments.max) == (wide.min(), wide.max())


def test_large_mean_keeps_nine_digits_of_the_variance() -> None:
    noise = np.random.default_rng(0).standard_normal(1_000_000)
    values = noise + 1e9
    exact = np.float64(np.var((values - 1e9).astype(np.longdouble)))
    assert moments_of(values).variance() == pytest.approx(exact, rel=1e-9)
    naive = (values**2).mean() - values.mean() ** 2
    assert abs(naive - exact) > 1e-3, "the plain formula fails here, or this test shows nothing"
    table = moments_of(values.reshape(-1, 4), 4)
    assert table.variance() == pytest.approx(np.var(noise.reshape(-1, 4), axis=0), rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize(
    "shape", [(1, 3), (700, 5), (9, 4, 7), (3, 5000), (40_000, 3), (5000, 16), (1100, 67), (1030, 257), (70_000, 2)]
)
def test_columns_agree_with_numpy(dtype: type, shape: tuple[int, ...]) -> None:
    values = (np.random.default_rng(1).random(shape) * 200 + 20).astype(dtype)
    rows = values.reshape(-1, shape[-1]).astype(np.float64)
    moments = moments_of(values, shape[-1])
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance(), rows.var(0), rtol=1e-11, atol=1e-20)
    np.testing.assert_array_equal(moments.min, rows.min(0))
    np.testing.assert_array_equal(moments.max, rows.max(0))


def test_float32_far_from_zero_keeps_12_digits() -> None:
    values = (np.random.default_rng(6).standard_normal(200_000) + 1e4).astype(np.float32)
    exact = np.var(values.astype(np.longdouble) - 10_000)
    assert moments_of(values).variance() == pytest.approx(float(exact), rel=1e-12)


def test_strides_other_dtypes_and_lists() -> None:
    base = np.arange(60, dtype=np.int16).reshape(6, 10)
    assert moments_of(base.T[::2]).mean == base.T[::2].mean()
    assert moments_of(base.astype(np.float16)).variance() == pytest.approx(base.var(), rel=1e-12)
    assert moments_of([1, 2, 4]).variance(ddof=1) == pytest.approx(7 / 3)  # type: ignore[arg-type]
    vector = RunningMoments(3)
    vector.update([1.0, 2.0, 3.0])
    vector.update([3.0, 2.0, 1.0])
    assert vector.count == 2 and vector.mean.tolist() == [2.0, 2.0, 2.0] and vector.variance().tolist() == [1, 0, 1]


def test_the_number_of_threads_does_not_show() -> None:
    values = np.random.default_rng(2).random(3_000_000).astype(np.float32)
    states = [moments_of(values, threads=threads).state() for threads in (1, 2, 3, 0)]
    for state in states[1:]:
        assert all(np.array_equal(state[key], states[0][key]) for key in state)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, st.integers(0, 300), elements=finite),
    hnp.arrays(np.float32, st.integers(0, 300), elements=finite),
)
def test_merging_is_updating_with_both(a: np.ndarray, b: np.ndarray) -> None:
    both = np.concatenate([a, b]).astype(np.float64)
    merged = moments_of(a)
    merged.merge(moments_of(b))
    assert merged.count == len(both)
    if len(both):
        scale = max(1.0, float(np.abs(both).max()))
        assert merged.mean == pytest.approx(both.mean(), rel=1e-12, abs=1e-12 * scale)
        assert merged.variance() == pytest.approx(both.var(), rel=1e-10, abs=1e-12 * scale**2)
        assert (merged.min, merged.max) == (both.min(), both.max())


def test_merging_with_itself_counts_everything_twice() -> None:
    values = np.random.default_rng(5).random((100, 3))
    moments, twice = moments_of(values, 3), moments_of(np.concatenate([values, values]), 3)
    moments.merge(moments)
    assert moments.count == 200
    np.testing.assert_allclose(moments.mean, twice.mean, rtol=1e-15)
    np.testing.assert_allclose(moments.variance(), twice.variance(), rtol=1e-13)


def test_closed_forms() -> None:
    n = 10_001
    ramp = moments_of(np.arange(n, dtype=np.float64))
    assert ramp.mean == (n - 1) / 2
    assert ramp.variance() == pytest.approx((n * n - 1) / 12, rel=1e-13)
    constant = moments_of(np.full(5000, 0.1))
    assert constant.variance() == 0.0 and constant.mean == 0.1
    assert np.isnan(RunningMoments().mean) and np.isnan(RunningMoments().variance())
    assert np.isnan(moments_of(np.ones(1)).variance(ddof=1))


def test_nan_in_gives_nan_out_and_infinities_keep_the_extremes() -> None:
    values = np.ones(5000, dtype=np.float32)
    values[4500] = np.nan
    moments = moments_of(values)
    assert all(np.isnan(x) for x in (moments.mean, moments.variance(), moments.min, moments.max))
    infinite = moments_of(np.array([np.inf, 1.0, -np.inf]))
    assert (infinite.min, infinite.max) == (-np.inf, np.inf) and np.isnan(infinite.mean)


def test_state_and_pickle_go_on_exactly() -> None:
    values = np.random.default_rng(3).random((500, 4))
    whole = moments_of(values[:200], 4)
    for restored in (RunningMoments.from_state(whole.state()), pickle.loads(pickle.dumps(whole))):
        going_on = moments_of(values[:200], 4)
        for moments in (going_on, restored):
            moments.update(values[200:])
        assert all(np.array_equal(restored.state()[key], going_on.state()[key]) for key in going_on.state())


def test_wrong_use_is_an_error_that_says_what_came() -> None:
    with pytest.raises(ValueError, match="at least one column"):
        RunningMoments(0)
    with pytest.raises(ValueError, match=r"must have 3 columns .* got shape \(2, 4\)"):
        RunningMoments(3).update(np.ones((2, 4)))
    with pytest.raises(TypeError, match="real numbers, got complex128"):
        RunningMoments().update(np.ones(2, complex))
    with pytest.raises(ValueError, match="columns=2 into those of columns=3"):
        RunningMoments(3).merge(RunningMoments(2))
    with pytest.raises(ValueError, match="shapes"):
        RunningMoments.from_state({**RunningMoments(2).state(), "mean": np.zeros(3)})
