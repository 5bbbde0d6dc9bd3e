"""From the queries' losses to one loss: the means of each direction, the schedule's weights and the backward pass.

Each is one launch; the plain versions in `varalign.losses.means` and `varalign.schedules` take some forty operations.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from varalign.kernels.host import Kernel, cdiv, on, triton_dtype
from varalign.kernels.query_fields import STATISTICS

LSE, POSITIVE_MAX, NEGATIVE_MAX, MINIMUM, EXPECTED, VARIANCE = (
    tl.constexpr(STATISTICS.index(name))
    for name in ("lse", "positive_max", "negative_max", "minimum", "expected", "variance")
)


@Kernel
def direction_means(
    values, statistics, scale_ptr, image_weights, text_weights, losses, counts, means, M, Q,
    WIDE: tl.constexpr, IMAGE_WEIGHTS: tl.constexpr, TEXT_WEIGHTS: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """Program d: of direction d's queries the mean loss, what it was divided by, and means (3, 2) of its statistics."""
    direction = tl.program_id(0)
    first = direction * M
    end = tl.where(direction == 0, M, Q)
    scale = tl.load(scale_ptr)
    loss = tl.zeros([BQ], dtype=WIDE)
    count = tl.zeros([BQ], dtype=WIDE)
    variance = tl.zeros([BQ], dtype=WIDE)
    entropy = tl.zeros([BQ], dtype=WIDE)
    spread = tl.zeros([BQ], dtype=WIDE)
    for start in range(first, end, BQ):
        query = start + tl.arange(0, BQ).to(tl.int64)
        mask = query < end
        slot = statistics + query
        positive_max = tl.load(slot + POSITIVE_MAX * Q, mask=mask, other=-float("inf"))
        weight = (positive_max != -float("inf")).to(WIDE)
        value = tl.load(values + query, mask=mask, other=0.0)
        if IMAGE_WEIGHTS:
            given = tl.load(image_weights + query, mask=query < M, other=1.0).to(WIDE)
            weight *= given
            value *= given
        if TEXT_WEIGHTS:
            given = tl.load(text_weights + (query - M), mask=mask & (query >= M), other=1.0).to(WIDE)
            weight *= given
            value *= given
        loss += value
        count += weight
        variance += tl.load(slot + VARIANCE * Q, mask=mask, other=0.0)
        lse = tl.load(slot + LSE * Q, mask=mask, other=0.0)
        bits = lse - scale * tl.load(slot + EXPECTED * Q, mask=mask, other=0.0)
        entropy += tl.where(bits < 0, 0.0, bits)
        largest = tl.maximum(positive_max, tl.load(slot + NEGATIVE_MAX * Q, mask=mask, other=-float("inf")))
        spread += tl.where(mask, largest - tl.load(slot + MINIMUM * Q, mask=mask, other=0.0), 0.0)
    divisor = tl.sum(count, 0)
    divisor = tl.where(divisor > 0, divisor, 1.0)
    queries = (end - first).to(WIDE)
    tl.store(losses + direction, tl.sum(loss, 0) / divisor)
    tl.store(counts + direction, divisor)
    tl.store(means + direction, tl.sum(variance, 0) / queries)
    tl.store(means + 2 + direction, tl.sum(entropy, 0) / queries)
    tl.store(means + 4 + direction, tl.sum(spread, 0) / queries)


