"""The Triton kernels of the contrastive loss: one block of logits at a time, never the matrix.

Letters: U (M, D) and V (N, D) the embeddings, z = scale * U V' the logits; m running maximum, l running sum of
exponentials, w the same weighted by z, low running minimum. Offsets are 64-bit: N * D may pass 2^31.

Tables with a value a query hold Q = M + N of them, the rows' first. Ids come as the table of `matching`, IDS of a row.

No atomics anywhere: each program writes its own slots, and slots are merged in a fixed order, so every run gives the
same bits.
"""

import torch
import triton
import triton.language as tl
from varalign.kernels import query_fields as f
from varalign.kernels.host import INTERPRETED, Kernel
from varalign.kernels.queries import load_gain, softplus_and_sigmoid

LOG2E = tl.constexpr(1.4426950408889634)
# In place of a logit that is none: its exponential is 0, and 0 times it is 0, which -inf would make NaN.
NOTHING = tl.constexpr(-1e30)
# Between it and any logit: equality would depend on whether a constant is rounded to float32 beside float64.
ALMOST_NOTHING = tl.constexpr(-1e29)
# CUDA's instruction alone; Triton's exp2 puts three more around it, for results below 1e-38.
FAST = tl.constexpr(not INTERPRETED and torch.version.hip is None)


@triton.jit
def _exp2(x):
    if FAST:
        y = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def _cache_step(longest, scale, PARTS: tl.constexpr):
    """The unit of a 16-bit cache, from Cauchy and Schwarz's bound on |z|; longest (2, PARTS) norms of either side."""
    part = tl.arange(0, PARTS)
    bound = scale * tl.max(tl.load(longest + part), 0) * tl.max(tl.load(longest + PARTS + part), 0)
    return tl.where(bound < 1e-30, 1e-30, bound / 32767.0)


@triton.jit
def _has_id(codes, rows, row_mask, column_codes, IDS: tl.constexpr):
    """(BM, BN) whether a column's code is one of the row's IDS codes."""
    row_codes = tl.load(codes + rows * IDS, mask=row_mask, other=-1)
    found = row_codes[:, None] == column_codes[None, :]
    for k in tl.static_range(1, IDS):
        row_codes = tl.load(codes + rows * IDS + k, mask=row_mask, other=-1)
        found = found | (row_codes[:, None] == column_codes[None, :])
    return found


@triton.jit
def _more(z, m, l, w, axis: tl.constexpr, STATISTICS: tl.constexpr):  # noqa: E741
    """Running m, l and w with those of a tile along an axis."""
    larger = tl.maximum(m, tl.max(z, axis))
    base = tl.where(larger > ALMOST_NOTHING, larger, 0.0)
    e = _exp2(z * LOG2E - tl.expand_dims(base * LOG2E, axis))
    shrink = tl.exp(m - base)
    l = l * shrink + tl.sum(e, axis)  # noqa: E741
    if STATISTICS:
        w = w * shrink + tl.sum(e * z, axis)
    return tl.where(larger > ALMOST_NOTHING, larger, -float("inf")), l, w


@triton.jit
def _load_parts(slot, count, mask, STATISTICS: tl.constexpr):
    """Running m, l, w, low, from nothing where masked; without STATISTICS w and low are l's twins, and no sums."""
    m = tl.load(slot, mask=mask, other=-float("inf"))
    l = tl.load(slot + count, mask=mask, other=0.0)  # noqa: E741
    w = l
    low = l
    if STATISTICS:
        w = tl.load(slot + 2 * count, mask=mask, other=0.0)
        low = tl.load(slot + 3 * count, mask=mask, other=float("inf"))
    return m, l, w, low


@triton.jit
def _store_parts(slot, count, mask, m, l, w, low, STATISTICS: tl.constexpr):  # noqa: E741
    tl.store(slot, m, mask=mask)
    tl.store(slot + count, l, mask=mask)
    if STATISTICS:
        tl.store(slot + 2 * count, w, mask=mask)
        tl.store(slot + 3 * count, low, mask=mask)


