"""Exact search among many stored vectors: one pass in float32 by the compiled core, then a sure order of the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from varalign import _core
from varalign.evaluation.retrieval import top_k

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""(K,) scores and rows, best first."""
_AT_ONCE = 1 << 14  # rows compared in float64


def nearest(
    query: NDArray[np.float32],
    vectors: NDArray[Any],
    k: int,
    *,
    prior: NDArray[np.float32] | None = None,
    skip: NDArray[np.bool_] | None = None,
) -> Found:
    """The k vectors with the highest inner product with a query, as `top_k` finds them: equal ones in order of rows.

    Args:
        query: (D,) a unit vector.
        vectors, k, prior, skip: as for `nearest_of_each`.

    Returns:
        (K,) scores and rows, best first; fewer than k where candidates are fewer.
    """
    return nearest_of_each(query[None], vectors, k, prior=prior, skip=skip)[0]


def nearest_of_each(
    queries: NDArray[np.float32],
    vectors: NDArray[Any],
    k: int,
    *,
    prior: NDArray[np.float32] | None = None,
    skip: NDArray[np.bool_] | None = None,
) -> list[Found]:
    """`nearest` for each of several queries, for which the vectors are read once.

    The core's float32 products leave the rows that may be among the best; those alone are compared as `top_k` does. So
    the memory needed beside the vectors is a few hundred rows a query, unless more rows than that are equally good.

    Args:
        queries: (Q, D) unit vectors.
        vectors: (N, D) unit vectors, float16 or float32, finite; may be memory-mapped.
        k: at least 1; more than there are means all.
        prior: (N,) subtracted from the products: that of a hub correction.
        skip: (N,) rows that are no candidates.

    Raises:
        ValueError: widths or lengths that do not fit together.
    """
    if queries.shape[1] != vectors.shape[1]:
        raise ValueError(f"queries of {queries.shape[1]} dimensions, and vectors of {vectors.shape[1]}")
    stored = vectors.view(np.uint16) if vectors.dtype == np.float16 else vectors
    wide = np.ascontiguousarray(queries, np.float32)
    found = _core.nearest_rows(stored, wide, k, prior, skip, torch.get_num_threads())
    return [best_of(query, vectors, rows, k, prior=prior) for query, rows in zip(wide, found, strict=True)]


def best_of(
    query: NDArray[np.float32],
    vectors: NDArray[Any],
    rows: NDArray[np.int64],
    k: int,
    *,
    prior: NDArray[np.float32] | None = None,
) -> Found:
    """The k best of some rows (ascending), compared as `top_k` does.

    Args:
        query, vectors, k, prior: as for `nearest`.
    """
    wide = torch.from_numpy(query)
    if prior is not None:
        wide = torch.cat([wide, wide.new_ones(1)])
    scores, best = torch.empty(0), np.empty(0, np.int64)
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        candidates = torch.from_numpy(vectors[part]).double()
        if prior is not None:
            candidates = torch.cat([candidates, -torch.from_numpy(prior[part])[:, None].double()], dim=1)
        of_part, places = top_k(wide, candidates, k)
        best = np.concatenate([best, part[places[0].numpy()]])
        scores, order = torch.cat([scores, of_part[0]]).sort(descending=True, stable=True)
        scores, best = scores[:k], best[order[:k].numpy()]
    return scores.numpy(), best
