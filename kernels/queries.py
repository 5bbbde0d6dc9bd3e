"""The Triton kernels that see each query once: partial sums merged, sums turned into losses, gradients finished.

Tables hold Q = M + N queries, the rows' first. Every kernel takes the place of a dozen or more launches of single
operations, whose few microseconds each are what a small batch's time is made of. Slots are merged in a fixed order.
"""

import triton
import triton.language as tl
from varalign.kernels import query_fields as f
from varalign.kernels.host import Kernel


@triton.jit
def softplus_and_sigmoid(x):
    """log(1 + e^x) and 1 / (1 + e^-x), to the last digits on either side."""
    small = tl.exp(-tl.abs(x))
    one = 1.0 + small
    # log(1 + y) = y log(w) / (w - 1) with w = 1 + y as rounded: what w lost of y leaves both factors alike (Kahan).
    exact = tl.where(one == 1.0, small, tl.log(one) * (small / tl.where(one == 1.0, 1.0, one - 1.0)))
    return tl.maximum(x, 0.0) + exact, tl.where(x >= 0, 1.0, small) / one


@triton.jit
def load_gain(gain_ptr, GAIN: tl.constexpr):
    """The largest upstream gradient, in whose unit 16-bit derivatives are kept; 1 where all are 0 or without GAIN."""
    gain = 1.0
    if GAIN:
        gain = tl.load(gain_ptr)
        gain = tl.where(gain == 0, 1.0, gain)
    return gain


