"""The contrastive loss in plain PyTorch, a chunk of rows at a time; tests compare the kernels with it.

Three passes over an M x N tile, as in `varalign.kernels.passes`: `tile_sums` computes the sums of every row and column,
`positive_terms` the further sums of `duplicates="ignore"`, `tile_gradients` the gradients. Memory is
O((M + N) * D + chunk): no M x N matrix exists unless it is at most one chunk, which is then kept for the backward pass.
Any device and dtype; 16-bit embeddings are computed in float32, float64 in float64.

u, v embeddings; z logits; a row is an image, a column a text. Tables with a value a query hold Q = M + N of them, the
rows' first. A row has K ids (usually one), a column has one and is a positive of the rows that have it. `Kept` is what
the forward pass keeps for the backward pass: the ids (M K + N,), an empty tensor instead of the kernels' norms, and the
cache of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from varalign.kernels import query_fields as f
from varalign.losses.settle import negative_lse, settle
from varalign.losses.similarity_variance import similarity_variance

Kept = tuple[Tensor, Tensor, Tensor]

# 2^20 logits a chunk: 4 MiB in float32, which fit a core's share of the cache during a dozen passes over the chunk.
# A quarter of that was slower (short matrix products), four times as much was not faster (memory traffic).
CHUNK_LOGITS = 1 << 20


@dataclass(frozen=True)
class _Matches:
    """Texts sorted by id, so that the positives by each id of a row are one range of them."""

    order: Tensor  # (N,) columns in the order of their ids
    first: Tensor  # (M K,) where the range of each id of each row begins in `order`
    counts: Tensor  # (M K,) how long it is
    each: int  # K, ids of a row

    @classmethod
    def of(cls, ids: Tensor, rows: Tensor, columns: Tensor) -> _Matches:
        """From the ids (M K + N,) of the rows (M, D) and the columns (N, D)."""
        row_ids, column_ids = ids.split([ids.shape[0] - columns.shape[0], columns.shape[0]])
        ordered, order = torch.sort(column_ids, stable=True)
        first = torch.searchsorted(ordered, row_ids)
        counts = torch.searchsorted(ordered, row_ids, right=True) - first
        return cls(order, first, counts, row_ids.shape[0] // rows.shape[0])

    def pairs(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Row (counted from `begin`) and column of every positive pair of the rows begin:end."""
        part = slice(begin * self.each, end * self.each)
        counts = self.counts[part]
        owners = torch.repeat_interleave(counts)
        ends = counts.cumsum(0)
        within = torch.arange(owners.shape[0], device=owners.device) - (ends - counts)[owners]
        columns = self.order[self.first[part][owners] + within]
        return owners if self.each == 1 else owners // self.each, columns


def _wide(embeddings: Tensor) -> Tensor:
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))


