"""The contrastive loss on a GPU: the same passes as `varalign.losses.reference`, with kernels from `tiles`.

`tile_sums` forward (1 unit; a unit is one M x N x D product), `positive_terms` for `duplicates="ignore"` (next to
nothing), `tile_gradients` backward (3 units, 2 where the logits were kept). Every result is the same bit for bit from
run to run.

The backward pass writes the derivatives by the logits a block at a time and lets cuBLAS multiply them into float32: 3
units, two of them plain matrix products at the library's own rate. Keeping the derivatives on the chip instead was
tried and left out: the logits are then computed again for every slice of the dimensions and for each side, 4 units up
to D = 128 and 2 + 2 D / 128 above. Nothing here has been timed on a GPU; `make bench-gpu` does that.

A small batch's time is its launches, some 3 to 5 microseconds each: whatever is of the size of the batch is one kernel
(`matching`, `queries`, `variances`), not a chain of operations. `bench/launches.py` counts them.

On the CPU the kernels run only in Triton's interpreter (TRITON_INTERPRET=1 before the first import), for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from varalign.kernels import host, queries, tiles, variances
from varalign.kernels import query_fields as f
from varalign.kernels.host import on, product_options, triton_dtype, wide_dtype
from varalign.kernels.launch_table import Launch, launch
from varalign.kernels.matching import CODE, empty_table, ids_of_a_row, match

# Column partials of one call of the similarity pass: 16 bytes a column and row block. At N = 256k this is 2,048
# columns.
PARTIAL_BYTES = 64 << 20
# Side of a block of derivatives, a whole matrix up to twice that: 8192^2 in 16 bits is 128 MiB.
BLOCK = 4096

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
    config = _launch("similarity", rows, m)
    sums = torch.empty(f.QUERY_SUMS, m + n, dtype=wide, device=rows.device)
    table = match(rows, columns, row_ids, column_ids)
    cache = _empty_cache(rows, columns, cache_bytes)
    if norms is None:
        norms = variances.sums_of(rows, columns)[1] if _cache_kind(cache) == 2 else variances.empty_norms(rows)

    row_blocks = triton.cdiv(m, config.block_m)
    width = PARTIAL_BYTES // (row_blocks * 4 * wide.itemsize)
    width = min(triton.cdiv(n, config.block_n), max(1, width // config.block_n)) * config.block_n
    tiles_wide = width // config.block_n
    # Few row blocks: several programs share a row's columns, until every multiprocessor has four programs or a tile
    # each.
    splits = max(1, min(tiles_wide, triton.cdiv(4 * _multiprocessors(rows.device), row_blocks)))
    per_split = triton.cdiv(tiles_wide, splits)
    splits = triton.cdiv(tiles_wide, per_split)
    row_parts = torch.empty(splits, 4, m, dtype=wide, device=rows.device)
    column_parts = torch.empty(row_blocks * 4 * min(width, n), dtype=wide, device=rows.device)
    with on(rows.device):
        for begin in range(0, n, width):
            end = min(n, begin + width)
            tiles.similarity_pass[(row_blocks, splits)](
                rows, columns, scale, table[CODE], row_parts, column_parts, cache, norms,
                m, n, rows.shape[1], *rows.stride(), *columns.stride(), begin, end, per_split,
                CACHE=_cache_kind(cache), STATISTICS=statistics, IDS=ids_of_a_row(table, rows, columns),
                PARTS=variances.PARTS, **_options(config, rows),
            )  # fmt: skip
            # The rows' parts are whole after the last columns.
            programs = [triton.cdiv(end - begin, 64), triton.cdiv(m, 64) if end == n else 0]
            queries.merge_parts[(sum(programs),)](
                column_parts, row_parts, sums, m, m + n, begin, end, row_blocks, splits, programs[0],
                WIDE=triton_dtype(wide), STATISTICS=statistics,
                BP=min(64, triton.next_power_of_2(max(row_blocks, splits))), BQ=64,
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
        queries.settle_queries[(triton.cdiv(count, 128),)](
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
    wide, config = wide_dtype(rows), _launch("gradient", rows, m)
    table, norms, cache = kept
    block = max(m, n) if max(m, n) <= 2 * BLOCK else BLOCK
    buffer = torch.empty(min(block, m) * min(block, n), dtype=rows.dtype, device=rows.device)
    row_gradient = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    row_total = (
        row_gradient
        if rows.dtype == wide
        else torch.empty(min(block, m), rows.shape[1], dtype=wide, device=rows.device)
    )
    column_total = torch.empty(columns.shape, dtype=wide, device=rows.device)
    slopes = []
    for top in range(0, m, block):
        u = rows[top : top + block]
        total = row_total[top : top + block] if rows.dtype == wide else row_total[: u.shape[0]]
        for left in range(0, n, block):
            v = columns[left : left + block]
            g = buffer[: u.shape[0] * v.shape[0]].view(u.shape[0], v.shape[0])
            grid = (triton.cdiv(u.shape[0], config.block_m) * triton.cdiv(v.shape[0], config.block_n),)
            tiles.gradient_block[grid](
                rows, columns, scale, table[CODE], terms, upstream, _or(gain, scale), cache, norms, g,
                m, n, rows.shape[1], *rows.stride(), *columns.stride(), top, left, u.shape[0], v.shape[0],
                IGNORE=ignore, CACHE=_cache_kind(cache), GAIN=gain is not None, IDS=ids_of_a_row(table, rows, columns),
                PARTS=variances.PARTS, **_options(config, rows),
            )  # fmt: skip
            host.multiply(total, g, v, add=left > 0)
            host.multiply(column_total[left : left + block], g.T, u, add=top > 0)
        slopes.append(_finish(total, u, scale, gain, row_gradient[top : top + block], slope=True))
    column_gradient = column_total
    if not wide_columns and columns.dtype != wide:
        column_gradient = torch.empty(columns.shape, dtype=columns.dtype, device=columns.device)
    _finish(column_total, columns, scale, gain, column_gradient, slope=False)
    return row_gradient, column_gradient, (slopes[0] if len(slopes) == 1 else torch.cat(slopes)).sum()


def _finish(
    total: Tensor, embeddings: Tensor, scale: Tensor, gain: Tensor | None, out: Tensor, *, slope: bool
) -> Tensor:
    """Gradients from derivatives by the scaled embeddings, into out; with `slope` parts of the logit scale's."""
    count, d = total.shape
    programs = triton.cdiv(count, 16)
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
    each, config = ids_of_a_row(table, rows, columns), _launch("positive", rows, entries)
    parts = out if each == 1 else out.new_empty(out.shape[0], entries)
    tiles.positive_pass[(triton.cdiv(entries, config.block_m),)](
        rows, columns, scale, table, sums, parts, m, count, entries, rows.shape[1], *rows.stride(), *columns.stride(),
        TERMS=terms, IDS=each, **_options(config, rows),
    )  # fmt: skip
    if each > 1:
        queries.merge_ids[(triton.cdiv(count, 128),)](
            parts, out, m, count, entries, TERMS=terms, IDS=each, WIDE=triton_dtype(out.dtype), BQ=128
        )


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """The tensor, or something in its place that is not read."""
    return other if tensor is None else tensor


def _launch(task: str, embeddings: Tensor, count: int) -> Launch:
    kind = {2: "16", 8: "64"}.get(embeddings.dtype.itemsize, "tf32" if host.tf32() else "ieee")
    return launch(task, host.capability(embeddings), kind, count, embeddings.shape[1])


def _options(config: Launch, embeddings: Tensor) -> dict[str, Any]:
    """Keyword arguments that every pass over tiles takes."""
    return {
        **product_options(embeddings),
        "BM": config.block_m,
        "BN": config.block_n,
        "BK": config.block_k,
        "num_warps": config.warps,
        "num_stages": config.stages,
    }


def _multiprocessors(device: torch.device) -> int:
    return host.multiprocessors(device)
