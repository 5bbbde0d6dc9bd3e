"""Batches and drawn captions: pure functions of seed and epoch, and no image twice in a batch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from varalign.data.draws import SHARD_ORDER, hash_draws
from varalign.data.index import CaptionIndex
from varalign.data.sampler import draw_captions, epoch_batches


class Captions(CaptionIndex):
    def __init__(self, owner: list[int], images: int) -> None:
        self.split = np.zeros(images, dtype=np.int8)
        self._owner = np.array(owner, dtype=np.int64)

    @property
    def caption_owner(self) -> NDArray[np.int64]:
        return self._owner


@given(st.integers(0, 70), st.integers(1, 20), st.integers(0, 3), st.integers(0, 3))
def test_every_row_comes_once_but_for_the_incomplete_batch(count: int, batch_size: int, seed: int, epoch: int) -> None:
    rows = np.arange(count) * 3 + 1
    batches = epoch_batches(rows, batch_size, seed=seed, epoch=epoch)
    drawn = [row for batch in batches for row in batch.tolist()]
    assert len(drawn) == len(set(drawn))
    assert set(drawn) <= set(rows.tolist())
    if count >= batch_size:
        assert [len(batch) for batch in batches] == [batch_size] * (count // batch_size)
    else:
        assert [len(batch) for batch in batches] == ([count] if count else [])


@given(st.lists(st.integers(0, 12), max_size=60), st.integers(1, 12), st.integers(0, 3))
def test_a_batch_holds_an_image_id_once(ids: list[int], batch_size: int, epoch: int) -> None:
    image_ids = np.array(ids, dtype=np.int64)
    batches = epoch_batches(np.arange(len(ids)), batch_size, seed=0, epoch=epoch, image_ids=image_ids)
    drawn = [row for batch in batches for row in batch.tolist()]
    assert len(drawn) == len(set(drawn))
    for batch in batches:
        assert len(set(image_ids[batch].tolist())) == len(batch)
        assert len(batch) == batch_size or len(batches) == 1
    if len(set(ids)) == len(ids):
        plain = epoch_batches(np.arange(len(ids)), batch_size, seed=0, epoch=epoch)
        assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in plain]


def test_a_few_twins_cost_no_batch() -> None:
    image_ids = np.arange(6000)
    image_ids[[10, 500, 4000]] = [11, 501, 4001]
    for epoch in range(5):
        batches = epoch_batches(np.arange(6000), 128, seed=0, epoch=epoch, image_ids=image_ids)
        assert len(batches) == 46


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    rows = np.arange(100)
    first = np.concatenate(epoch_batches(rows, 10, seed=0, epoch=0))
    again = np.concatenate(epoch_batches(rows[::-1], 10, seed=0, epoch=0))
    assert first.tolist() == again.tolist()
    others = [np.concatenate(epoch_batches(rows, 10, seed=s, epoch=e)).tolist() for s, e in ((0, 1), (1, 0), (-1, 0))]
    assert len({tuple(order) for order in [first.tolist(), *others]}) == 4
    assert first[:8].tolist() == ORDER, "a seed's order must never change: runs are resumed and compared by it"


ORDER = [76, 16, 26, 83, 14, 30, 91, 64]


def test_orders_are_as_good_as_random() -> None:
    """The place of a row is uniform over epochs: each of 10 places 100 times of 1,000, within 4 deviations."""
    places = [np.concatenate(epoch_batches(np.arange(10), 10, seed=0, epoch=e)).tolist().index(3) for e in range(1000)]
    assert all(abs(count - 100) < 4 * 9.5 for count in Counter(places).values())


def test_bad_batch_size() -> None:
    with pytest.raises(ValueError, match="batch_size 0: wanted at least 1"):
        epoch_batches([1], 0, seed=0, epoch=0)


def test_drawn_captions_belong_to_their_images_and_change_by_epoch() -> None:
    captions = Captions([0, 1, 1, 2, 0, 2, 2, 2, 0, 2], 3)
    rows = np.array([2, 0, 1, 1])
    draws = np.array([draw_captions(captions, rows, seed=0, epoch=epoch) for epoch in range(2000)])
    assert (captions.caption_owner[draws] == rows).all()
    counts = Counter(draws[:, 0].tolist())
    assert set(counts) == {3, 5, 6, 7, 9}
    assert all(abs(count - 400) < 4 * 18 for count in counts.values()), "uniform within 4 deviations"
    assert (draws[:, 2] == draws[:, 3]).all(), "the draw depends on the row, not on its place"
    again = draw_captions(captions, rows[::-1], seed=0, epoch=7)
    assert again[::-1].tolist() == draws[7].tolist()


def test_several_drawn_captions_differ_are_uniform_and_begin_with_the_one() -> None:
    captions = Captions([0, 0, 0, 0, 0, 1, 2, 2], 3)
    rows = np.array([0, 1, 2])
    draws = np.array([draw_captions(captions, rows, seed=0, epoch=epoch, count=3) for epoch in range(1000)])
    assert draws.shape == (1000, 3, 3) and (captions.caption_owner[draws] == rows[:, None]).all()
    alone = [draw_captions(captions, rows, seed=0, epoch=epoch).tolist() for epoch in range(50)]
    assert draws[:50, :, 0].tolist() == alone
    assert all(len(set(drawn)) == 3 for drawn in draws[:, 0].tolist()), "without repetition as long as there are any"
    pairs = Counter(tuple(drawn[:2]) for drawn in draws[:, 0].tolist())
    assert len(pairs) == 20 and all(abs(count - 50) < 4.5 * 7 for count in pairs.values()), (
        "uniform within 4.5 deviations"
    )
    assert (draws[:, 1] == 5).all(), "one caption comes again"
    assert (draws[:, 2, 0] == draws[:, 2, 2]).all() and (draws[:, 2, 0] != draws[:, 2, 1]).all(), "two come round"


def test_an_image_without_captions_cannot_draw() -> None:
    with pytest.raises(ValueError, match="image row 1 has no caption to draw"):
        draw_captions(Captions([0, 2], 3), [0, 1], seed=0, epoch=0)
    with pytest.raises(ValueError, match="image row 1 has no caption; 1 of the 2 rows have none"):
        Captions([0, 2], 3).first_captions([0, 1])


def test_with_a_buffer_an_image_stays_near_its_shard() -> None:
    """Every image once; no further than the buffer from its place in the stream; shards and images drawn each epoch."""
    shards, drawn = np.repeat(np.arange(40), 25), []
    for epoch in (0, 1):
        batches = epoch_batches(np.arange(1000), 10, seed=0, epoch=epoch, shards=shards, buffer=60)
        drawn.append(np.concatenate(batches))
        assert sorted(drawn[-1].tolist()) == list(range(1000))
        stream = np.argsort(np.lexsort((np.arange(1000), hash_draws(shards, 0, epoch, SHARD_ORDER))))
        moved = np.arange(1000) - stream[drawn[-1]]
        assert -60 <= moved.min() < -30 and 30 < moved.max() <= 60
    assert drawn[0].tolist() != drawn[1].tolist()
    free = np.concatenate(epoch_batches(np.arange(1000), 10, seed=0, epoch=0))
    assert np.concatenate(epoch_batches(np.arange(1000), 10, seed=0, epoch=0, shards=shards)).tolist() == free.tolist()