@Kernel
def query_gradients(
    upstream, counts, image_weights, text_weights, out, M, Q,
    IMAGE_WEIGHTS: tl.constexpr, TEXT_WEIGHTS: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """out (Q,) = what each query's loss weighs in its direction's mean, times that mean's gradient, upstream (2,)."""
    query = tl.program_id(0) * BQ + tl.arange(0, BQ)
    mask = query < Q
    share_i2t = tl.load(upstream) / tl.load(counts)
    share_t2i = tl.load(upstream + 1) / tl.load(counts + 1)
    gradient = tl.where(query < M, share_i2t, share_t2i)
    if IMAGE_WEIGHTS:
        gradient *= tl.load(image_weights + query, mask=query < M, other=1.0).to(gradient.dtype)
    if TEXT_WEIGHTS:
        gradient *= tl.load(text_weights + (query - M), mask=mask & (query >= M), other=1.0).to(gradient.dtype)
    tl.store(out + query, gradient, mask=mask)


@triton.jit
def _power(ratio, gamma):
    """ratio ** gamma; 0 ** 0 is 1, and the usual exponent leaves the ratio as it is."""
    power = tl.where(gamma == 0, 1.0, tl.exp(gamma * tl.log(ratio)))
    return tl.where(gamma == 1, ratio, power)


@Kernel
def schedule_step(i2t, t2i, average, steps, weights, keep, fresh, floor, rest, gamma, LEARN: tl.constexpr):
    """`StatisticSchedule.forward` on numbers; the bias correction divides both directions alike, and a ratio counts."""
    a = tl.load(i2t).to(tl.float32)
    b = tl.load(t2i).to(tl.float32)
    sound = (tl.abs(a) < float("inf")) & (tl.abs(b) < float("inf"))
    old_a = tl.load(average)
    old_b = tl.load(average + 1)
    a = tl.where(sound, old_a * keep + a * fresh, old_a)
    b = tl.where(sound, old_b * keep + b * fresh, old_b)
    if LEARN:
        tl.store(average, a)
        tl.store(average + 1, b)
        tl.store(steps, tl.load(steps) + sound.to(tl.int64))
    largest = tl.maximum(a, b)
    power_a = _power(a / largest, gamma)
    power_b = _power(b / largest, gamma)
    total = power_a + power_b
    tl.store(weights, tl.where(largest > 0, floor + rest * power_a / total, 0.5))
    tl.store(weights + 1, tl.where(largest > 0, floor + rest * power_b / total, 0.5))


class DirectionMeans(torch.autograd.Function):
    """Mean losses (2,) of the directions, and (3, 2) means of their statistics: variance, entropy and spread."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, values: Tensor, statistics: Tensor, scale: Tensor, m: int,
        image_weights: Tensor | None, text_weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        losses, counts = values.new_empty(2), values.new_empty(2)
        means = values.new_empty(3, 2)
        given = _given(values, image_weights, text_weights)
        with on(values.device):
            direction_means[(2,)](
                values, statistics, scale, *given[0], losses, counts, means, m, values.shape[0],
                WIDE=triton_dtype(values.dtype), BQ=1024, **given[1],
            )  # fmt: skip
        ctx.mark_non_differentiable(means)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(counts, image_weights, text_weights)
        ctx.queries, ctx.m = values.shape[0], m
        return losses, means

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        if upstream is None:
            return (None,) * 6
        counts, image_weights, text_weights = ctx.saved_tensors
        out = counts.new_empty(ctx.queries)
        given = _given(counts, image_weights, text_weights)
        with on(counts.device):
            query_gradients[(cdiv(ctx.queries, 256),)](
                upstream.contiguous(), counts, *given[0], out, ctx.m, ctx.queries, BQ=256, **given[1]
            )
        return (out, *[None] * 5)


def _given(values: Tensor, *weights: Tensor | None) -> tuple[list[Tensor], dict[str, bool]]:
    """The weights, something in place of absent ones, and which are there."""
    named = zip(("IMAGE_WEIGHTS", "TEXT_WEIGHTS"), weights, strict=True)
    return [values if weight is None else weight for weight in weights], {n: w is not None for n, w in named}


def next_weights(
    now: tuple[Tensor, Tensor], average: Tensor, steps: Tensor, beta: float, floor: float, gamma: float, learn: bool
) -> Tensor:
    """(2,) float32 weights of this step's statistics (), and with `learn` the moving average brought up to date."""
    weights = torch.empty(2, dtype=torch.float32, device=average.device)
    with on(average.device):
        schedule_step[(1,)](
            *now, average, steps, weights, float(beta), 1 - beta, float(floor), 1 - 2 * floor, float(gamma),
            LEARN=learn, num_warps=1,
        )  # fmt: skip
    return weights
