"""Ids of a batch against the relation written out: a text belongs to the images that have all of its captions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from varalign.data.features import FeatureSet
from varalign.data.pair_ids import pair_ids


def data_of(owner: list[int], texts: list[str], image_ids: np.ndarray | None = None) -> FeatureSet:
    images = max(owner) + 1
    ids = np.arange(images) if image_ids is None else image_ids
    x, y = (np.ones((count, 2), np.float32) for count in (images, len(owner)))
    return FeatureSet(x, y, np.array(owner), np.zeros(images, np.int8), ids, texts=texts)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_equals_the_relation_written_out(seed: int, copies: bool) -> None:
    draw = np.random.default_rng(seed)
    images = int(draw.integers(2, 9))
    owner = draw.permutation(np.concatenate([np.arange(images), draw.integers(0, images, draw.integers(0, 17))]))
    texts = [chr(97 + letter) for letter in draw.integers(0, draw.integers(1, 14), len(owner))]
    ids = draw.integers(0, images, images) if copies else np.arange(images)
    data = data_of(owner.tolist(), texts, ids)
    rows = draw.permutation(images)
    rows = rows[np.sort(np.unique(ids[rows], return_index=True)[1])][: draw.integers(1, images + 1)]
    each = int(draw.integers(1, 4))
    batch = [draw.choice(np.flatnonzero(owner == row), each) for row in rows for _ in range(draw.integers(1, 3))]
    stands = [{texts[c] for c in range(len(owner)) if ids[owner[c]] == ids[row]} for row in rows]
    wanted = np.array([[{texts[c] for c in drawn} <= there for drawn in batch] for there in stands])
    found = pair_ids(data, rows, np.array(batch)[:, 0] if each == 1 else np.array(batch))
    if found is None:
        assert np.array_equal(wanted, ids[rows][:, None] == ids[owner[np.array(batch)[:, 0]]][None])
    else:
        equal = found.images.reshape(len(rows), -1, 1) == found.texts
        assert np.array_equal(equal.sum(axis=1), wanted), "each pair once"
        assert len(np.unique(found.images[found.images < 0])) == (found.images < 0).sum(), "no id fills up twice"
    assert pair_ids(replace(data, same_caption="distinct"), rows, np.array(batch)) is None


def test_one_id_is_enough_where_images_have_the_same_texts() -> None:
    labels = data_of([0, 1, 2, 3], ["cat", "dog", "Cat.", "dog"])
    found = pair_ids(labels, [0, 1, 2, 3], [0, 1, 2, 3])
    assert found is not None and found.images.ndim == 1
    assert (found.images[:, None] == found.texts).tolist() == [
        [True, False, True, False],
        [False, True, False, True],
    ] * 2
    several = data_of([0, 0, 1, 1, 2], ["cat", "a cat", "cat", "pet", "dog"])
    found = pair_ids(several, [0, 1, 2], [0, 1, 2, 3, 4])
    assert found is not None and found.images.shape == (3, 2)


@pytest.mark.parametrize("mode", ["positive", "distinct"])
def test_candidates_are_texts_or_captions(mode: str) -> None:
    """Captions of images 0 1 0 2 1 0: cat, dog, cat, Dog., bird, fish; image 3 is a copy of 2, with another bird."""
    data = data_of([0, 1, 0, 2, 1, 0, 3], ["cat", "dog", "cat", "Dog.", "bird", "fish", "bird"], np.array([0, 1, 2, 2]))
    found = replace(data, same_caption=mode).candidates([1, 0, 2, 3])
    assert found.rows.tolist() == [1, 0, 2]
    if mode == "positive":
        assert found.captions.tolist() == [1, 4, 0, 5] and found.owner.tolist() == [0, 0, 1, 1]
        assert found.pairs.tolist() == [[0, 0], [0, 2], [1, 0], [1, 2], [2, 1], [3, 1]]
        assert found.first.tolist() == [[0, 0], [1, 2], [2, 0]]
    else:
        assert found.captions.tolist() == [1, 4, 0, 2, 5, 3, 6] and found.owner.tolist() == [0, 0, 1, 1, 1, 2, 2]
        assert found.pairs.tolist() == [[j, i] for j, i in enumerate(found.owner.tolist())]
        assert found.first.tolist() == [[0, 0], [1, 2], [2, 5]]


def test_a_sentence_that_an_image_has_twice_is_drawn_as_one() -> None:
    data = data_of([0, 0, 0, 1], ["a cat", "A cat.", "a pet", "a cat"])
    assert [part.tolist() for part in data.drawn_captions] == [[0, 2, 3], [0, 2, 3]]
    order, offsets = replace(data, same_caption="distinct").drawn_captions
    assert order.tolist() == [0, 1, 2, 3] and offsets.tolist() == [0, 3, 4]
