"""Exact search in float16 vectors, against `top_k` in float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from varalign.evaluation.nearest import nearest, nearest_of_each
from varalign.evaluation.retrieval import top_k


def unit(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("spread", "seed"), [(1.0, 0), (1e-3, 1), (0.0, 2)])
def test_it_is_top_k(dtype: type, spread: float, seed: int) -> None:
    """Far apart, nearer to each other than float16 tells apart, and all equal."""
    random = np.random.default_rng(seed)
    vectors = unit(random.normal(size=37) + spread * random.normal(size=(400, 37))).astype(dtype)
    prior = (0.01 * random.normal(size=400)).astype(np.float32)
    for query in unit(random.normal(size=(5, 37))):
        scores, rows = top_k(query, vectors.astype(np.float64), 9)
        found, places = nearest(query, vectors, 9)
        assert places.tolist() == rows[0].tolist() and found.tolist() == scores[0].tolist()
        corrected = np.concatenate([vectors, -prior[:, None]], axis=1, dtype=np.float64)
        scores, rows = top_k(np.append(query, 1.0), corrected, 9)
        found, places = nearest(query, vectors, 9, prior=prior)
        assert places.tolist() == rows[0].tolist() and found.tolist() == scores[0].tolist()


def test_what_is_skipped_is_not_found() -> None:
    vectors, skip = unit(np.random.default_rng(0).normal(size=(6, 4))).astype(np.float16), np.arange(6) != 3
    scores, rows = nearest(vectors[0].astype(np.float32), vectors, 3, skip=skip)
    assert rows.tolist() == [3] and scores.shape == (1,)
    assert len(nearest(vectors[0].astype(np.float32), vectors, 3, skip=np.ones(6, np.bool_))[1]) == 0


@pytest.mark.parametrize("queries", [1, 3, 4, 9])
def test_many_queries_find_what_each_finds_alone(queries: int) -> None:
    """Few queries go through another loop of the core than many; rows beyond a chunk, some equal, some skipped."""
    random = np.random.default_rng(queries)
    vectors = unit(random.normal(size=(9000, 21))).astype(np.float16)
    vectors[5000:5200] = vectors[7]
    prior, skip = (0.05 * random.normal(size=9000)).astype(np.float32), random.random(9000) < 0.3
    prior[5000:5200] = prior[7]
    asked = unit(random.normal(size=(queries, 21)))
    asked[0] = vectors[7].astype(np.float32)
    corrected = np.concatenate([vectors, -prior[:, None]], axis=1, dtype=np.float64)
    kept = np.flatnonzero(~skip)
    for query, (scores, rows) in zip(asked, nearest_of_each(asked, vectors, 12, prior=prior, skip=skip), strict=True):
        right, places = top_k(np.append(query, 1.0), corrected[kept], 12)
        assert rows.tolist() == kept[places[0]].tolist() and scores.tolist() == right[0].tolist()


def test_equal_vectors_come_in_the_order_of_rows_however_many() -> None:
    vectors = np.tile(unit(np.ones((1, 8))), (40_000, 1)).astype(np.float16)
    assert nearest(vectors[0].astype(np.float32), vectors, 5)[1].tolist() == [0, 1, 2, 3, 4]


def test_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="queries of 3 dimensions, and vectors of 4"):
        nearest(np.ones(3, np.float32), np.ones((5, 4), np.float16), 1)
