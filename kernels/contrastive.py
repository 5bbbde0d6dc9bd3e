"""The contrastive loss on a GPU: the same three passes as `varalign.losses.reference`, with kernels from `tiles`.

`tile_sums` forward (1 unit; a unit is one M x N x D product), `positive_terms` for `duplicates="ignore"` (next to
nothing), `tile_gradients` backward (3 units, 2 where the logits were kept). Every result is the same bit for bit from
run to run.

The default backward, "blocks", writes the derivatives by the logits a block at a time and lets cuBLAS multiply them
into float32: 3 units. "fused" keeps them on the chip and pays for it by computing the logits again for every slice of
the dimensions and for each side: 4 units up to D = 128, 2 + 2 D / 128 above (64 for 128 in 32 bits).
Nothing here has been timed on a GPU: "blocks" is the default for its count of units, and because two of its three are
plain matrix products at the library's own rate. `make bench-gpu` measures both.

On the CPU the kernels run only in Triton's interpreter (TRITON_INTERPRET=1 before the first import), for tests.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from varalign.kernels import fields as f
from varalign.kernels import tiles
from varalign.kernels.launch_table import Launch, launch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Column partials of one call of the similarity pass: 16 bytes a column and row block. At N = 256k this is 2,048
# columns.
PARTIAL_BYTES = 64 << 20
# Side of a block of derivatives, a whole matrix up to twice that: 8192^2 in 16 bits is 128 MiB.
BLOCK = 4096

BACKWARDS = ("blocks", "fused")
# One of them, to compare them; empty: the default of `tile_gradients`.
BACKWARD = ""


def tile_sums(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_ids: Tensor,
    column_ids: Tensor,
    *,
    cache_bytes: int = 0,
    statistics: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `varalign.losses.reference.tile_sums`; the cache holds all logits where they fit `cache_bytes`."""
    m, n = rows.shape[0], columns.shape[0]
    wide = _wide(rows)
    config = _launch("similarity", rows, m)
    row_sums = torch.empty(f.QUERY_SUMS, m, dtype=wide, device=rows.device)
    column_sums = torch.empty(f.QUERY_SUMS, n, dtype=wide, device=rows.device)
    if not statistics:
        for sums in (row_sums, column_sums):
            sums[f.NEGATIVE_WEIGHTED : f.MINIMUM + 1].fill_(torch.nan)
    match = _Matching.of(row_ids, column_ids)
    cache = empty_cache(rows, columns, cache_bytes)
    step = _cache_step(rows, columns, scale, cache)

    row_blocks = triton.cdiv(m, config.block_m)
    width = PARTIAL_BYTES // (row_blocks * 4 * wide.itemsize)
    width = min(triton.cdiv(n, config.block_n), max(1, width // config.block_n)) * config.block_n
    tiles_wide = width // config.block_n
    # Few row blocks: several programs share a row's columns, until every multiprocessor has four programs or a tile
    # each.
    splits = max(1, min(tiles_wide, triton.cdiv(4 * _multiprocessors(rows.device), row_blocks)))
    per_split = triton.cdiv(tiles_wide, splits)
    splits = triton.cdiv(tiles_wide, per_split)
    row_parts = torch.zeros(splits, 4, m, dtype=wide, device=rows.device)
    row_parts[:, f.NEGATIVE_MAX].fill_(-torch.inf)
    row_parts[:, f.MINIMUM].fill_(torch.inf)
    column_parts = torch.empty(row_blocks * 4 * min(width, n), dtype=wide, device=rows.device)
    with _on(rows.device):
        for begin in range(0, n, width):
            end = min(n, begin + width)
            tiles.similarity_pass[(row_blocks, splits)](
                rows, columns, scale, match.row_codes, match.column_codes, row_parts, column_parts, cache, step,
                m, n, rows.shape[1], *rows.stride(), *columns.stride(), begin, end, per_split,
                CACHE=_cache_kind(cache), STATISTICS=statistics, **_options(config, rows),
            )  # fmt: skip
            _merge(column_parts, column_sums[:, begin:end], row_blocks, n, statistics)
        _merge(row_parts, row_sums, splits, m, statistics)
        _positive_pass(rows, columns, scale, match.of_rows, None, row_sums[f.POSITIVE_COUNT :])
        _positive_pass(columns, rows, scale, match.of_columns, None, column_sums[f.POSITIVE_COUNT :])
    return row_sums, column_sums, cache


def positive_terms(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_ids: Tensor,
    column_ids: Tensor,
    row_negatives: Tensor,
    column_negatives: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `varalign.losses.reference.positive_terms`."""
    row_terms = torch.empty(2, rows.shape[0], dtype=_wide(rows), device=rows.device)
    column_terms = torch.empty(2, columns.shape[0], dtype=_wide(rows), device=rows.device)
    match = _Matching.of(row_ids, column_ids)
    with _on(rows.device):
        _positive_pass(rows, columns, scale, match.of_rows, row_negatives, row_terms)
        _positive_pass(columns, rows, scale, match.of_columns, column_negatives, column_terms)
    return row_terms, column_terms


def tile_gradients(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_ids: Tensor,
    column_ids: Tensor,
    row_terms: Tensor,
    column_terms: Tensor,
    row_upstream: Tensor,
    column_upstream: Tensor,
    cache: Tensor,
    *,
    ignore: bool,
    backward: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """As `varalign.losses.reference.tile_gradients`; the rows' gradient comes in the embeddings' dtype, rounded once.

    Args:
        backward: one of `BACKWARDS`; by default "blocks", or "fused" where this torch cannot multiply 16 bits into 32.
    """
    backward = backward or BACKWARD or ("blocks" if rows.dtype == _wide(rows) or _wide_products() else "fused")
    gain = torch.ones_like(scale)
    if rows.dtype == torch.float16:
        # Upstream gradients of a mean are 1 / N: a probability below N / 10^7 times that would underflow in float16.
        gain = torch.maximum(row_upstream.abs().amax(), column_upstream.abs().amax())
        gain = torch.where(gain == 0, torch.ones_like(gain), gain)
        row_upstream, column_upstream = row_upstream / gain, column_upstream / gain
    terms = [t.contiguous() for t in (row_terms, column_terms, row_upstream, column_upstream)]
    work = _fused if backward == "fused" else _blocks
    codes = _codes(row_ids, column_ids, torch.sort(column_ids)[0])
    with _on(rows.device):
        return work(rows, columns, scale, *codes, terms, cache, gain, ignore)


def _blocks(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_codes: Tensor,
    column_codes: Tensor,
    terms: list[Tensor],
    cache: Tensor,
    gain: Tensor,
    ignore: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    m, n = rows.shape[0], columns.shape[0]
    wide, config = _wide(rows), _launch("gradient", rows, m)
    block = max(m, n) if max(m, n) <= 2 * BLOCK else BLOCK
    buffer = torch.empty(min(block, m) * min(block, n), dtype=rows.dtype, device=rows.device)
    row_gradient = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    column_gradient = torch.zeros(columns.shape, dtype=wide, device=rows.device)
    step = _cache_step(rows, columns, scale, cache)
    slopes = []
    for top in range(0, m, block):
        u = rows[top : top + block]
        total = torch.zeros(u.shape, dtype=wide, device=rows.device)
        for left in range(0, n, block):
            v = columns[left : left + block]
            g = buffer[: u.shape[0] * v.shape[0]].view(u.shape[0], v.shape[0])
            grid = (triton.cdiv(u.shape[0], config.block_m) * triton.cdiv(v.shape[0], config.block_n),)
            tiles.gradient_block[grid](
                rows, columns, scale, row_codes, column_codes, *terms, cache, step, g,
                m, n, rows.shape[1], *rows.stride(), *columns.stride(), top, left, u.shape[0], v.shape[0],
                IGNORE=ignore, CACHE=_cache_kind(cache), **_options(config, rows),
            )  # fmt: skip
            _add_product(total, g, v)
            _add_product(column_gradient[left : left + block], g.T, u)
        slopes.append(torch.linalg.vecdot(total, u.to(wide)).sum())
        row_gradient[top : top + block] = total.mul_(scale * gain)
    return row_gradient, column_gradient.mul_(scale * gain), torch.stack(slopes).sum() * gain


def _fused(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_codes: Tensor,
    column_codes: Tensor,
    terms: list[Tensor],
    cache: Tensor,
    gain: Tensor,
    ignore: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    row_terms, column_terms, row_upstream, column_upstream = terms
    gradients = []
    for u, v, codes, other_codes, swapped in (
        (rows, columns, row_codes, column_codes, (row_terms, column_terms, row_upstream, column_upstream)),
        (columns, rows, column_codes, row_codes, (column_terms, row_terms, column_upstream, row_upstream)),
    ):
        config = _launch("fused", u, u.shape[0])
        out = torch.empty(u.shape, dtype=_wide(u), device=u.device)
        # 32 bits at full precision: 128 dimensions of accumulator spill kilobytes.
        slice_width = max(16, min(128 if u.dtype.itemsize == 2 else 64, triton.next_power_of_2(u.shape[1])))
        grid = (triton.cdiv(u.shape[0], config.block_m), triton.cdiv(u.shape[1], slice_width))
        tiles.fused_rows[grid](
            u, v, scale, codes, other_codes, *swapped, out, u.shape[0], v.shape[0], u.shape[1], *u.stride(),
            *v.stride(), IGNORE=ignore, BD=slice_width, **_options(config, u),
        )  # fmt: skip
        gradients.append(out)
    slope = torch.linalg.vecdot(gradients[0], rows.to(gradients[0].dtype)).sum() * gain
    return gradients[0].mul_(scale * gain), gradients[1].mul_(scale * gain), slope


def empty_cache(rows: Tensor, columns: Tensor, cache_bytes: int) -> Tensor:
    """An uninitialised (M, N) cache of the logits if it fits, else an empty tensor.

    32-bit embeddings keep 32 bits. 16-bit ones keep 16: whole multiples of the largest possible |z| / 32767, wrong by
    at most 0.0015 at a logit scale of 100 (0.2 % of a probability, less than rounding it to bfloat16). Exponentials
    would need a common maximum, and a row's is not a column's: at that scale one of them underflows.
    """
    count = rows.shape[0] * columns.shape[0]
    dtype = torch.int16 if rows.dtype.itemsize == 2 else rows.dtype
    kept = count * dtype.itemsize <= cache_bytes
    return torch.empty((rows.shape[0], columns.shape[0]) if kept else (0,), dtype=dtype, device=rows.device)


def _cache_step(rows: Tensor, columns: Tensor, scale: Tensor, cache: Tensor) -> Tensor:
    """() the unit of a 16-bit cache, from Cauchy and Schwarz's bound on |z|; unused otherwise."""
    if cache.dtype != torch.int16 or not cache.numel():
        return scale
    longest = [torch.linalg.vector_norm(x, dim=1, dtype=scale.dtype).amax() for x in (rows, columns)]
    return (scale * longest[0] * longest[1] / 32767).clamp_min(torch.finfo(scale.dtype).tiny)


def _cache_kind(cache: Tensor) -> int:
    return 0 if not cache.numel() else 2 if cache.dtype == torch.int16 else 1


@dataclass(frozen=True)
class _Matching:
    """Which ids are equal, from one sort of each side; all on the device."""

    row_codes: Tensor  # (M,) int32, equal to a column's where the ids are; -1 without any
    column_codes: Tensor  # (N,) int32
    of_rows: tuple[Tensor, ...]  # row order, column order, and where each sorted row's positives begin and end in it
    of_columns: tuple[Tensor, ...]  # the same with the roles exchanged

    @classmethod
    def of(cls, row_ids: Tensor, column_ids: Tensor) -> _Matching:
        sorted_rows, row_order = torch.sort(row_ids, stable=True)
        sorted_columns, column_order = torch.sort(column_ids, stable=True)
        return cls(
            *_codes(row_ids, column_ids, sorted_columns),
            (row_order, column_order, *_ranges(sorted_rows, sorted_columns)),
            (column_order, row_order, *_ranges(sorted_columns, sorted_rows)),
        )


def _ranges(queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    return torch.searchsorted(candidates, queries), torch.searchsorted(candidates, queries, right=True)


def _codes(row_ids: Tensor, column_ids: Tensor, sorted_columns: Tensor) -> tuple[Tensor, Tensor]:
    row_codes = torch.searchsorted(sorted_columns, row_ids, out_int32=True)
    found = sorted_columns[row_codes.clamp_max(column_ids.shape[0] - 1)] == row_ids
    row_codes = torch.where(found, row_codes, torch.full_like(row_codes, -1))
    return row_codes, torch.searchsorted(sorted_columns, column_ids, out_int32=True)


def _positive_pass(
    queries: Tensor,
    candidates: Tensor,
    scale: Tensor,
    matching: tuple[Tensor, ...],
    negatives: Tensor | None,
    out: Tensor,
) -> None:
    """Positive sums of every query into out (.., Q); with the negatives' log-sum-exp, the terms of "ignore"."""
    config = _launch("positive", queries, queries.shape[0])
    tiles.positive_pass[(triton.cdiv(queries.shape[0], config.block_m),)](
        queries, candidates, scale, *matching, out if negatives is None else negatives, out,
        queries.shape[0], candidates.shape[0], queries.shape[1], *queries.stride(), *candidates.stride(),
        TERMS=negatives is not None, **_options(config, queries),
    )  # fmt: skip


def _merge(parts: Tensor, sums: Tensor, count: int, stride: int, statistics: bool) -> None:
    queries = sums.shape[1]
    tiles.merge_parts[(triton.cdiv(queries, 64),)](
        parts, sums, count, queries, stride, WIDE=_triton_dtype(sums.dtype), STATISTICS=statistics,
        BP=min(64, triton.next_power_of_2(count)), BQ=64,
    )  # fmt: skip


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in the total's dtype."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.ops.aten.addmm.dtype_out(total, left, right, total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


def _wide_products() -> bool:
    return INTERPRETED or hasattr(torch.ops.aten.addmm, "dtype_out")


def _wide(embeddings: Tensor) -> torch.dtype:
    return torch.promote_types(embeddings.dtype, torch.float32)


def _triton_dtype(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _tf32() -> bool:
    return torch.get_float32_matmul_precision() != "highest"


def _launch(task: str, embeddings: Tensor, queries: int) -> Launch:
    capability = (0, 0)
    if embeddings.is_cuda:
        capability = torch.cuda.get_device_capability(embeddings.device)
    kind = {2: "16", 8: "64"}.get(embeddings.dtype.itemsize, "tf32" if _tf32() else "ieee")
    return launch(task, capability, kind, queries, embeddings.shape[1])


def _options(config: Launch, embeddings: Tensor) -> dict[str, Any]:
    """Keyword arguments that every pass over tiles takes."""
    return {
        "WIDE": _triton_dtype(_wide(embeddings)),
        "PRECISION": "tf32" if embeddings.dtype == torch.float32 and _tf32() else "ieee",
        # The interpreter multiplies the bit patterns of bfloat16.
        "UPCAST": INTERPRETED and embeddings.dtype.itemsize == 2,
        "BM": config.block_m,
        "BN": config.block_n,
        "BK": config.block_k,
        "num_warps": config.warps,
        "num_stages": config.stages,
    }


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device: make it the embeddings'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