@Kernel
def similarity_block(
    products, scale_ptr, codes, row_parts, column_parts, cache, longest,
    M, N, top, left, height, width, tiles,
    CACHE: tl.constexpr, STATISTICS: tl.constexpr, IDS: tl.constexpr, PARTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Running m, l, w of the negatives and low of all candidates, for a block's rows and columns.

    products (height, width): U V' of the rows from top and the columns from left. Program (g, c): `tiles` tiles of BM
    rows, one after the other, over the c-th BN columns. row_parts (.., 4, M), a slot for each c, and column_parts
    (.., 4, N), a slot for each g, go on from block to block, from nothing where left or top is 0. CACHE 1 keeps z as it
    is, CACHE 2 as 16-bit multiples of `_cache_step`. Without STATISTICS the loss alone: w and low are not written.
    """
    group = tl.program_id(0).to(tl.int64)
    first_column = tl.program_id(1).to(tl.int64) * BN
    c = first_column + tl.arange(0, BN)
    column_mask = c < width
    scale = tl.load(scale_ptr)
    if CACHE == 2:
        step = _cache_step(longest, scale, PARTS)
    column_codes = tl.load(codes + M * IDS + left + c, mask=column_mask, other=-1)
    column_slot = column_parts + group * 4 * N + left + c
    m, l, w, low = _load_parts(column_slot, N, c < tl.where(top > 0, width, 0), STATISTICS)  # noqa: E741
    # One 64-bit base a tile, 32-bit offsets within: a tile of 64-bit addresses would spill the registers.
    across = tl.arange(0, BN)[None, :]
    for tile in range(tiles):
        first_row = (group * tiles + tile) * BM
        r = first_row + tl.arange(0, BM)
        row_mask = r < height
        inside = row_mask[:, None] & column_mask[None, :]
        start = products + first_row * width + first_column
        z = tl.load(start + tl.arange(0, BM)[:, None] * width + across, mask=inside, other=0.0) * scale
        if CACHE != 0:
            kept = cache + (top + first_row) * N + left + first_column
            place = tl.arange(0, BM)[:, None] * N + across
            if CACHE == 2:
                level = tl.floor(z / step + 0.5)
                level = tl.minimum(tl.maximum(level, -32767.0), 32767.0)
                tl.store(kept + place, level.to(tl.int16), mask=inside)
            else:
                tl.store(kept + place, z, mask=inside)
        if IDS == 1:
            other = tl.load(codes + top + r, mask=row_mask, other=-1)[:, None] != column_codes[None, :]
        else:
            other = _has_id(codes, top + r, row_mask, column_codes, IDS) == 0
        row_slot = row_parts + tl.program_id(1).to(tl.int64) * 4 * M + top + r
        row_m, row_l, row_w, row_low = _load_parts(row_slot, M, r < tl.where(left > 0, height, 0), STATISTICS)
        if STATISTICS:
            bounded = tl.where(inside, z, float("inf"))
            row_low = tl.minimum(row_low, tl.min(bounded, 1))
            low = tl.minimum(low, tl.min(bounded, 0))
        # Padding and positives are out of every maximum.
        z = tl.where(inside & other, z, NOTHING)
        row_m, row_l, row_w = _more(z, row_m, row_l, row_w, 1, STATISTICS)
        _store_parts(row_slot, M, row_mask, row_m, row_l, row_w, row_low, STATISTICS)
        m, l, w = _more(z, m, l, w, 0, STATISTICS)  # noqa: E741
    _store_parts(column_slot, N, column_mask, m, l, w, low, STATISTICS)


@triton.jit
def _embeddings_of(
    U, V, queries, dims, mask, M, stride_um, stride_ud, stride_vn, stride_vd,
):  # fmt: skip
    """The dimensions of queries counted through: rows of U, then rows of V; queries and dims lie crosswise."""
    image = queries < M
    u = tl.load(U + queries * stride_um + dims * stride_ud, mask=mask & image, other=0.0)
    return u + tl.load(V + (queries - M) * stride_vn + dims * stride_vd, mask=mask & (image == 0), other=0.0)


@triton.jit
def _query_of(ids, M, IDS: tl.constexpr):
    """The query that an id belongs to, both counted through: IDS of each image, then one of each text."""
    if IDS == 1:
        queries = ids
    else:
        queries = tl.where(ids < M * IDS, ids // IDS, ids - M * (IDS - 1))
    return queries


@Kernel
def positive_pass(
    U, V, scale_ptr, table, sums, out,
    M, Q, P, D, stride_um, stride_ud, stride_vn, stride_vd,
    TERMS: tl.constexpr, IDS: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Sums over the positives of every id of every query, which lie in one range of the order: no pass over all M x N.

    Images' and texts' ids stand in one order (`matching`), so that a block's positives lie around it; half of a tile,
    image with image and text with text, is no pair and left out. With TERMS the two sums of duplicates="ignore", given
    the negatives' sums (2, Q), otherwise count, total, m, l, w; into out (.., Q), where a query has several ids
    (.., P), one sum an id.
    """
    position = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    inside = position < P
    ids = tl.load(table + P + position, mask=inside, other=0).to(tl.int64)
    queries = _query_of(ids, M, IDS)
    first = tl.load(table + 2 * P + position, mask=inside, other=P)
    last = tl.load(table + 3 * P + position, mask=inside, other=0)
    begin = tl.min(first, 0)
    end = tl.max(last, 0)
    scale = tl.load(scale_ptr)
    depth = tl.arange(0, BK)
    count = tl.zeros([BM], dtype=WIDE)
    m = tl.full([BM], -float("inf"), dtype=WIDE)
    l = tl.zeros([BM], dtype=WIDE)  # noqa: E741
    w = tl.zeros([BM], dtype=WIDE)
    total = tl.zeros([BM], dtype=WIDE)
    if TERMS:
        lse = tl.load(sums + queries, mask=inside, other=0.0)
        lse += tl.log(tl.load(sums + Q + queries, mask=inside, other=1.0))
    for start in range(begin, end, BN):
        place = start + tl.arange(0, BN).to(tl.int64)
        some = place < end
        others = _query_of(tl.load(table + P + place, mask=some, other=0).to(tl.int64), M, IDS)
        z = tl.zeros([BM, BN], dtype=WIDE)
        for low in range(0, D, BK):
            d = low + depth
            x = _embeddings_of(
                U, V, queries[:, None], d[None, :], inside[:, None] & (d < D)[None, :], M,
                stride_um, stride_ud, stride_vn, stride_vd,
            )  # fmt: skip
            y = _embeddings_of(
                U, V, others[None, :], d[:, None], some[None, :] & (d < D)[:, None], M,
                stride_um, stride_ud, stride_vn, stride_vd,
            )  # fmt: skip
            if UPCAST:
                x = x.to(WIDE)
                y = y.to(WIDE)
            z = tl.dot(x, y, z, input_precision=PRECISION, out_dtype=WIDE)
        z = z * scale
        positive = (place[None, :] >= first[:, None]) & (place[None, :] < last[:, None])
        positive = positive & ((queries < M)[:, None] != (others < M)[None, :])
        if TERMS:
            softplus, sigmoid = softplus_and_sigmoid(lse[:, None] - z)
            total += tl.sum(tl.where(positive, softplus, 0.0), 1)
            l += tl.sum(tl.where(positive, sigmoid, 0.0), 1)  # noqa: E741
        else:
            chosen = tl.where(positive, z, -float("inf"))
            m_new = tl.maximum(m, tl.max(chosen, 1))
            base = tl.where(m_new == -float("inf"), 0.0, m_new)
            e = tl.exp(chosen - base[:, None])
            shrink = tl.exp(m - base)
            l = l * shrink + tl.sum(e, 1)  # noqa: E741
            w = w * shrink + tl.sum(tl.where(positive, e * z, 0.0), 1)
            total += tl.sum(tl.where(positive, z, 0.0), 1)
            count += tl.sum(positive.to(WIDE), 1)
            m = m_new
    # With one id a query P is Q, and the id is the query.
    if TERMS:
        tl.store(out + ids, total, mask=inside)
        tl.store(out + P + ids, l, mask=inside)
    else:
        tl.store(out + f.POSITIVE_COUNT * P + ids, count, mask=inside)
        tl.store(out + f.POSITIVE_TOTAL * P + ids, total, mask=inside)
        tl.store(out + f.POSITIVE_MAX * P + ids, m, mask=inside)
        tl.store(out + f.POSITIVE_SUM * P + ids, l, mask=inside)
        tl.store(out + f.POSITIVE_WEIGHTED * P + ids, w, mask=inside)


@triton.jit
def _upstream_over_gain(upstream, inverse, gain):
    """The upstream gradient in units of the gain; a query without positives has the constant value 0 and none."""
    return tl.where(inverse == 0, 0.0, upstream) / gain


@triton.jit
def _one_direction(
    z, terms, upstream, queries, mask, gain, Q, axis: tl.constexpr, IGNORE: tl.constexpr
):  # fmt: skip
    """exp(z - shift) of one direction, what it weighs on a negative, and the derivative on a positive."""
    slot = terms + queries
    shift = tl.load(slot + f.SHIFT * Q, mask=mask, other=0.0)
    share = tl.load(slot + f.SHARE * Q, mask=mask, other=0.0)
    inverse = tl.load(slot + f.INVERSE_COUNT * Q, mask=mask, other=0.0)
    up = _upstream_over_gain(tl.load(upstream + queries, mask=mask, other=0.0), inverse, gain)
    e = _exp2(z * LOG2E - tl.expand_dims(shift * LOG2E, axis))
    weight = tl.expand_dims(up, axis)
    if IGNORE:
        shift = tl.load(slot + f.POSITIVE_SHIFT * Q, mask=mask, other=0.0)
        on = -tl.expand_dims(up * inverse, axis) / (1.0 + _exp2(z * LOG2E - tl.expand_dims(shift * LOG2E, axis)))
    else:
        # P - Y leaves in float32, before any rounding. A lone positive: p - 1 is minus the negatives' share, known
        # without subtracting.
        lone = inverse == 1.0
        on = e * tl.expand_dims(tl.where(lone, 0.0, up), axis)
        on -= tl.expand_dims(up * tl.where(lone, share, inverse), axis)
    return e, weight, on


@Kernel
def gradient_block(
    logits, scale_ptr, codes, terms, upstream, gain_ptr, longest, out,
    M, Q, top, left, height, width, stride,
    IGNORE: tl.constexpr, CACHE: tl.constexpr, GAIN: tl.constexpr, IDS: tl.constexpr, PARTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out (height, width): derivatives of the loss by the logits at (top, left), both directions.

    logits (height, width), rows `stride` apart: with CACHE what `similarity_block` kept of them, else products U V'.
    """
    first_row = tl.program_id(0).to(tl.int64) * BM
    first_column = tl.program_id(1).to(tl.int64) * BN
    r = first_row + tl.arange(0, BM)
    c = first_column + tl.arange(0, BN)
    row_mask = r < height
    column_mask = c < width
    inside = row_mask[:, None] & column_mask[None, :]
    across = tl.arange(0, BN)[None, :]
    start = logits + first_row * stride + first_column
    z = tl.load(start + tl.arange(0, BM)[:, None] * stride + across, mask=inside, other=0)
    scale = tl.load(scale_ptr)
    gain = load_gain(gain_ptr, GAIN)
    if CACHE == 2:
        z = z.to(tl.float32) * _cache_step(longest, scale, PARTS)
    elif CACHE == 0:
        z = z * scale

    row_e, row_up, row_on = _one_direction(z, terms, upstream, top + r, row_mask, gain, Q, 1, IGNORE)
    column_e, column_up, column_on = _one_direction(z, terms, upstream, M + left + c, column_mask, gain, Q, 0, IGNORE)
    column_codes = tl.load(codes + M * IDS + left + c, mask=column_mask, other=-1)
    positive = _has_id(codes, top + r, row_mask, column_codes, IDS)
    g = tl.where(positive, row_on + column_on, row_e * row_up + column_e * column_up)
    place = tl.arange(0, BM)[:, None] * width + across
    tl.store(out + first_row * width + first_column + place, g.to(out.dtype.element_ty), mask=inside)
