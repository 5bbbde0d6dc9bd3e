"""Which images and texts belong together: from ids to 32-bit codes and to ranges of ids in their order.

An image has K ids, most often one; a text has one and belongs to every image that has it. The ids are counted through:
those of image i are i K to i K + K - 1, that of text j is M K + j; P = M K + N. The table of `match`, int32, tells the
tile passes two things. Codes: equal where ids are, 32 bits, because a thread holds a tile's columns and 64-bit ids
would spill. The ids in ascending order: a query's positives by one of its ids are one range of it, so that sums over
positives need no pass over all M x N.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from varalign.kernels.host import Kernel, cdiv, on

# Rows of the table, P wide. A group is what has one id.
CODE = 0  # of id p: where its group begins in the order
ORDER = 1  # the id at a place of the order
BEGIN = 2  # of the group of the id at that place: the first place
END = 3  # one behind the last
ROWS = 4

# Up to so many ids every id is compared with every other, in one launch: a sort of 64-bit keys is a dozen.
COMPARED = 8192


@triton.jit
def _ids_at(row_ids, column_ids, places, M, Q):
    rows = tl.load(row_ids + places, mask=places < M, other=0)
    return rows + tl.load(column_ids + (places - M), mask=(places >= M) & (places < Q), other=0)


@Kernel
def match_by_comparing(row_ids, column_ids, table, M, Q, BQ: tl.constexpr, BC: tl.constexpr):
    """An id's place in a stable sort is the number of smaller ids, and of equal ones before it; M K = M, P = Q here."""
    query = tl.program_id(0) * BQ + tl.arange(0, BQ)
    query_mask = query < Q
    ids = _ids_at(row_ids, column_ids, query, M, Q)
    smaller = tl.zeros([BQ], dtype=tl.int32)
    equal = tl.zeros([BQ], dtype=tl.int32)
    before = tl.zeros([BQ], dtype=tl.int32)
    for start in range(0, Q, BC):
        other = start + tl.arange(0, BC)
        others = _ids_at(row_ids, column_ids, other, M, Q)
        inside = (other < Q)[None, :]
        same = inside & (others[None, :] == ids[:, None])
        smaller += tl.sum((inside & (others[None, :] < ids[:, None])).to(tl.int32), 1)
        equal += tl.sum(same.to(tl.int32), 1)
        before += tl.sum((same & (other[None, :] < query[:, None])).to(tl.int32), 1)
    place = smaller + before
    tl.store(table + query, smaller, mask=query_mask)
    tl.store(table + Q + place, query, mask=query_mask)
    tl.store(table + 2 * Q + place, smaller, mask=query_mask)
    tl.store(table + 3 * Q + place, smaller + equal, mask=query_mask)


@Kernel
def match_sorted(sorted_ids, order, table, Q, steps, BQ: tl.constexpr):
    """Both ends of every group by bisection of the sorted ids, `steps` times: at least the bits of Q."""
    place = tl.program_id(0) * BQ + tl.arange(0, BQ)
    mask = place < Q
    query = tl.load(order + place, mask=mask, other=0).to(tl.int32)
    ids = tl.load(sorted_ids + place, mask=mask, other=0)
    begin = tl.zeros([BQ], dtype=tl.int32)
    begin_top = tl.zeros([BQ], dtype=tl.int32) + Q
    end = begin
    end_top = begin_top
    for _ in range(steps):
        middle = (begin + begin_top) // 2
        open_ = begin < begin_top
        right = open_ & (tl.load(sorted_ids + middle, mask=mask & open_, other=0) < ids)
        begin = tl.where(right, middle + 1, begin)
        begin_top = tl.where(open_ & (right == 0), middle, begin_top)
        middle = (end + end_top) // 2
        open_ = end < end_top
        right = open_ & (tl.load(sorted_ids + middle, mask=mask & open_, other=0) <= ids)
        end = tl.where(right, middle + 1, end)
        end_top = tl.where(open_ & (right == 0), middle, end_top)
    tl.store(table + query, begin, mask=mask)
    tl.store(table + Q + place, query, mask=mask)
    tl.store(table + 2 * Q + place, begin, mask=mask)
    tl.store(table + 3 * Q + place, end, mask=mask)


@Kernel
def match_pairs(table, M, Q, pairs, BQ: tl.constexpr):
    """Image i belongs to text i, for the first `pairs`: they lie side by side, whoever is left over follows."""
    query = tl.program_id(0) * BQ + tl.arange(0, BQ)
    mask = query < Q
    text = query >= M
    number = tl.where(text, query - M, query)
    paired = number < pairs
    begin = tl.where(paired, 2 * number, pairs + number)
    place = begin + (paired & text).to(tl.int32)
    tl.store(table + query, begin, mask=mask)
    tl.store(table + Q + place, query, mask=mask)
    tl.store(table + 2 * Q + place, begin, mask=mask)
    tl.store(table + 3 * Q + place, begin + 1 + paired.to(tl.int32), mask=mask)


def empty_table(rows: Tensor, columns: Tensor, row_ids: Tensor | None) -> Tensor:
    count = rows.shape[0] if row_ids is None else row_ids.numel()
    return torch.empty(ROWS, count + columns.shape[0], dtype=torch.int32, device=rows.device)


def ids_of_a_row(table: Tensor, rows: Tensor, columns: Tensor) -> int:
    """K."""
    return (table.shape[1] - columns.shape[0]) // rows.shape[0]


def match(rows: Tensor, columns: Tensor, row_ids: Tensor | None, column_ids: Tensor | None) -> Tensor:
    """The (ROWS, P) int32 table of int64 ids, (M,) or (M, K), and (N,); without ids, image i belongs to text i."""
    table = empty_table(rows, columns, row_ids)
    queries = table.shape[1]
    m = queries - columns.shape[0]
    with on(rows.device):
        if row_ids is None or column_ids is None:
            match_pairs[(cdiv(queries, 256),)](table, m, queries, min(m, queries - m), BQ=256)
        elif queries <= COMPARED:
            match_by_comparing[(cdiv(queries, 16),)](
                row_ids.contiguous(), column_ids.contiguous(), table, m, queries, BQ=16, BC=256
            )
        else:
            sorted_ids, order = torch.sort(torch.cat([row_ids.reshape(-1), column_ids]), stable=True)
            match_sorted[(cdiv(queries, 256),)](sorted_ids, order, table, queries, queries.bit_length(), BQ=256)
    return table
