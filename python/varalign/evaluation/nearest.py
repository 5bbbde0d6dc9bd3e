"""Exact search among many stored vectors, float16 as a store has them: a quick product, then a sure order."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from varalign.evaluation.retrieval import top_k

_SLACK = 2.0**-9
"""Bound on the error of a float16 product of unit vectors: half a unit in the last place of each of the query's
components, 2^-11 in all, and of the result, 2^-11 again; doubled, because sums round too."""


def nearest(
    query: NDArray[np.float32],
    vectors: NDArray[Any],
    k: int,
    *,
    prior: NDArray[np.float32] | None = None,
    skip: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k vectors with the highest inner product with a query, as `top_k` finds them: equal ones in order of rows.

    The product with all of them is in the vectors' own type, memory-bound; those within its error of the k-th best are
    compared again as `top_k` does.

    Args:
        query: (D,) a unit vector.
        vectors: (N, D) unit vectors, float16 or float32, N at least 1; may be memory-mapped.
        k: at least 1; more than there are means all.
        prior: (N,) subtracted from the products: that of a hub correction.
        skip: (N,) rows that are no candidates.

    Returns:
        (K,) scores and rows, best first; fewer than k where candidates are fewer.
    """
    matrix, wide = torch.from_numpy(vectors), torch.from_numpy(query)
    rough = torch.mv(matrix, wide.to(matrix.dtype)).float()
    if prior is not None:
        rough -= torch.from_numpy(prior)
    if skip is not None:
        rough[torch.from_numpy(skip)] = -torch.inf
        k = min(k, int(len(skip) - np.count_nonzero(skip)))
    if not min(k, len(rough)):
        return np.empty(0, np.float32), np.empty(0, np.int64)
    last = rough.topk(min(k, len(rough))).values[-1]
    rows = (rough >= last - 2 * _SLACK).nonzero()[:, 0]
    candidates = matrix[rows].double()
    if prior is not None:
        wide = torch.cat([wide, wide.new_ones(1)])
        candidates = torch.cat([candidates, -torch.from_numpy(prior)[rows, None].double()], dim=1)
    scores, places = top_k(wide, candidates, k)
    return scores[0].numpy(), rows[places[0]].numpy()
