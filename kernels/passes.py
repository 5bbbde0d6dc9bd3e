"""The contrastive loss on a GPU: the same passes as `varalign.losses.reference`, with kernels from `tiles`.

`tile_sums` forward (1 unit; a unit is one M x N x D product), `positive_terms` for `duplicates="ignore"` (next to
nothing), `tile_gradients` backward (3 units, 2 where the logits were kept). Every result is the same bit for bit from
run to run.

All products are cuBLAS's, a block at a time, into float32; the kernels read a block and write sums or derivatives.
Products within the kernels were tried in 88 tiles: on an H200 at N = 32,768, D = 512 the best ran at a quarter (sums)
and a third (derivatives) of the library's rate, bound by what a tile reads again from the L2 cache and by sums over
its rows and columns that nothing hid. Forward and backward took 23 ms with the tiles in use then, and would have taken
some 14 with the best; this way takes 13.4.

A small batch's time is its launches, some 3 to 5 microseconds each: whatever is of the size of the batch is one kernel
(`matching`, `queries`, `variances`), not a chain of operations. `bench/launches.py` counts them.

On the CPU the kernels run only in Triton's interpreter (TRITON_INTERPRET=1 before the first import), for tests.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from varalign.kernels import host, queries, tiles, variances
from varalign.kernels import query_fields as f
from varalign.kernels.host import cdiv, on, product_options, triton_dtype, wide_dtype
from varalign.kernels.matching import CODE, empty_table, ids_of_a_row, match

# Elements of a block of logits, 128 MiB in float32; backward, where derivatives lie beside them, half as many where
# the gradients in float32 take more than that themselves.
BLOCK = 1 << 25
# Rows and columns of a program's tile, and its warps. One warp has no other to wait for: sums over a tile's columns
# stay within threads, sums over its rows are shuffles. On an H200 at N = 32,768: 2.5 ms; two or four warps took 3 to 7.
SUMS_TILE, SUMS_WARPS = ((32, 64), 1) if host.INTERPRETED else ((8, 256), 1)
# Tiles at most that a program takes, one below the other, before it writes the sums of its columns.
TALL = 8
GRADIENT_TILE, GRADIENT_WARPS = ((32, 64), 1) if host.INTERPRETED else ((16, 256), 4)

# What the forward pass keeps for the backward pass: the table of `matching`, the norms that a 16-bit cache's unit comes
# from (`variances.sums_of`), and the cache of the logits.
Kept = tuple[Tensor, Tensor, Tensor]


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
    """As `varalign.losses.reference.forward`."""
    variance = norms = None
    if statistics:
        sums, norms = variances.sums_of(rows, columns)
        variance = variances.similarity_variances(rows, columns, sums)
    sums, kept = tile_sums(
        rows, columns, scale, row_ids, column_ids, cache_bytes=cache_bytes, statistics=statistics, norms=norms
    )
    ignored = positive_terms(rows, columns, scale, kept, sums) if ignore else None
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
    norms: Tensor | None = None,
) -> tuple[Tensor, Kept]:
    """As `varalign.losses.reference.tile_sums`; the cache holds all logits where they fit `cache_bytes`.

    Args:
        norms: the second of `variances.sums_of`, where it is known.
    """
    m, n = rows.shape[0], columns.shape[0]
    wide = wide_dtype(rows)
    sums = torch.empty(f.QUERY_SUMS, m + n, dtype=wide, device=rows.device)
    table = match(rows, columns, row_ids, column_ids)
    cache = _empty_cache(rows, columns, cache_bytes)
    if norms is None:
        norms = variances.sums_of(rows, columns)[1] if _cache_kind(cache) == 2 else variances.empty_norms(rows)

    height, width = _sides(m, n, BLOCK)
    products = torch.empty(height * width, dtype=wide, device=rows.device)
    row_slots, row_tiles = cdiv(width, SUMS_TILE[1]), cdiv(height, SUMS_TILE[0])
    # As many tiles a program as leave every multiprocessor eight programs.
    tall = max(1, min(TALL, row_tiles * row_slots // (8 * host.multiprocessors(rows.device))))
    column_slots = cdiv(row_tiles, tall)
    row_parts = torch.empty(row_slots, 4, m, dtype=wide, device=rows.device)
    column_parts = torch.empty(column_slots, 4, n, dtype=wide, device=rows.device)
    with on(rows.device):
        for top in range(0, m, height):
            u = rows[top : top + height]
            for left in range(0, n, width):
                v = columns[left : left + width]
                block = products[: u.shape[0] * v.shape[0]].view(u.shape[0], v.shape[0])
                host.multiply(block, u, v.T, add=False)
                grid = cdiv(u.shape[0], SUMS_TILE[0] * tall), cdiv(v.shape[0], SUMS_TILE[1])
                tiles.similarity_block[grid](
                    block, scale, table[CODE], row_parts, column_parts, cache, norms,
                    m, n, top, left, *block.shape, tall,
                    CACHE=_cache_kind(cache), STATISTICS=statistics, IDS=ids_of_a_row(table, rows, columns),
                    PARTS=variances.PARTS, BM=SUMS_TILE[0], BN=SUMS_TILE[1], num_warps=SUMS_WARPS,
                )  # fmt: skip
        programs = cdiv(n, 64), cdiv(m, 64)
        queries.merge_parts[(sum(programs),)](
            column_parts, row_parts, sums, m, n, column_slots, row_slots, programs[0],
            WIDE=triton_dtype(wide), STATISTICS=statistics,
            BP=min(64, triton.next_power_of_2(max(row_slots, column_slots))), BQ=64,
        )  # fmt: skip
        _positive_pass(rows, columns, scale, table, sums, sums, terms=False)
    return sums, (table, norms, cache)


def positive_terms(rows: Tensor, columns: Tensor, scale: Tensor, kept: Kept, sums: Tensor) -> Tensor:
    """As `varalign.losses.reference.positive_terms`."""
    terms = torch.empty_like(sums[:2])
    with on(rows.device):
        _positive_pass(rows, columns, scale, kept[0], sums, terms, terms=True)
    return terms


def settle(
    sums: Tensor, scale: Tensor, variance: Tensor | None, ignored: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `varalign.losses.settle.settle`."""
    count = sums.shape[1]
    values, statistics, terms = (
        torch.empty(*shape, count, dtype=sums.dtype, device=sums.device) for shape in ((), (7,), (f.QUERY_TERMS,))
    )
    with on(sums.device):
        queries.settle_queries[(cdiv(count, 128),)](
            sums, scale, sums if variance is None else variance, sums if ignored is None else ignored,
            values, statistics, terms, count, VARIANCE=variance is not None, IGNORE=ignored is not None, BQ=128,
        )  # fmt: skip
    return values, statistics, terms


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
    """As `varalign.losses.reference.tile_gradients`; gradients come in the embeddings' dtype, rounded once."""
    # Upstream gradients of a mean are 1 / N: a probability below N / 10^7 times that would underflow in float16.
    gain = torch.linalg.vector_norm(upstream, torch.inf) if rows.dtype == torch.float16 else None
    with on(rows.device):
        return _gradients(
            rows, columns, scale, kept, terms.contiguous(), upstream.contiguous(), gain, ignore, wide_columns
        )