def _chunks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    step = max(1, min(rows, CHUNK_LOGITS // columns))
    for begin in range(0, rows, step):
        yield begin, min(rows, begin + step)


def _empty_sums(queries: int, like: Tensor) -> Tensor:
    sums = like.new_zeros(f.QUERY_SUMS, queries)
    sums[f.NEGATIVE_MAX] = -torch.inf
    sums[f.POSITIVE_MAX] = -torch.inf
    sums[f.MINIMUM] = torch.inf
    return sums


def _finite(maximum: Tensor) -> Tensor:
    """The maximum, or 0 where there is no candidate (-inf), so that exp(-inf - maximum) is 0 and not NaN."""
    return torch.where(maximum == -torch.inf, torch.zeros_like(maximum), maximum)


def forward(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    *,
    ignore: bool,
    cache_bytes: int,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor, Kept]:
    """Values (Q,), statistics (7, Q), terms (QUERY_TERMS, Q) and what `tile_gradients` needs besides.

    Args:
        ignore: whether `duplicates` is "ignore". The others as in `tile_sums`.
    """
    sums, kept = tile_sums(rows, columns, scale, row_ids, column_ids, cache_bytes=cache_bytes, statistics=statistics)
    ignored = positive_terms(rows, columns, scale, kept, sums) if ignore else None
    variance = None
    if statistics and kept[2].numel():
        # A small batch, all of whose logits are at hand: cheaper than two D x D covariances.
        z = kept[2]
        variance = torch.cat([(z - z.mean(d, keepdim=True)).square_().mean(d) for d in (1, 0)]) / scale**2
    elif statistics:
        variance = torch.cat([similarity_variance(rows, columns), similarity_variance(columns, rows)])
    return *settle(sums, scale, variance, ignored), kept


def tile_sums(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    *,
    cache_bytes: int = 0,
    statistics: bool = True,
) -> tuple[Tensor, Kept]:
    """Sums of every row and every column over the tile of logits: (QUERY_SUMS, Q), and what the backward pass needs.

    Args:
        rows: (M, D) image embeddings.
        columns: (N, D) text embeddings.
        scale: (), above 0.
        row_ids: (M,) or (M, K) int64; a text is a positive of an image where its id is among the image's.
        column_ids: (N,) int64. None for both: text i is the positive of image i.
        cache_bytes: the logits are returned as the cache, for the backward pass, where they are one chunk and fit this.
        statistics: without them NEGATIVE_WEIGHTED and MINIMUM, which the loss does not need, are NaN.
    """
    u, v = _wide(rows), _wide(columns)
    if row_ids is None or column_ids is None:
        row_ids, column_ids = (torch.arange(x.shape[0], device=x.device) for x in (rows, columns))
    sums = _empty_sums(u.shape[0] + v.shape[0], u)
    row_sums, column_sums = sums[:, : u.shape[0]], sums[:, u.shape[0] :]
    ids = torch.cat([row_ids.reshape(-1), column_ids])
    matches = _Matches.of(ids, rows, columns)
    cache = u.new_empty(0)
    for begin, end in _chunks(u.shape[0], v.shape[0]):
        z = (u[begin:end] * scale) @ v.T
        if end - begin == u.shape[0] and z.numel() * z.element_size() <= cache_bytes:
            cache = z
        r, c = matches.pairs(begin, end)
        positives = z[r, c]
        block = _empty_sums(end - begin, z)
        _add_positives(block, r, positives)
        _add_positives(column_sums, c, positives)
        if statistics:
            block[f.MINIMUM] = z.amin(1)
            column_sums[f.MINIMUM] = torch.minimum(column_sums[f.MINIMUM], z.amin(0))
        # The maxima are over the negatives only: positives are -inf while they are computed.
        z[r, c] = -torch.inf
        row_max, column_max = z.amax(1), z.amax(0)
        z[r, c] = positives
        _add_negatives(block, z, row_max, (r, c), dim=1, weighted=statistics)
        _add_negatives(column_sums, z, column_max, (r, c), dim=0, weighted=statistics)
        row_sums[:, begin:end] = block
    if not statistics:
        sums[[f.NEGATIVE_WEIGHTED, f.MINIMUM]] = torch.nan
    return sums, (ids, scale.new_empty(0), cache)


def _add_positives(sums: Tensor, queries: Tensor, z: Tensor) -> None:
    """Add positive pairs, one query and one logit each, to the sums."""
    ones = torch.ones_like(z)
    old = sums[f.POSITIVE_MAX].clone()
    sums[f.POSITIVE_MAX].scatter_reduce_(0, queries, z, "amax")
    new = _finite(sums[f.POSITIVE_MAX])
    shrink = torch.exp(old - new)
    e = torch.exp(z - new[queries])
    sums[f.POSITIVE_COUNT].index_add_(0, queries, ones)
    sums[f.POSITIVE_TOTAL].index_add_(0, queries, z)
    sums[f.POSITIVE_SUM].mul_(shrink).index_add_(0, queries, e)
    sums[f.POSITIVE_WEIGHTED].mul_(shrink).index_add_(0, queries, e * z)


def _add_negatives(
    sums: Tensor, z: Tensor, block_max: Tensor, positives: tuple[Tensor, Tensor], dim: int, weighted: bool
) -> None:
    """Add a chunk's negatives along `dim`; `block_max` is their maximum."""
    old = sums[f.NEGATIVE_MAX]
    maximum = torch.maximum(old, block_max)
    new = _finite(maximum)
    shrink = torch.exp(old - new)
    e = (z - new.unsqueeze(dim)).exp_()
    e[positives] = 0
    sums[f.NEGATIVE_SUM].mul_(shrink).add_(e.sum(dim))
    if weighted:
        sums[f.NEGATIVE_WEIGHTED].mul_(shrink).add_(e.mul_(z).sum(dim))
    sums[f.NEGATIVE_MAX] = maximum


def positive_terms(rows: Tensor, columns: Tensor, scale: Tensor, kept: Kept, sums: Tensor) -> Tensor:
    """(2, Q): sums over each query's positives of log(1 + e^(L - z)) and of its derivative 1 / (1 + e^(z - L)).

    Args:
        sums: from `tile_sums`, which give the log-sum-exp L of the query's negatives.
    """
    u, v = _wide(rows), _wide(columns)
    m = u.shape[0]
    negatives, all_terms = negative_lse(sums), u.new_zeros(2, m + v.shape[0])
    row_negatives, column_negatives = negatives[:m], negatives[m:]
    row_terms, column_terms = all_terms[:, :m], all_terms[:, m:]
    matches = _Matches.of(kept[0], rows, columns)
    for begin, end in _chunks(u.shape[0], v.shape[0]):
        r, c = matches.pairs(begin, end)
        z = ((u[begin:end] * scale) @ v.T)[r, c]
        for terms, queries, negatives in ((row_terms, r + begin, row_negatives), (column_terms, c, column_negatives)):
            above = negatives[queries] - z
            terms[0].index_add_(0, queries, torch.logaddexp(above, torch.zeros_like(above)))
            terms[1].index_add_(0, queries, torch.sigmoid(above))
    return all_terms


def tile_gradients(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    kept: Kept,
    terms: Tensor,
    upstream: Tensor,
    *,
    ignore: bool,
    wide_columns: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sum of upstream * value over all queries: (M, D), (N, D) in the embeddings' dtype, and ().

    Args:
        kept: from `tile_sums`; where its cache is empty, the logits are computed again.
        terms: (QUERY_TERMS, Q) from the forward pass.
        upstream: (Q,); that of a query without positives, whose value is the constant 0, is ignored.
        ignore: whether `duplicates` is "ignore".
        wide_columns: whether the columns' gradient stays in float32, to be added to others'.
    """
    u, v = _wide(rows), _wide(columns)
    m, (ids, _, cache) = u.shape[0], kept
    upstream = torch.where(terms[f.INVERSE_COUNT] == 0, torch.zeros_like(upstream), upstream)
    row_terms, column_terms = terms[:, :m], terms[:, m:]
    row_upstream, column_upstream = upstream[:m], upstream[m:]
    row_gradient, column_gradient = torch.empty_like(u), torch.zeros_like(v)
    matches = _Matches.of(ids, rows, columns)
    for begin, end in _chunks(u.shape[0], v.shape[0]):
        z = cache if cache.numel() else (u[begin:end] * scale) @ v.T
        r, c = matches.pairs(begin, end)
        positives = z[r, c]
        block_terms, block_upstream = row_terms[:, begin:end], row_upstream[begin:end]
        g = (z - block_terms[f.SHIFT].unsqueeze(1)).exp_().mul_(block_upstream.unsqueeze(1))
        g.addcmul_((z - column_terms[f.SHIFT]).exp_(), column_upstream.expand_as(z))
        # The one-hot is subtracted here, at full precision, not as 1 from a rounded probability.
        g[r, c] = _positive_gradient(positives, block_terms[:, r], ignore) * block_upstream[r]
        g[r, c] += _positive_gradient(positives, column_terms[:, c], ignore) * column_upstream[c]
        torch.mm(g, v, out=row_gradient[begin:end])
        column_gradient.addmm_(g.T, u[begin:end])
    scale_gradient = (row_gradient * u).sum()
    row_gradient, column_gradient = row_gradient.mul_(scale).to(rows.dtype), column_gradient.mul_(scale)
    return row_gradient, column_gradient if wide_columns else column_gradient.to(columns.dtype), scale_gradient


def _positive_gradient(z: Tensor, terms: Tensor, ignore: bool) -> Tensor:
    """d value / dz at positive pairs with logits z (P,) and their queries' terms (QUERY_TERMS, P)."""
    inverse = terms[f.INVERSE_COUNT]
    if ignore:
        return -inverse * torch.sigmoid(terms[f.POSITIVE_SHIFT] - z)
    # A lone positive: p - 1 is minus the negatives' share, known without subtracting.
    return torch.where(inverse == 1, -terms[f.SHARE], torch.exp(z - terms[f.POSITIVE_SHIFT]) - inverse)


def kept_like(rows: Tensor, columns: Tensor, row_ids: Tensor | None, cache_bytes: int) -> Kept:
    """Uninitialised tensors of the shapes that `tile_sums` keeps for these arguments, for tracing without data."""
    m, n = rows.shape[0], columns.shape[0]
    dtype = torch.promote_types(rows.dtype, torch.float32)
    cached = m * n <= max(CHUNK_LOGITS, n) and m * n * dtype.itemsize <= cache_bytes
    ids = rows.new_empty((m if row_ids is None else row_ids.numel()) + n, dtype=torch.int64)
    return ids, rows.new_empty(0, dtype=dtype), rows.new_empty((m, n) if cached else (0,), dtype=dtype)
