"""The contrastive loss over several processes: image embeddings stay on their rank, text embeddings are gathered.

Every rank computes its own images against the texts of all ranks, an M_r x N tile. The images' values are then
complete; the texts' values are merged from the ranks' column sums, 9 numbers for each text. In the backward pass the
texts' upstream gradients are gathered (one number each), and each text's gradient is summed on the rank that owns it.

Derivatives are those of the sum of all ranks' losses. The logit scale's is this rank's part of it: the ranks' parts
add up. Batches may differ in size from rank to rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from varalign.kernels import query_fields as f
from varalign.losses.operator import passes, without_autocast
from varalign.losses.similarity_variance import embedding_moments, quadratic_form, similarity_variance
from varalign.schedules.direction_stats import DirectionStats


@dataclass(frozen=True)
class BatchSizes:
    """How many images and texts every rank has."""

    images: list[int]
    texts: list[int]

    @classmethod
    def gathered(cls, images: Tensor, texts: Tensor, group: Any) -> BatchSizes:
        """Ask every rank. The host waits here for the device: the shapes of what follows depend on the answer."""
        own = torch.tensor([images.shape[0], texts.shape[0]], device=images.device)
        everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(everyone, own, group=group)
        table = torch.stack(everyone).tolist()
        return cls([row[0] for row in table], [row[1] for row in table])


def contrastive_across_ranks(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    image_ids: Tensor,
    text_image_ids: Tensor,
    sizes: BatchSizes,
    *,
    ignore: bool,
    cache_bytes: int,
    backend: str,
    group: Any,
) -> tuple[Tensor, Tensor, DirectionStats, DirectionStats]:
    """Values and statistics of this rank's images (M_r,) and texts (N_r,) among those of all ranks.

    Args:
        images: (M_r, D) and texts (N_r, D) of this rank; `sizes` of every rank.
        scale: (), the same on every rank.
        image_ids: (M_r,) or (M_r, K), K the rank's own, and text_image_ids (N_r,) int64, comparable between ranks.
    """
    outputs = _AcrossRanks.apply(
        images, texts, scale, image_ids, text_image_ids, sizes, ignore, cache_bytes, backend, group
    )
    nll_i2t, nll_t2i, stats_i2t, stats_t2i = outputs
    scale = scale.detach()
    return (
        nll_i2t,
        nll_t2i,
        DirectionStats.from_stacked(stats_i2t, sum(sizes.texts), scale),
        DirectionStats.from_stacked(stats_t2i, sum(sizes.images), scale),
    )


class _AcrossRanks(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(  # type: ignore[override]
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        image_ids: Tensor,
        text_image_ids: Tensor,
        sizes: BatchSizes,
        ignore: bool,
        cache_bytes: int,
        backend: str,
        group: Any,
    ) -> tuple[Tensor, ...]:
        module = passes(backend)
        all_texts = gather_rows(texts, sizes.texts, group)
        all_ids = gather_rows(text_image_ids, sizes.texts, group)
        sums, kept = module.tile_sums(images, all_texts, scale, image_ids, all_ids, cache_bytes=cache_bytes)
        m = images.shape[0]
        _merge_sums(sums[:, m:], group)
        ignored = None
        if ignore:
            ignored = module.positive_terms(images, all_texts, scale, kept, sums)
            column_ignored = ignored[:, m:].contiguous()
            dist.all_reduce(column_ignored, group=group)
            ignored[:, m:] = column_ignored
        own = _own_part(sizes.texts, group)
        own = slice(m + own.start, m + own.stop)
        variance = sums.new_zeros(sums.shape[1])
        variance[:m] = similarity_variance(images, all_texts)
        variance[own] = quadratic_form(texts, _covariance(images, sum(sizes.images), group))
        values, stats, terms = module.settle(sums, scale, variance, ignored)
        row_stats, own_stats = stats[:, :m].clone(), stats[:, own].clone()
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(row_stats, own_stats)
        ctx.save_for_backward(images, all_texts, scale, terms, *kept)
        ctx.sizes, ctx.ignore, ctx.backend, ctx.group = sizes, ignore, backend, group
        return values[:m].clone(), values[own].clone(), row_stats, own_stats

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, row_upstream: Tensor | None, column_upstream: Tensor | None, *others: Any
    ) -> tuple[Any, ...]:
        images, texts, scale, terms, *kept = ctx.saved_tensors
        sizes, group = ctx.sizes.texts, ctx.group
        own = sizes[dist.get_rank(group)]
        rows = terms.new_zeros(images.shape[0]) if row_upstream is None else row_upstream
        columns = terms.new_zeros(own) if column_upstream is None else column_upstream
        row_gradient, column_gradient, scale_gradient = passes(ctx.backend).tile_gradients(
            images,
            texts,
            scale,
            tuple(kept),
            terms,
            torch.cat([rows, gather_rows(columns, sizes, group)]),
            ignore=ctx.ignore,
            wide_columns=True,
        )
        column_gradient = _sum_to_owners(column_gradient, sizes, group)
        own_gradients = row_gradient, column_gradient.to(texts.dtype), scale_gradient
        return (*own_gradients, *[None] * 7)


def mean_across_ranks(values: Tensor, stats: DirectionStats, group: Any, weights: Tensor | None = None) -> Tensor:
    """() mean over all ranks' queries that have a positive, the same on every rank, with a gradient made for averaging.

    The gradient is this rank's share times the number of ranks: the mean of the ranks' gradients, which is what
    DistributedDataParallel takes, is then the gradient of the mean over all queries, however uneven the batches.

    Args:
        values: (queries,) of this rank. stats: theirs. weights: (queries,) how much each counts; None: all 1.
    """
    if weights is None:
        weights = torch.ones_like(values)
    weights = weights.detach().to(values.device, values.dtype) * stats.has_positive
    own = (values * weights).sum()
    totals = torch.stack([own.detach(), weights.sum()])
    dist.all_reduce(totals, group=group)
    count = torch.where(totals[1] > 0, totals[1], torch.ones_like(totals[1]))
    share = own * (dist.get_world_size(group) / count)
    return totals[0] / count + (share - share.detach())


RankValues = tuple[Tensor, Tensor, DirectionStats, DirectionStats]
"""Values and statistics of this rank's images and texts, as `contrastive_across_ranks` returns them."""


