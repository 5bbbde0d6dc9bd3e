"""What a step knows about one direction's similarity scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class DirectionStats:
    """Statistics of every query's scores over its candidates, for one direction (i2t: queries are images).

    Each tensor is (queries,), detached, float32 (float64 for float64 embeddings), on the embeddings' device. Apart from
    `lse` they are similarities s = u.v, not logits. A query without positives has `positive_mean` and `positive_max`
    -inf, one without negatives has `negative_max` -inf.

    Attributes:
        lse: log-sum-exp of the logits over all candidates.
        positive_mean: mean similarity of the positives.
        positive_max: best positive.
        negative_max: best negative.
        minimum: smallest similarity of all candidates.
        expected: sum of p s, p the softmax of the logits.
        variance: variance of the similarities, divided by the number of candidates.
        candidates: how many candidates each query has.
        logit_scale: (), what turned similarities into logits.
        means: (3,) means over the queries of variance, entropy and spread, where a kernel has them already; else None.
    """

    lse: Tensor
    positive_mean: Tensor
    positive_max: Tensor
    negative_max: Tensor
    minimum: Tensor
    expected: Tensor
    variance: Tensor
    candidates: int
    logit_scale: Tensor
    means: Tensor | None = None

    @property
    def maximum(self) -> Tensor:
        """(queries,) largest similarity of all candidates."""
        return torch.maximum(self.positive_max, self.negative_max)

    @property
    def entropy(self) -> Tensor:
        """(queries,) entropy of the softmax over the candidates, in nats: lse - logit_scale * expected, at least 0."""
        return (self.lse - self.logit_scale * self.expected).clamp_min(0)

    @property
    def positive_probability(self) -> Tensor:
        """(queries,) softmax probability at the positives' mean similarity; 0 without positives."""
        return torch.exp(self.logit_scale * self.positive_mean - self.lse)

    @property
    def margin(self) -> Tensor:
        """(queries,) best positive minus best negative: the query is right at rank 1 where this is above 0."""
        return self.positive_max - self.negative_max

    @property
    def has_positive(self) -> Tensor:
        """(queries,) bool: whether the query counts in the mean."""
        return self.positive_max != -torch.inf

    @property
    def mean_variance(self) -> Tensor:
        """() mean of `variance` over the queries."""
        return self.variance.mean() if self.means is None else self.means[0]

    @property
    def mean_entropy(self) -> Tensor:
        """() mean of `entropy` over the queries."""
        return self.entropy.mean() if self.means is None else self.means[1]

    @property
    def mean_spread(self) -> Tensor:
        """() mean of `maximum` - `minimum` over the queries."""
        return (self.maximum - self.minimum).mean() if self.means is None else self.means[2]

    def stacked(self) -> Tensor:
        """The fields as one (7, queries) tensor, in the order of the class."""
        return torch.stack([getattr(self, name) for name in FIELDS])

    @classmethod
    def from_stacked(
        cls, table: Tensor, candidates: int, logit_scale: Tensor, means: Tensor | None = None
    ) -> DirectionStats:
        """The inverse of `stacked`; the tensors are views of `table`."""
        columns = dict(zip(FIELDS, table.unbind(0), strict=True))
        return cls(**columns, candidates=candidates, logit_scale=logit_scale, means=means)


FIELDS = tuple(field.name for field in fields(DirectionStats))[:7]


def mean_over_queries(values: Tensor, stats: DirectionStats, weights: Tensor | None = None) -> Tensor:
    """Mean of (queries,) values over the queries that have a positive: () in the values' dtype, 0 where none has.

    Args:
        values: (queries,), for example the losses of one direction; 0 at queries without positives.
        stats: that direction's statistics.
        weights: (queries,) at least 0, how much each query counts in the mean; 0 where they add up to 0. None: all 1.
    """
    total, count = query_totals(values, stats, weights)
    return total / count


def query_totals(values: Tensor, stats: DirectionStats, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """() weighted sum of the values, and () what to divide it by: the weights of the queries with a positive."""
    if weights is None:
        return values.sum(), stats.has_positive.sum().clamp_min(1)
    weights = check_weights(weights, values.shape, values)
    count = (weights * stats.has_positive).sum()
    return (values * weights).sum(), torch.where(count > 0, count, torch.ones_like(count))


def check_weights(weights: Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
    """The weights without gradient, in the values' dtype and on their device; an error where they are not one each."""
    if tuple(weights.shape) != tuple(shape):
        raise ValueError(f"wanted one weight a query, {tuple(shape)}, not {tuple(weights.shape)}")
    return weights.detach().to(like.device, like.dtype)


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