def _gradients(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    kept: Kept,
    terms: Tensor,
    upstream: Tensor,
    gain: Tensor | None,
    ignore: bool,
    wide_columns: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    m, n = rows.shape[0], columns.shape[0]
    wide = wide_dtype(rows)
    table, norms, cache = kept
    kind = _cache_kind(cache)
    height, width = _sides(m, n, BLOCK * 4 if kind else BLOCK // 2 if columns.numel() > BLOCK else BLOCK)
    buffer = torch.empty(height * width, dtype=rows.dtype, device=rows.device)
    products = torch.empty(0 if kind else height * width, dtype=wide, device=rows.device)
    row_gradient = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    row_total = (
        row_gradient if rows.dtype == wide else torch.empty(height, rows.shape[1], dtype=wide, device=rows.device)
    )
    column_total = torch.empty(columns.shape, dtype=wide, device=rows.device)
    slopes = []
    for top in range(0, m, height):
        u = rows[top : top + height]
        total = row_total[top : top + height] if rows.dtype == wide else row_total[: u.shape[0]]
        for left in range(0, n, width):
            v = columns[left : left + width]
            g = buffer[: u.shape[0] * v.shape[0]].view(u.shape[0], v.shape[0])
            if kind:
                logits = cache[top : top + u.shape[0], left : left + v.shape[0]]
            else:
                logits = products[: u.shape[0] * v.shape[0]].view(u.shape[0], v.shape[0])
                host.multiply(logits, u, v.T, add=False)
            tiles.gradient_block[cdiv(u.shape[0], GRADIENT_TILE[0]), cdiv(v.shape[0], GRADIENT_TILE[1])](
                logits, scale, table[CODE], terms, upstream, _or(gain, scale), norms, g,
                m, m + n, top, left, *g.shape, logits.stride(0),
                IGNORE=ignore, CACHE=kind, GAIN=gain is not None, IDS=ids_of_a_row(table, rows, columns),
                PARTS=variances.PARTS, BM=GRADIENT_TILE[0], BN=GRADIENT_TILE[1], num_warps=GRADIENT_WARPS,
            )  # fmt: skip
            host.multiply(total, g, v, add=left > 0)
            host.multiply(column_total[left : left + width], g.T, u, add=top > 0)
        slopes.append(_finish(total, u, scale, gain, row_gradient[top : top + height], slope=True))
    column_gradient = column_total
    if not wide_columns and columns.dtype != wide:
        column_gradient = torch.empty(columns.shape, dtype=columns.dtype, device=columns.device)
    _finish(column_total, columns, scale, gain, column_gradient, slope=False)
    return row_gradient, column_gradient, (slopes[0] if len(slopes) == 1 else torch.cat(slopes)).sum()


def _sides(m: int, n: int, elements: int) -> tuple[int, int]:
    """Height and width of the blocks of an (M, N) matrix: all of it, or up to so many elements, wider than high."""
    if m * n <= elements:
        return m, n
    width = min(n, 1 << (elements.bit_length() // 2))
    return min(m, max(1, elements // width)), width


def _finish(
    total: Tensor, embeddings: Tensor, scale: Tensor, gain: Tensor | None, out: Tensor, *, slope: bool
) -> Tensor:
    """Gradients from derivatives by the scaled embeddings, into out; with `slope` parts of the logit scale's."""
    count, d = total.shape
    programs = cdiv(count, 16)
    slopes = torch.empty(programs if slope else 0, dtype=total.dtype, device=total.device)
    # The interpreter cuts bfloat16 off where a GPU rounds it: there torch rounds.
    written = total if host.INTERPRETED else out
    queries.finish_gradients[(programs,)](
        total, embeddings, scale, _or(gain, scale), written, slopes, count, d, *embeddings.stride(),
        WIDE=triton_dtype(total.dtype), GAIN=gain is not None, SLOPE=slope, BR=16,
        BD=min(128, triton.next_power_of_2(d)),
    )  # fmt: skip
    if written is not out:
        out.copy_(written)
    return slopes


def kept_like(rows: Tensor, columns: Tensor, row_ids: Tensor | None, cache_bytes: int) -> Kept:
    """Uninitialised tensors of the shapes that `tile_sums` keeps, for tracing without data."""
    return empty_table(rows, columns, row_ids), variances.empty_norms(rows), _empty_cache(rows, columns, cache_bytes)


def _empty_cache(rows: Tensor, columns: Tensor, cache_bytes: int) -> Tensor:
    """An uninitialised (M, N) cache of the logits if it fits, else an empty tensor.

    32-bit embeddings keep 32 bits. 16-bit ones keep 16: whole multiples of the largest possible |z| / 32767, wrong by
    at most 0.0015 at a logit scale of 100 (0.2 % of a probability, less than rounding it to bfloat16). Exponentials
    would need a common maximum, and a row's is not a column's: at that scale one of them underflows.
    """
    count = rows.shape[0] * columns.shape[0]
    dtype = torch.int16 if rows.dtype.itemsize == 2 else rows.dtype
    kept = count * dtype.itemsize <= cache_bytes
    return torch.empty((rows.shape[0], columns.shape[0]) if kept else (0,), dtype=dtype, device=rows.device)


def _cache_kind(cache: Tensor) -> int:
    return 0 if not cache.numel() else 2 if cache.dtype == torch.int16 else 1


def _positive_pass(
    rows: Tensor, columns: Tensor, scale: Tensor, table: Tensor, sums: Tensor, out: Tensor, *, terms: bool
) -> None:
    m, count, entries = rows.shape[0], rows.shape[0] + columns.shape[0], table.shape[1]
    each = ids_of_a_row(table, rows, columns)
    parts = out if each == 1 else out.new_empty(out.shape[0], entries)
    # A block's positives are about as many as its queries: a wider tile would be mostly not positives.
    tiles.positive_pass[(cdiv(entries, 32),)](
        rows, columns, scale, table, sums, parts, m, count, entries, rows.shape[1], *rows.stride(), *columns.stride(),
        TERMS=terms, IDS=each, BM=32, BN=32, BK=32, num_warps=4, num_stages=2, **product_options(rows),
    )  # fmt: skip
    if each > 1:
        queries.merge_ids[(cdiv(count, 128),)](
            parts, out, m, count, entries, TERMS=terms, IDS=each, WIDE=triton_dtype(out.dtype), BQ=128
        )


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """The tensor, or something in its place that is not read."""
    return other if tensor is None else tensor