@Kernel
def merge_parts(
    column_parts, row_parts, sums, M, N, column_count, row_count, column_programs,
    WIDE: tl.constexpr, STATISTICS: tl.constexpr, BP: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """Merge parts (count, 4, width) over count, in order, BP at a time, into the first four rows of sums (.., M + N).

    The first `column_programs` programs take the columns, the others the rows. Without STATISTICS the third and fourth
    are NaN.
    """
    program = tl.program_id(0)
    of_columns = program < column_programs
    parts = tl.where(of_columns, column_parts, row_parts)
    count = tl.where(of_columns, column_count, row_count)
    width = tl.where(of_columns, N, M).to(tl.int64)
    first = tl.where(of_columns, M, 0)
    Q = width + tl.where(of_columns, M, N)
    local = tl.where(of_columns, program, program - column_programs).to(tl.int64) * BQ + tl.arange(0, BQ)
    mask = local < width
    m = tl.full([BQ], -float("inf"), dtype=WIDE)
    l = tl.zeros([BQ], dtype=WIDE)  # noqa: E741
    w = tl.zeros([BQ], dtype=WIDE)
    low = tl.full([BQ], float("inf"), dtype=WIDE)
    for start in range(0, count, BP):
        part = start + tl.arange(0, BP).to(tl.int64)
        inside = (part < count)[:, None] & mask[None, :]
        slot = parts + part[:, None] * 4 * width + local[None, :]
        part_m = tl.load(slot, mask=inside, other=-float("inf"))
        m_new = tl.maximum(m, tl.max(part_m, 0))
        base = tl.where(m_new == -float("inf"), 0.0, m_new)
        grow = tl.exp(part_m - base[None, :])
        shrink = tl.exp(m - base)
        l = l * shrink + tl.sum(tl.load(slot + width, mask=inside, other=0.0) * grow, 0)  # noqa: E741
        if STATISTICS:
            w = w * shrink + tl.sum(tl.load(slot + 2 * width, mask=inside, other=0.0) * grow, 0)
            low = tl.minimum(low, tl.min(tl.load(slot + 3 * width, mask=inside, other=float("inf")), 0))
        m = m_new
    if not STATISTICS:
        w = tl.full([BQ], float("nan"), dtype=WIDE)
        low = w
    slot = sums + first + local
    tl.store(slot, m, mask=mask)
    tl.store(slot + Q, l, mask=mask)
    tl.store(slot + 2 * Q, w, mask=mask)
    tl.store(slot + 3 * Q, low, mask=mask)


@Kernel
def merge_ids(
    parts, out, M, Q, P, TERMS: tl.constexpr, IDS: tl.constexpr, WIDE: tl.constexpr, BQ: tl.constexpr
):  # fmt: skip
    """Merge the sums of `tiles.positive_pass`, parts (.., P), over the IDS ids of each image, into out (.., Q)."""
    query = tl.program_id(0).to(tl.int64) * BQ + tl.arange(0, BQ)
    image = query < M
    slot = parts + tl.where(image, query * IDS, query + M * (IDS - 1))
    count = tl.zeros([BQ], dtype=WIDE)
    total = tl.zeros([BQ], dtype=WIDE)
    m = tl.full([BQ], -float("inf"), dtype=WIDE)
    l = tl.zeros([BQ], dtype=WIDE)  # noqa: E741
    w = tl.zeros([BQ], dtype=WIDE)
    for k in tl.static_range(IDS):
        there = (query < Q) & (image | (k == 0))
        if TERMS:
            total += tl.load(slot + k, mask=there, other=0.0)
            l += tl.load(slot + P + k, mask=there, other=0.0)  # noqa: E741
        else:
            count += tl.load(slot + f.POSITIVE_COUNT * P + k, mask=there, other=0.0)
            total += tl.load(slot + f.POSITIVE_TOTAL * P + k, mask=there, other=0.0)
            part_m = tl.load(slot + f.POSITIVE_MAX * P + k, mask=there, other=-float("inf"))
            m_new = tl.maximum(m, part_m)
            base = tl.where(m_new == -float("inf"), 0.0, m_new)
            grow = tl.exp(part_m - base)
            shrink = tl.exp(m - base)
            l = l * shrink + tl.load(slot + f.POSITIVE_SUM * P + k, mask=there, other=0.0) * grow  # noqa: E741
            w = w * shrink + tl.load(slot + f.POSITIVE_WEIGHTED * P + k, mask=there, other=0.0) * grow
            m = m_new
    slot = out + query
    if TERMS:
        tl.store(slot, total, mask=query < Q)
        tl.store(slot + Q, l, mask=query < Q)
    else:
        tl.store(slot + f.POSITIVE_COUNT * Q, count, mask=query < Q)
        tl.store(slot + f.POSITIVE_TOTAL * Q, total, mask=query < Q)
        tl.store(slot + f.POSITIVE_MAX * Q, m, mask=query < Q)
        tl.store(slot + f.POSITIVE_SUM * Q, l, mask=query < Q)
        tl.store(slot + f.POSITIVE_WEIGHTED * Q, w, mask=query < Q)


@Kernel
def settle_queries(
    sums, scale_ptr, variance, ignored, values, statistics, terms, Q,
    VARIANCE: tl.constexpr, IGNORE: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """`varalign.losses.settle.settle`, where the formulas are derived, for tables of Q queries."""
    query = tl.program_id(0).to(tl.int64) * BQ + tl.arange(0, BQ)
    mask = query < Q
    scale = tl.load(scale_ptr)
    slot = sums + query
    negative_max = tl.load(slot + f.NEGATIVE_MAX * Q, mask=mask, other=0.0)
    negative_sum = tl.load(slot + f.NEGATIVE_SUM * Q, mask=mask, other=1.0)
    negative_weighted = tl.load(slot + f.NEGATIVE_WEIGHTED * Q, mask=mask, other=0.0)
    minimum = tl.load(slot + f.MINIMUM * Q, mask=mask, other=0.0)
    count = tl.load(slot + f.POSITIVE_COUNT * Q, mask=mask, other=1.0)
    total = tl.load(slot + f.POSITIVE_TOTAL * Q, mask=mask, other=0.0)
    positive_max = tl.load(slot + f.POSITIVE_MAX * Q, mask=mask, other=0.0)
    positive_sum = tl.load(slot + f.POSITIVE_SUM * Q, mask=mask, other=1.0)
    positive_weighted = tl.load(slot + f.POSITIVE_WEIGHTED * Q, mask=mask, other=0.0)

    found = count > 0
    inverse = tl.where(found, 1.0 / tl.maximum(count, 1.0), 0.0)
    spread = tl.log(positive_sum)
    negatives = negative_max + tl.log(negative_sum)
    positives = positive_max + spread
    softplus, share = softplus_and_sigmoid(negatives - positives)
    # log(e^L- + e^L+) = L+ + log(1 + e^d): from the larger of the two, so that no infinity meets its opposite.
    larger = tl.maximum(negatives, positives)
    lse = larger + softplus_and_sigmoid(-tl.abs(negatives - positives))[0]
    positive_mean = total * inverse
    if IGNORE:
        value = tl.load(ignored + query, mask=mask, other=0.0) * inverse
        kept = tl.load(ignored + Q + query, mask=mask, other=0.0) * inverse
        # Without negatives L- is -inf and so is log(kept): the negatives' gradient is 0, not NaN.
        shift = tl.where(kept == 0, float("inf"), negatives - tl.log(kept))
        positive_shift = negatives
    else:
        value = softplus + spread + (positive_max - positive_mean)
        kept = share
        shift = lse
        positive_shift = lse
    tl.store(values + query, tl.where(found, value, 0.0), mask=mask)
    slot = terms + query
    tl.store(slot + f.SHIFT * Q, shift, mask=mask)
    tl.store(slot + f.POSITIVE_SHIFT * Q, positive_shift, mask=mask)
    tl.store(slot + f.SHARE * Q, kept, mask=mask)
    tl.store(slot + f.INVERSE_COUNT * Q, inverse, mask=mask)

    # A sum of exponentials is at least 1 (its own maximum) or exactly 0: the maximum changes nothing.
    expected = share * negative_weighted / tl.maximum(negative_sum, 1.0)
    expected += softplus_and_sigmoid(positives - negatives)[1] * positive_weighted / tl.maximum(positive_sum, 1.0)
    slot = statistics + query
    tl.store(slot, lse, mask=mask)
    tl.store(slot + Q, tl.where(found, positive_mean / scale, -float("inf")), mask=mask)
    tl.store(slot + 2 * Q, positive_max / scale, mask=mask)
    tl.store(slot + 3 * Q, negative_max / scale, mask=mask)
    tl.store(slot + 4 * Q, minimum / scale, mask=mask)
    tl.store(slot + 5 * Q, expected / scale, mask=mask)
    if VARIANCE:
        tl.store(slot + 6 * Q, tl.load(variance + query, mask=mask, other=0.0), mask=mask)
    else:
        tl.store(slot + 6 * Q, tl.full([BQ], float("nan"), dtype=statistics.dtype.element_ty), mask=mask)


@Kernel
def finish_gradients(
    total, X, scale_ptr, gain_ptr, out, slopes, count, D, stride_row, stride_dim,
    WIDE: tl.constexpr, GAIN: tl.constexpr, SLOPE: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """out (count, D) = total * scale * gain, rounded once; may be total itself.

    With SLOPE, slopes (programs,) is each program's part of the logit scale's gradient, sum of total * X * gain.
    """
    rows = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    gain = load_gain(gain_ptr, GAIN)
    factor = tl.load(scale_ptr) * gain
    slope = tl.zeros([BR, BD], dtype=WIDE)
    for start in range(0, D, BD):
        dims = start + tl.arange(0, BD)
        mask = (rows < count)[:, None] & (dims < D)[None, :]
        place = rows[:, None] * D + dims[None, :]
        g = tl.load(total + place, mask=mask, other=0.0)
        if SLOPE:
            x = tl.load(X + rows[:, None] * stride_row + dims[None, :] * stride_dim, mask=mask, other=0.0)
            slope += g * x.to(WIDE)
        tl.store(out + place, (g * factor).to(out.dtype.element_ty), mask=mask)
    if SLOPE:
        tl.store(slopes + tl.program_id(0), tl.sum(tl.sum(slope, 1), 0) * gain)