def mean_of_members(found: list[RankValues]) -> RankValues:
    """The means of the members' values and statistics, as one process takes them."""
    i2t, t2i, images, texts = zip(*found, strict=True)
    stats = [
        DirectionStats.from_stacked(
            torch.stack([part.stacked() for part in parts]).mean(0), parts[0].candidates, parts[0].logit_scale
        )
        for parts in (images, texts)
    ]
    return torch.stack(i2t).mean(0), torch.stack(t2i).mean(0), stats[0], stats[1]


def gather_stats(stats: DirectionStats, sizes: list[int], group: Any) -> DirectionStats:
    """The statistics of all ranks' queries, in the order of the ranks, the same on every rank."""
    table = gather_rows(stats.stacked().T.contiguous(), sizes, group)
    return DirectionStats.from_stacked(table.T, stats.candidates, stats.logit_scale)


def gather_rows(rows: Tensor, sizes: list[int], group: Any) -> Tensor:
    """All ranks' rows (sizes[rank], ..) one after the other, padded to the longest on the way."""
    longest = max(sizes)
    padded = rows.contiguous()
    if rows.shape[0] < longest:
        padded = torch.cat([padded, padded.new_zeros(longest - rows.shape[0], *rows.shape[1:])])
    received = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(received, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])


def sum_of_own(values: Tensor, sizes: list[int], group: Any) -> Tensor:
    """This rank's part of the sum over ranks of (sum(sizes),) values, which it changes."""
    dist.all_reduce(values, group=group)
    return values[_own_part(sizes, group)]


def _own_part(sizes: list[int], group: Any) -> slice:
    rank = dist.get_rank(group)
    begin = sum(sizes[:rank])
    return slice(begin, begin + sizes[rank])


def _merge_sums(sums: Tensor, group: Any) -> None:
    """Merge every rank's (QUERY_SUMS, N) sums of the same queries, in place: maxima first, then the rescaled sums."""
    extremes = torch.stack([sums[f.NEGATIVE_MAX], sums[f.POSITIVE_MAX], -sums[f.MINIMUM]])
    dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group)
    for maximum, rows, merged in (
        (f.NEGATIVE_MAX, (f.NEGATIVE_SUM, f.NEGATIVE_WEIGHTED), extremes[0]),
        (f.POSITIVE_MAX, (f.POSITIVE_SUM, f.POSITIVE_WEIGHTED), extremes[1]),
    ):
        finite = torch.where(merged == -torch.inf, torch.zeros_like(merged), merged)
        sums[list(rows)] *= torch.exp(sums[maximum] - finite)
    added = [
        f.NEGATIVE_SUM,
        f.NEGATIVE_WEIGHTED,
        f.POSITIVE_COUNT,
        f.POSITIVE_TOTAL,
        f.POSITIVE_SUM,
        f.POSITIVE_WEIGHTED,
    ]
    totals = sums[added]
    dist.all_reduce(totals, group=group)
    sums[added] = totals
    sums[f.NEGATIVE_MAX], sums[f.POSITIVE_MAX], sums[f.MINIMUM] = extremes[0], extremes[1], -extremes[2]


def _covariance(embeddings: Tensor, total: int, group: Any) -> Tensor:
    """(D, D) covariance of all ranks' embeddings, each rank's part taken about its own mean first."""
    mean, covariance = embedding_moments(embeddings)
    count = embeddings.shape[0]
    everywhere = mean * (count / total)
    dist.all_reduce(everywhere, group=group)
    apart = mean - everywhere
    merged = (covariance + torch.outer(apart, apart)) * (count / total)
    dist.all_reduce(merged, group=group)
    return merged


def _sum_to_owners(gradient: Tensor, sizes: list[int], group: Any) -> Tensor:
    """This rank's rows of the sum over ranks of (sum(sizes), D) gradients."""
    if dist.get_backend(group) != "nccl":
        # gloo cannot reduce and scatter: every rank gets the whole sum.
        dist.all_reduce(gradient, group=group)
        return gradient[_own_part(sizes, group)]
    longest = max(sizes)
    if min(sizes) < longest:
        parts = torch.split(gradient, sizes)
        gradient = torch.cat(
            [torch.cat([part, part.new_zeros(longest - part.shape[0], part.shape[1])]) for part in parts]
        )
    own = gradient.new_empty(longest, gradient.shape[1])
    dist.reduce_scatter_tensor(own, gradient.contiguous(), group=group)
    return own[: sizes[dist.get_rank(group)]]
