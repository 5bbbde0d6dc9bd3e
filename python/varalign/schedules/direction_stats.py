"""Statistics of one direction's similarity scores in a step; the losses compute them for the schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varalign.kernels.query_fields import STATISTICS


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
        candidates: number of candidates of each query.
        logit_scale: (), the factor from similarities to logits.
        means: (3,) means over the queries of variance, entropy and spread, if a kernel has computed them; else None.
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
        """(queries,) best positive minus best negative; above 0, the query's top candidate is right."""
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
        """The fields as one (7, queries) tensor, in the order of `STATISTICS`."""
        return torch.stack([getattr(self, name) for name in STATISTICS])

    @classmethod
    def from_stacked(
        cls, table: Tensor, candidates: int, logit_scale: Tensor, means: Tensor | None = None
    ) -> DirectionStats:
        """The inverse of `stacked`; the tensors are views of `table`."""
        columns = dict(zip(STATISTICS, table.unbind(0), strict=True))
        return cls(**columns, candidates=candidates, logit_scale=logit_scale, means=means)

    @classmethod
    def joined(cls, parts: Sequence[DirectionStats]) -> DirectionStats:
        """The statistics of all queries of several batches, with the mean number of candidates."""
        if len(parts) == 1:
            return parts[0]
        counts = [len(part.lse) for part in parts]
        candidates = round(sum(part.candidates * n for part, n in zip(parts, counts, strict=True)) / sum(counts))
        known = [part.means for part in parts if part.means is not None]
        means = None
        if len(known) == len(parts):
            means = torch.stack([mean * (n / sum(counts)) for mean, n in zip(known, counts, strict=True)]).sum(0)
        return cls.from_stacked(
            torch.cat([part.stacked() for part in parts], 1), candidates, parts[-1].logit_scale, means
        )
