"""The variance of every query's similarities, from the candidates' covariance."""

from __future__ import annotations

import torch
from torch import Tensor


def similarity_variance(queries: Tensor, candidates: Tensor) -> Tensor:
    """(Q,) variance of each query's similarities over the (N, D) candidates, divided by N, without a Q x N pass if N
    > D.

    Var_j(u.v_j) = u' Cov(V) u costs Q D^2; with fewer candidates than dimensions the centred product itself is
    cheaper. The candidates are centred first in both: the difference of mean square and squared mean would lose every
    digit where all texts point the same way.

    Args:
        queries: (Q, D). candidates: (N, D).
    """
    if candidates.shape[0] > candidates.shape[1]:
        return quadratic_form(queries, embedding_moments(candidates)[1])
    wide = candidates.to(torch.promote_types(candidates.dtype, torch.float32))
    return (queries.to(wide.dtype) @ (wide - wide.mean(0)).T).square_().mean(1)


def embedding_moments(embeddings: Tensor, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), divided by the count, of (N, D) embeddings, in O(chunk * D) extra memory.

    Accumulates in float32 (float64 for float64). On CUDA, 16-bit embeddings are multiplied as bfloat16 after
    centring, on the tensor cores: otherwise the D x D products would cost a fifth of the loss at N = 32k.
    """
    count = embeddings.shape[0]
    mean = _wide_sum(embeddings) / count
    total = mean.new_zeros(mean.shape[0], mean.shape[0])
    for begin in range(0, count, chunk):
        block = _for_product(embeddings[begin : begin + chunk] - mean, embeddings)
        total += (block.T @ block).to(total.dtype)
    return mean, total / count


def quadratic_form(queries: Tensor, covariance: Tensor, chunk: int = 4096) -> Tensor:
    """(Q,) u' C u for each query u, at least 0: with C the candidates' covariance, the variance of u's similarities."""
    values = covariance.new_empty(queries.shape[0])
    matrix = _for_product(covariance, queries)
    for begin in range(0, queries.shape[0], chunk):
        block = queries[begin : begin + chunk]
        product = _for_product(block.to(covariance.dtype), queries) @ matrix
        values[begin : begin + chunk] = (product.to(covariance.dtype) * block).sum(1)
    return values.clamp_min(0)


def _wide_sum(embeddings: Tensor) -> Tensor:
    return embeddings.sum(0, dtype=torch.promote_types(embeddings.dtype, torch.float32))


def _for_product(block: Tensor, like: Tensor) -> Tensor:
    narrow = like.is_cuda and like.dtype in (torch.bfloat16, torch.float16)
    return block.to(torch.bfloat16) if narrow else block
