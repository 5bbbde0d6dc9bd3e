"""The Triton kernels of the contrastive loss: one tile of logits at a time, never the matrix.

Letters: U (M, D) and V (N, D) the embeddings, z = scale * U V' the logits; m running maximum, l running sum of
exponentials, w the same weighted by z, low running minimum. Offsets are 64-bit: N * D may pass 2^31.

Tables with a value a query hold Q = M + N of them, the rows' first. Ids come as the table of `matching`, IDS of a row.

No atomics anywhere: each program writes its own slots, and slots are merged in a fixed order, so every run gives the
same bits.
"""

import triton
import triton.language as tl
from varalign.kernels import query_fields as f
from varalign.kernels.queries import load_gain, softplus_and_sigmoid


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
def similarity_pass(
    U, V, scale_ptr, codes, row_parts, column_parts, cache, longest,
    M, N, D, stride_um, stride_ud, stride_vn, stride_vd, begin, end, tiles_per_split,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, CACHE: tl.constexpr, STATISTICS: tl.constexpr,
    IDS: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Running m, l, w of the negatives and low of all candidates, for the rows over the columns begin:end and back.

    Program (r, s): row block r over the s-th share of the columns' tiles. row_parts (splits, 4, M) go on from call to
    call, from nothing where begin is 0; column_parts (row blocks, 4, end - begin) are written whole. CACHE 1 keeps z as
    it is, CACHE 2 as 16-bit multiples of `_cache_step`. Without STATISTICS the loss alone: w and low are not written.
    """
    row_block = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    rows = row_block * BM + tl.arange(0, BM)
    row_mask = rows < M
    scale = tl.load(scale_ptr)
    if CACHE == 2:
        step = _cache_step(longest, scale, PARTS)
    if IDS == 1:
        row_codes = tl.load(codes + rows, mask=row_mask, other=-1)
    row_slot = row_parts + split * 4 * M + rows
    started = rows < tl.where(begin > 0, M, 0)
    m = tl.load(row_slot, mask=started, other=-float("inf"))
    l = tl.load(row_slot + M, mask=started, other=0.0)  # noqa: E741
    if STATISTICS:
        w = tl.load(row_slot + 2 * M, mask=started, other=0.0)
        low = tl.load(row_slot + 3 * M, mask=started, other=float("inf"))
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
                level = tl.floor(z / step + 0.5)
                level = tl.minimum(tl.maximum(level, -32767.0), 32767.0)
                tl.store(kept + place, level.to(tl.int16), mask=inside)
            else:
                tl.store(kept + place, z, mask=inside)
        column_codes = tl.load(codes + M * IDS + columns, mask=column_mask, other=-1)
        # Padding and positives are -inf before any maximum is taken.
        if IDS == 1:
            other = row_codes[:, None] != column_codes[None, :]
        else:
            other = _has_id(codes, rows, row_mask, column_codes, IDS) == 0
        negative = tl.where(inside & other, z, -float("inf"))
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


@triton.jit
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
def _upstream_over_gain(upstream, inverse, gain):
    """The upstream gradient in units of the gain; a query without positives has the constant value 0 and none."""
    return tl.where(inverse == 0, 0.0, upstream) / gain


@triton.jit
def _gradient_tile(
    U, V, scale, codes, terms, upstream, gain, cache, longest,
    rows, columns, row_mask, column_mask, corner, row_first, column_first, Q, N, D,
    stride_um, stride_ud, stride_vn, stride_vd,
    IGNORE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, CACHE: tl.constexpr,
    IDS: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """(BM, BN) derivatives of the loss by the logits, both directions; 0 outside the matrix.

    row_first, column_first: where the rows and the columns begin in tables of all queries.
    """
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
            z = z * _cache_step(longest, scale, PARTS)
    column_codes = tl.load(codes + column_first * IDS + columns, mask=column_mask, other=-1)
    positive = _has_id(codes, row_first + rows, row_mask, column_codes, IDS) & inside
    some = tl.max(tl.max(positive.to(tl.int32), 1), 0) > 0
    slot = terms + row_first + rows
    shift = tl.load(slot + f.SHIFT * Q, mask=row_mask, other=0.0)
    positive_shift = tl.load(slot + f.POSITIVE_SHIFT * Q, mask=row_mask, other=0.0)
    share = tl.load(slot + f.SHARE * Q, mask=row_mask, other=0.0)
    inverse = tl.load(slot + f.INVERSE_COUNT * Q, mask=row_mask, other=0.0)
    up = _upstream_over_gain(tl.load(upstream + row_first + rows, mask=row_mask, other=0.0), inverse, gain)
    g = _one_direction(
        z, positive, some, shift[:, None], positive_shift[:, None], share[:, None], inverse[:, None], up[:, None],
        IGNORE,
    )  # fmt: skip
    slot = terms + column_first + columns
    shift = tl.load(slot + f.SHIFT * Q, mask=column_mask, other=0.0)
    positive_shift = tl.load(slot + f.POSITIVE_SHIFT * Q, mask=column_mask, other=0.0)
    share = tl.load(slot + f.SHARE * Q, mask=column_mask, other=0.0)
    inverse = tl.load(slot + f.INVERSE_COUNT * Q, mask=column_mask, other=0.0)
    up = _upstream_over_gain(tl.load(upstream + column_first + columns, mask=column_mask, other=0.0), inverse, gain)
    g += _one_direction(
        z, positive, some, shift[None, :], positive_shift[None, :], share[None, :], inverse[None, :], up[None, :],
        IGNORE,
    )  # fmt: skip
    return tl.where(inside, g, 0.0)


@triton.jit
def gradient_block(
    U, V, scale_ptr, codes, terms, upstream, gain_ptr, cache, longest, out,
    M, N, D, stride_um, stride_ud, stride_vn, stride_vd, row_begin, column_begin, height, width,
    IGNORE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, CACHE: tl.constexpr,
    GAIN: tl.constexpr, IDS: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write the block height x width of derivatives at (row_begin, column_begin); matrix products follow."""
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
        U, V, tl.load(scale_ptr), codes, terms, upstream, load_gain(gain_ptr, GAIN), cache, longest,
        row_begin + r, column_begin + c, r < height, c < width, corner, 0, M, M + N, N, D,
        stride_um, stride_ud, stride_vn, stride_vd,
        IGNORE, WIDE, PRECISION, UPCAST, CACHE, IDS, PARTS, BM, BN, BK,
    )  # fmt: skip
    inside = (r < height)[:, None] & (c < width)[None, :]
    written = out + row_block.to(tl.int64) * BM * width + column_block * BN
    place = tl.arange(0, BM)[:, None] * width + tl.arange(0, BN)[None, :]
    tl.store(written + place, g.to(out.dtype.element_ty), mask=inside)
