"""The variance of every query's similarities from the candidates' covariance, and the longest embedding of each side.

Var_j(u.v_j) = u' Cov(V) u: for all queries Q D^2, where a pass over the similarities would be Q N D. The candidates
are centred before they are multiplied: the difference of mean square and squared mean would lose every digit where all
texts point the same way.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from varalign.kernels.host import (
    INTERPRETED,
    Kernel,
    cdiv,
    multiply,
    on,
    product_options,
    triton_dtype,
    wide_dtype,
)

# Each side's rows in so many parts: enough programs to draw the memory's rate, few enough for all to add up again.
# Interpreted, programs run one after the other.
PARTS = 4 if INTERPRETED else 128
# Candidates up to which 16-bit ones are multiplied as float32.
FEW = 64
# Centred rows that exist at a time.
CENTRED_BYTES = 32 << 20


@Kernel
def embedding_sums(
    X, sums, longest, count, D, stride_row, stride_dim,
    WIDE: tl.constexpr, PARTS: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Of each of PARTS parts of the rows of X (count, D): their sum, into sums (PARTS, D), and the largest norm."""
    part = tl.program_id(0)
    each = tl.cdiv(count, PARTS)
    dims = tl.arange(0, BD)
    total = tl.zeros([BD], dtype=WIDE)
    square = tl.zeros([BR], dtype=WIDE)
    end = tl.minimum(count, (part + 1) * each)
    for start in range(part * each, end, BR):
        rows = start + tl.arange(0, BR).to(tl.int64)
        x = tl.load(
            X + rows[:, None] * stride_row + dims[None, :] * stride_dim,
            mask=(rows < end)[:, None] & (dims < D)[None, :],
            other=0.0,
        ).to(WIDE)
        total += tl.sum(x, 0)
        square = tl.maximum(square, tl.sum(x * x, 1))
    tl.store(sums + part * D + dims, total, mask=dims < D)
    tl.store(longest + part, tl.sqrt(tl.max(square, 0)))


@Kernel
def centre(
    X, sums, out, count, D, stride_row, stride_dim, begin, height,
    WIDE: tl.constexpr, PARTS: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """out (height, D) = rows begin: of X minus their side's mean, sums (PARTS, D) / count."""
    dims = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = dims < D
    parts = tl.load(sums + tl.arange(0, PARTS)[:, None] * D + dims[None, :], mask=inside[None, :], other=0.0)
    mean = tl.sum(parts, 0) / count
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    mask = (row < height)[:, None] & inside[None, :]
    x = tl.load(X + (begin + row)[:, None] * stride_row + dims[None, :] * stride_dim, mask=mask, other=0.0).to(WIDE)
    tl.store(out + row[:, None] * D + dims[None, :], (x - mean[None, :]).to(out.dtype.element_ty), mask=mask)


@Kernel
def quadratic_form(
    X, products, out, queries, count, D, stride_row, stride_dim,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, NARROW: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out (queries,) = x' products x / count, at least 0, for every row x of X; products (D, D) symmetric."""
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    row_mask = rows < queries
    total = tl.zeros([BM], dtype=WIDE)
    for left in range(0, D, BN):
        columns = left + tl.arange(0, BN)
        product = tl.zeros([BM, BN], dtype=WIDE)
        for start in range(0, D, BK):
            depth = start + tl.arange(0, BK)
            x = tl.load(
                X + rows[:, None] * stride_row + depth[None, :] * stride_dim,
                mask=row_mask[:, None] & (depth < D)[None, :],
                other=0.0,
            )
            c = tl.load(
                products + depth[:, None] * D + columns[None, :],
                mask=(depth < D)[:, None] & (columns < D)[None, :],
                other=0.0,
            )
            if NARROW:
                x = x.to(tl.bfloat16)
                c = c.to(tl.bfloat16)
            if UPCAST:
                x = x.to(WIDE)
            product = tl.dot(x, c, product, input_precision=PRECISION, out_dtype=WIDE)
        x = tl.load(
            X + rows[:, None] * stride_row + columns[None, :] * stride_dim,
            mask=row_mask[:, None] & (columns < D)[None, :],
            other=0.0,
        ).to(WIDE)
        total += tl.sum(product * x, 1)
    # Not a maximum, which would make 0 of NaN.
    tl.store(out + rows, tl.where(total < 0, 0.0, total / count), mask=row_mask)


def sums_of(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Sums (2, PARTS, D) and largest norms (2, PARTS) of parts of the rows and of the columns."""
    d = rows.shape[1]
    sums = torch.empty(2, PARTS, d, dtype=wide_dtype(rows), device=rows.device)
    longest = empty_norms(rows)
    width = triton.next_power_of_2(d)
    with on(rows.device):
        for side, x in enumerate((rows, columns)):
            embedding_sums[(PARTS,)](
                x, sums[side], longest[side], x.shape[0], d, *x.stride(),
                WIDE=triton_dtype(sums.dtype), PARTS=PARTS, BR=max(1, min(16, 8192 // width)), BD=width,
            )  # fmt: skip
    return sums, longest


def empty_norms(embeddings: Tensor) -> Tensor:
    return torch.empty(2, PARTS, dtype=wide_dtype(embeddings), device=embeddings.device)


def similarity_variances(rows: Tensor, columns: Tensor, sums: Tensor) -> Tensor:
    """(M + N,) variance of every row's similarities over the columns, then of every column's over the rows.

    On CUDA, 16-bit embeddings are multiplied as bfloat16 after centring, on the tensor cores: otherwise the D x D
    products would cost a fifth of the loss at N = 32k.

    Args:
        sums: from `sums_of`.
    """
    m, n, d = rows.shape[0], columns.shape[0], rows.shape[1]
    wide = sums.dtype
    out = torch.empty(m + n, dtype=wide, device=rows.device)
    products = torch.empty(d, d, dtype=wide, device=rows.device)
    for queries, candidates, side, values in ((rows, columns, 1, out[:m]), (columns, rows, 0, out[m:])):
        count = candidates.shape[0]
        # Of few candidates the roundings would not average out.
        narrow = rows.dtype.itemsize == 2 and count > FEW and not INTERPRETED
        height = min(count, max(1024, CENTRED_BYTES // (d * (2 if narrow else wide.itemsize))))
        buffer = torch.empty(height, d, dtype=torch.bfloat16 if narrow else wide, device=rows.device)
        with on(rows.device):
            for begin in range(0, count, height):
                block = buffer[: min(height, count - begin)]
                centre[(cdiv(block.shape[0], 64), cdiv(d, 64))](
                    candidates, sums[side], block, count, d, *candidates.stride(), begin, block.shape[0],
                    WIDE=triton_dtype(wide), PARTS=PARTS, BR=64, BD=64,
                )  # fmt: skip
                multiply(products, block.T, block, add=begin > 0)
            # Few queries: low tiles, so that there are programs enough.
            tile = 16 if queries.shape[0] <= 8192 else 64
            wide_tile = 256 if narrow else 64
            options = {**product_options(queries), **({} if narrow else {"UPCAST": queries.dtype.itemsize == 2})}
            quadratic_form[(cdiv(queries.shape[0], tile),)](
                queries, products, values, queries.shape[0], count, d, *queries.stride(),
                NARROW=narrow, BM=tile, BN=wide_tile, BK=32, num_warps=8, num_stages=2, **options,
            )  # fmt: skip
    return out
