"""The Triton kernels of the contrastive loss: one tile of logits at a time, never the matrix.

Letters: U (M, D) and V (N, D) the embeddings, z = scale * U V' the logits; m running maximum, l running sum of
exponentials, w the same weighted by z, low running minimum. Offsets are 64-bit: N * D may pass 2^31.

Ids come as 32-bit codes, equal where the ids are (`matching`): a thread holds a tile's columns, and 64 bits each
would spill.

No atomics anywhere: each program writes its own slots, and slots are merged in a fixed order, so every run gives the
same bits.
"""

import triton
import triton.language as tl


@triton.jit
def _logits(
    U, V, rows, columns, row_mask, column_mask, scale, D, stride_um, stride_ud, stride_vn, stride_vd,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """(BM, BN) logits of the given rows and columns (int64 indices); 0 where masked."""
    depth = tl.arange(0, BK)
    z = tl.zeros([BM, BN], dtype=WIDE)
    for begin in range(0, D, BK):
        d = begin + depth
        inside = d < D
        u = tl.load(
            U + rows[:, None] * stride_um + d[None, :] * stride_ud, mask=row_mask[:, None] & inside[None, :], other=0.0
        )
        v = tl.load(
            V + columns[None, :] * stride_vn + d[:, None] * stride_vd,
            mask=column_mask[None, :] & inside[:, None],
            other=0.0,
        )
        if UPCAST:
            u = u.to(WIDE)
            v = v.to(WIDE)
        z = tl.dot(u, v, z, input_precision=PRECISION, out_dtype=WIDE)
    return z * scale


@triton.jit
def similarity_pass(
    U, V, scale_ptr, row_codes, column_codes, row_parts, column_parts, cache, step_ptr,
    M, N, D, stride_um, stride_ud, stride_vn, stride_vd, begin, end, tiles_per_split,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, CACHE: tl.constexpr, STATISTICS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Running m, l, w of the negatives and low of all candidates, for the rows over the columns begin:end and back.

    Program (r, s): row block r over the s-th share of the columns' tiles. row_parts (splits, 4, M) go on from call to
    call; column_parts (row blocks, 4, end - begin) are written whole. CACHE 1 keeps z as it is,
    CACHE 2 as 16-bit multiples of step. Without STATISTICS the loss alone: w and low are left as they were.
    """
    row_block = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    rows = row_block * BM + tl.arange(0, BM)
    row_mask = rows < M
    scale = tl.load(scale_ptr)
    codes = tl.load(row_codes + rows, mask=row_mask, other=-1)
    row_slot = row_parts + split * 4 * M + rows
    m = tl.load(row_slot, mask=row_mask, other=-float("inf"))
    l = tl.load(row_slot + M, mask=row_mask, other=0.0)  # noqa: E741
    if STATISTICS:
        w = tl.load(row_slot + 2 * M, mask=row_mask, other=0.0)
        low = tl.load(row_slot + 3 * M, mask=row_mask, other=float("inf"))
    width = (end - begin).to(tl.int64)
    tile_begin = begin + split.to(tl.int32) * tiles_per_split * BN
    tile_end = tl.minimum(end, tile_begin + tiles_per_split * BN)
    for start in range(tile_begin, tile_end, BN):
        columns = start + tl.arange(0, BN).to(tl.int64)
        column_mask = columns < end
        z = _logits(
            U, V, rows, columns, row_mask, column_mask, scale, D, stride_um, stride_ud, stride_vn, stride_vd,
            WIDE, PRECISION, UPCAST, BM, BN, BK,
        )  # fmt: skip
        inside = row_mask[:, None] & column_mask[None, :]
        if CACHE != 0:
            # One 64-bit base a tile, 32-bit offsets within: a tile of 64-bit addresses would spill the registers.
            place = tl.arange(0, BM)[:, None] * N + tl.arange(0, BN)[None, :]
            kept = cache + row_block * BM * N + start
            if CACHE == 2:
                level = tl.floor(z / tl.load(step_ptr) + 0.5)
                level = tl.minimum(tl.maximum(level, -32767.0), 32767.0)
                tl.store(kept + place, level.to(tl.int16), mask=inside)
            else:
                tl.store(kept + place, z, mask=inside)
        others = tl.load(column_codes + columns, mask=column_mask, other=-1)
        # Padding and positives are -inf before any maximum is taken.
        negative = tl.where(inside & (codes[:, None] != others[None, :]), z, -float("inf"))
        m_new = tl.maximum(m, tl.max(negative, 1))
        base = tl.where(m_new == -float("inf"), 0.0, m_new)
        e = tl.exp(negative - base[:, None])
        shrink = tl.exp(m - base)
        l = l * shrink + tl.sum(e, 1)  # noqa: E741
        m = m_new
        if STATISTICS:
            bounded = tl.where(inside, z, float("inf"))
            w = w * shrink + tl.sum(e * z, 1)
            low = tl.minimum(low, tl.min(bounded, 1))

        column_m = tl.max(negative, 0)
        column_base = tl.where(column_m == -float("inf"), 0.0, column_m)
        e = tl.exp(negative - column_base[None, :])
        slot = column_parts + row_block * 4 * width + (columns - begin)
        tl.store(slot, column_m, mask=column_mask)
        tl.store(slot + width, tl.sum(e, 0), mask=column_mask)
        if STATISTICS:
            tl.store(slot + 2 * width, tl.sum(e * z, 0), mask=column_mask)
            tl.store(slot + 3 * width, tl.min(bounded, 0), mask=column_mask)
    tl.store(row_slot, m, mask=row_mask)
    tl.store(row_slot + M, l, mask=row_mask)
    if STATISTICS:
        tl.store(row_slot + 2 * M, w, mask=row_mask)
        tl.store(row_slot + 3 * M, low, mask=row_mask)


@triton.jit
def merge_parts(
    parts, sums, P, Q, stride_sums, WIDE: tl.constexpr, STATISTICS: tl.constexpr, BP: tl.constexpr, BQ: tl.constexpr
):
    """Merge parts (P, 4, Q) over P, in order, BP at a time, into the first four rows of sums (.., stride_sums).

    Without STATISTICS into the first two: the others hold nothing.
    """
    queries = tl.program_id(0).to(tl.int64) * BQ + tl.arange(0, BQ)
    query_mask = queries < Q
    m = tl.full([BQ], -float("inf"), dtype=WIDE)
    l = tl.zeros([BQ], dtype=WIDE)  # noqa: E741
    w = tl.zeros([BQ], dtype=WIDE)
    low = tl.full([BQ], float("inf"), dtype=WIDE)
    for start in range(0, P, BP):
        part = start + tl.arange(0, BP).to(tl.int64)
        inside = (part < P)[:, None] & query_mask[None, :]
        slot = parts + part[:, None] * 4 * Q + queries[None, :]
        part_m = tl.load(slot, mask=inside, other=-float("inf"))
        m_new = tl.maximum(m, tl.max(part_m, 0))
        base = tl.where(m_new == -float("inf"), 0.0, m_new)
        grow = tl.exp(part_m - base[None, :])
        shrink = tl.exp(m - base)
        l = l * shrink + tl.sum(tl.load(slot + Q, mask=inside, other=0.0) * grow, 0)  # noqa: E741
        if STATISTICS:
            w = w * shrink + tl.sum(tl.load(slot + 2 * Q, mask=inside, other=0.0) * grow, 0)
            low = tl.minimum(low, tl.min(tl.load(slot + 3 * Q, mask=inside, other=float("inf")), 0))
        m = m_new
    tl.store(sums + queries, m, mask=query_mask)
    tl.store(sums + stride_sums + queries, l, mask=query_mask)
    if STATISTICS:
        tl.store(sums + 2 * stride_sums + queries, w, mask=query_mask)
        tl.store(sums + 3 * stride_sums + queries, low, mask=query_mask)


@triton.jit
def positive_pass(
    U, V, scale_ptr, row_order, column_order, firsts, lasts, negatives, out,
    M, N, D, stride_um, stride_ud, stride_vn, stride_vd,
    TERMS: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Sums over each row's positives alone, which are one range of the columns sorted by id: no pass over all M x N.

    Rows are taken in the order of their ids too, so that a block's ranges lie side by side. firsts, lasts (M,) are the
    ranges of the sorted rows. out (.., M): with TERMS the two sums of duplicates="ignore" given the negatives'
    log-sum-exp (M,), otherwise count, total, m, l, w.
    """
    position = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    row_mask = position < M
    rows = tl.load(row_order + position, mask=row_mask, other=0)
    first = tl.load(firsts + position, mask=row_mask, other=N)
    last = tl.load(lasts + position, mask=row_mask, other=0)
    begin = tl.min(first, 0)
    end = tl.max(last, 0)
    scale = tl.load(scale_ptr)
    m = tl.full([BM], -float("inf"), dtype=WIDE)
    l = tl.zeros([BM], dtype=WIDE)  # noqa: E741
    w = tl.zeros([BM], dtype=WIDE)
    total = tl.zeros([BM], dtype=WIDE)
    if TERMS:
        lse = tl.load(negatives + rows, mask=row_mask, other=0.0)
    for start in range(begin, end, BN):
        place = start + tl.arange(0, BN).to(tl.int64)
        column_mask = place < end
        columns = tl.load(column_order + place, mask=column_mask, other=0)
        z = _logits(
            U, V, rows, columns, row_mask, column_mask, scale, D, stride_um, stride_ud, stride_vn, stride_vd,
            WIDE, PRECISION, UPCAST, BM, BN, BK,
        )  # fmt: skip
        positive = (place[None, :] >= first[:, None]) & (place[None, :] < last[:, None])
        if TERMS:
            above = lse[:, None] - z
            # log(1 + e^x) and 1 / (1 + e^-x) without overflow on either side.
            small = tl.exp(-tl.abs(above))
            softplus = tl.maximum(above, 0.0) + tl.log(1.0 + small)
            sigmoid = tl.where(above >= 0, 1.0, small) / (1.0 + small)
            # 1 + e^x loses e^x below 1e-7, where log(1 + e^x) is e^x to every digit.
            softplus = tl.where(above < -12.0, small * (1.0 - 0.5 * small), softplus)
            total += tl.sum(tl.where(positive, softplus, 0.0), 1)
            l += tl.sum(tl.where(positive, sigmoid, 0.0), 1)  # noqa: E741
        else:
            chosen = tl.where(positive, z, -float("inf"))
            m_new = tl.maximum(m, tl.max(chosen, 1))
            base = tl.where(m_new == -float("inf"), 0.0, m_new)
            e = tl.exp(chosen - base[:, None])
            shrink = tl.exp(m - base)
            l = l * shrink + tl.sum(e, 1)  # noqa: E741
            w = w * shrink + tl.sum(e * z, 1)
            total += tl.sum(tl.where(positive, z, 0.0), 1)
            m = m_new
    if TERMS:
        tl.store(out + rows, total, mask=row_mask)
        tl.store(out + M + rows, l, mask=row_mask)
    else:
        tl.store(out + rows, (last - first).to(WIDE), mask=row_mask)
        tl.store(out + M + rows, total, mask=row_mask)
        tl.store(out + 2 * M + rows, m, mask=row_mask)
        tl.store(out + 3 * M + rows, l, mask=row_mask)
        tl.store(out + 4 * M + rows, w, mask=row_mask)


@triton.jit
def _one_direction(z, positive, some, shift, positive_shift, share, inverse, upstream, IGNORE: tl.constexpr):
    """upstream * (P - Y) of one direction; terms are (BM, 1) or (1, BN). Y leaves in float32, before any rounding."""
    g = tl.exp(z - shift)
    if some:
        if IGNORE:
            on = -inverse / (1.0 + tl.exp(z - positive_shift))
        else:
            # A lone positive: p - 1 is minus the negatives' share, known without subtracting.
            on = tl.where(inverse == 1.0, -share, tl.exp(z - positive_shift) - inverse)
        g = tl.where(positive, on, g)
    return g * upstream


@triton.jit
def _gradient_tile(
    U, V, scale, row_codes, column_codes, row_terms, column_terms, row_upstream, column_upstream, cache, step_ptr,
    rows, columns, row_mask, column_mask, corner, M, N, D, stride_um, stride_ud, stride_vn, stride_vd,
    IGNORE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, CACHE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """(BM, BN) derivatives of the loss by the logits, both directions; 0 outside the matrix."""
    inside = row_mask[:, None] & column_mask[None, :]
    if CACHE == 0:
        z = _logits(
            U, V, rows, columns, row_mask, column_mask, scale, D, stride_um, stride_ud, stride_vn, stride_vd,
            WIDE, PRECISION, UPCAST, BM, BN, BK,
        )  # fmt: skip
    else:
        place = tl.arange(0, BM)[:, None] * N + tl.arange(0, BN)[None, :]
        z = tl.load(cache + corner + place, mask=inside, other=0).to(WIDE)
        if CACHE == 2:
            z = z * tl.load(step_ptr)
    codes = tl.load(row_codes + rows, mask=row_mask, other=-1)
    others = tl.load(column_codes + columns, mask=column_mask, other=-1)
    positive = (codes[:, None] == others[None, :]) & inside
    some = tl.max(tl.max(positive.to(tl.int32), 1), 0) > 0
    shift = tl.load(row_terms + rows, mask=row_mask, other=0.0)
    positive_shift = tl.load(row_terms + M + rows, mask=row_mask, other=0.0)
    share = tl.load(row_terms + 2 * M + rows, mask=row_mask, other=0.0)
    inverse = tl.load(row_terms + 3 * M + rows, mask=row_mask, other=0.0)
    upstream = tl.load(row_upstream + rows, mask=row_mask, other=0.0)
    g = _one_direction(
        z, positive, some, shift[:, None], positive_shift[:, None], share[:, None], inverse[:, None], upstream[:, None],
        IGNORE,
    )  # fmt: skip
    shift = tl.load(column_terms + columns, mask=column_mask, other=0.0)
    positive_shift = tl.load(column_terms + N + columns, mask=column_mask, other=0.0)
    share = tl.load(column_terms + 2 * N + columns, mask=column_mask, other=0.0)
    inverse = tl.load(column_terms + 3 * N + columns, mask=column_mask, other=0.0)
    upstream = tl.load(column_upstream + columns, mask=column_mask, other=0.0)
    g += _one_direction(
        z, positive, some, shift[None, :], positive_shift[None, :], share[None, :], inverse[None, :], upstream[None, :],
        IGNORE,
    )  # fmt: skip
    return tl.where(inside, g, 0.0)


@triton.jit
def gradient_block(
    U, V, scale_ptr, row_codes, column_codes, row_terms, column_terms, row_upstream, column_upstream, cache,
    step_ptr, out,
    M, N, D, stride_um, stride_ud, stride_vn, stride_vd, row_begin, column_begin, height, width,
    IGNORE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, CACHE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Design (a): write the block height x width of derivatives at (row_begin, column_begin); matrix products
    follow."""
    # Eight row blocks walk the columns together, so that their tiles of U and V are read from the cache.
    pid = tl.program_id(0)
    row_blocks = tl.cdiv(height, BM)
    column_blocks = tl.cdiv(width, BN)
    band = pid // (8 * column_blocks)
    band_height = tl.minimum(row_blocks - band * 8, 8)
    row_block = band * 8 + (pid % (8 * column_blocks)) % band_height
    column_block = (pid % (8 * column_blocks)) // band_height
    r = row_block.to(tl.int64) * BM + tl.arange(0, BM)
    c = column_block.to(tl.int64) * BN + tl.arange(0, BN)
    corner = (row_begin + row_block.to(tl.int64) * BM) * N + column_begin + column_block * BN
    g = _gradient_tile(
        U, V, tl.load(scale_ptr), row_codes, column_codes, row_terms, column_terms, row_upstream, column_upstream,
        cache, step_ptr,
        row_begin + r, column_begin + c, r < height, c < width, corner, M, N, D, stride_um, stride_ud, stride_vn,
        stride_vd,
        IGNORE, WIDE, PRECISION, UPCAST, CACHE, BM, BN, BK,
    )  # fmt: skip
    inside = (r < height)[:, None] & (c < width)[None, :]
    written = out + row_block.to(tl.int64) * BM * width + column_block * BN
    place = tl.arange(0, BM)[:, None] * width + tl.arange(0, BN)[None, :]
    tl.store(written + place, g.to(out.dtype.element_ty), mask=inside)


@triton.jit
def fused_rows(
    U, V, scale_ptr, row_codes, column_codes, row_terms, column_terms, row_upstream, column_upstream, out,
    M, N, D, stride_um, stride_ud, stride_vn, stride_vd,
    IGNORE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Design (b): out (M, D) = derivatives @ V, the derivatives staying on the chip; the columns' turn swaps the roles.

    Program (r, d): row block r, BD of the dimensions; the tile of derivatives is computed anew for each of the D / BD.
    """
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    row_mask = rows < M
    dims = tl.program_id(1) * BD + tl.arange(0, BD)
    scale = tl.load(scale_ptr)
    total = tl.zeros([BM, BD], dtype=WIDE)
    for start in range(0, N, BN):
        columns = start + tl.arange(0, BN).to(tl.int64)
        column_mask = columns < N
        g = _gradient_tile(
            U, V, scale, row_codes, column_codes, row_terms, column_terms, row_upstream, column_upstream, out, out,
            rows, columns, row_mask, column_mask, 0, M, N, D, stride_um, stride_ud, stride_vn, stride_vd,
            IGNORE, WIDE, PRECISION, UPCAST, 0, BM, BN, BK,
        )  # fmt: skip
        v = tl.load(
            V + columns[:, None] * stride_vn + dims[None, :] * stride_vd,
            mask=column_mask[:, None] & (dims < D)[None, :],
            other=0.0,
        )
        g = g.to(v.dtype)
        if UPCAST:
            g = g.to(WIDE)
            v = v.to(WIDE)
        total = tl.dot(g, v, total, input_precision=PRECISION, out_dtype=WIDE)
    offsets = rows[:, None] * D + dims[None, :]
    tl.store(out + offsets, total, mask=row_mask[:, None] & (dims < D)[None, :])
