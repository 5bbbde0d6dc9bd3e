"""Which images stand in which batch of an epoch, and which caption each brings: pure functions of seed and epoch."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import ArrayLike, NDArray

from varalign.data.draws import CAPTION, ORDER, SHARD_ORDER, hash_draws
from varalign.data.index import CaptionIndex


def epoch_batches(
    rows: ArrayLike,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    image_ids: NDArray[np.int64] | None = None,
    shards: NDArray[np.int64] | None = None,
    buffer: int = 0,
) -> list[NDArray[np.int64]]:
    """Shuffle image rows and cut them into batches, none of which holds an image twice; two that share a text may meet.

    rows: image rows, each once. image_ids: (I,) ids of all images of the data set, equal for copies of one image; a
    copy of an image already in the batch is moved to a later batch. The order depends on seed, epoch and set of rows.
    shards, buffer: the shard of each image of the data set, (I,), and how far an image may move from its place in the
    stream of the shards, which are drawn in a new order each epoch; with 0 places images move freely.
    Returns batches of `batch_size` rows. The last incomplete batch is left out unless it is the only one.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: wanted at least 1")
    unique = np.unique(np.asarray(rows, dtype=np.int64))
    places = hash_draws(unique, seed, epoch, ORDER)
    if shards is not None and buffer:
        places = _near(places, shards[unique], hash_draws(shards[unique], seed, epoch, SHARD_ORDER), buffer)
    order = unique[np.argsort(places, kind="stable")]
    ids = order if image_ids is None else np.asarray(image_ids)[order]
    if len(np.unique(ids)) == len(ids):
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    else:
        batches = _apart(order, ids, batch_size)
    if len(batches) > 1 and len(batches[-1]) < batch_size:
        batches.pop()
    return batches


def draw_captions(
    captions: CaptionIndex, rows: ArrayLike, *, seed: int, epoch: int, count: int | None = None
) -> NDArray[np.int64]:
    """(len(rows),) int64: one caption index for each image row, drawn anew each epoch; (len(rows), count) with a count.

    A pure function of (seed, epoch, row), uniform over the image's captions, of which equal ones count as one. The
    `count` captions of an image differ as long as it has that many; then they come round again. ValueError where an
    image has none.
    """
    chosen = np.asarray(rows, dtype=np.int64).reshape(-1)
    order, offsets = captions.drawn_captions
    starts = offsets[chosen]
    counts = offsets[chosen + 1] - starts
    if len(counts) and counts.min() < 1:
        raise ValueError(f"image row {chosen[counts < 1][0]} has no caption to draw")
    places = np.zeros((len(chosen), count or 1), dtype=np.int64)
    for drawn in range(places.shape[1]):
        left = np.maximum(counts - drawn, 1)
        draws = hash_draws(chosen, seed, epoch, CAPTION | drawn << 8) >> np.uint64(32)
        place = ((draws * left.astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
        # The place among those still left becomes one among all: up by one for each drawn before that is not above it.
        for before in np.sort(places[:, :drawn], axis=1).T:
            place += place >= before
        places[:, drawn] = np.where(drawn < counts, place, places[np.arange(len(chosen)), drawn % counts])
    found: NDArray[np.int64] = order[starts[:, None] + places]
    return found[:, 0] if count is None else found


def _near(
    draws: NDArray[np.uint64], shards: NDArray[np.int64], shard_draws: NDArray[np.uint64], buffer: int
) -> NDArray[np.uint64]:
    """By what to sort images so that none comes more than `buffer` places before or after its place in the stream.

    draws: (R,) uniform, by which they move. shards, shard_draws: (R,) the shard of each, and by what shards are sorted.
    """
    stream = np.empty(len(draws), dtype=np.uint64)
    stream[np.lexsort((shards, shard_draws))] = np.arange(len(draws), dtype=np.uint64)
    # In units of 2^-32 places: exact, unlike a sum of floating point numbers.
    return (stream << np.uint64(32)) + (draws >> np.uint64(32)) * np.uint64(buffer)


def _apart(order: NDArray[np.int64], ids: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Cut `order` into batches in which an id occurs once; a row whose id is in the batch moves to the next one."""
    coming = deque(zip(order.tolist(), ids.tolist(), strict=True))
    waiting: deque[tuple[int, int]] = deque()
    batches = []
    while coming or waiting:
        batch: list[int] = []
        seen: set[int] = set()
        still_waiting: deque[tuple[int, int]] = deque()
        while len(batch) < batch_size and (waiting or coming):
            row, image_id = waiting.popleft() if waiting else coming.popleft()
            if image_id in seen:
                still_waiting.append((row, image_id))
            else:
                seen.add(image_id)
                batch.append(row)
        waiting.extendleft(reversed(still_waiting))
        batches.append(np.array(batch, dtype=np.int64))
        if len(batch) < batch_size:
            break
    return batches
