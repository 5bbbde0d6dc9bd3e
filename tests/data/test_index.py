"""Which captions belong to which image, and what the splits lack."""

from __future__ import annotations

import numpy as np
from varalign.data.features import FeatureSet
from varalign.data.index import first_of_each


def small(split: list[int]) -> FeatureSet:
    images = len(split)
    owner = np.array([0, 1, 0, 2, 1, *range(3, images)])
    ones = np.ones((len(owner), 2), np.float32)
    return FeatureSet(ones[:images], ones, owner, np.array(split, np.int8), np.arange(images))


def test_first_of_each_agrees_with_first_captions() -> None:
    data = small([0, 0, 1, 2])
    rows = np.array([2, 0, 1])
    captions = data.caption_rows(rows)
    owner = np.repeat(np.arange(3), [1, 2, 2])
    assert captions[first_of_each(owner)].tolist() == data.first_captions(rows).tolist() == [3, 0, 1]
    assert first_of_each(np.array([0, 0, 1, 1])).tolist() == [0, 2]


def test_what_training_lacks_is_named_for_each_split() -> None:
    assert small([0, 0, 1, 2]).lacking() == []
    mend = "give some of its rows another `split`: 0 train, 1 dev, 2 test"
    assert small([0, 1, 1, -1]).lacking() == [
        f"the train split has 1 images; training needs at least 2; {mend}",
        f"the test split has 0 images; training needs at least 1; {mend}",
    ]


def test_copies_of_an_image_are_one_candidate_with_all_their_captions() -> None:
    """Image row 4 is a copy of 1, 5 one of 2; captions 0 to 6 belong to rows 1, 4, 2, 0, 4, 5, 2."""
    owner = np.array([1, 4, 2, 0, 4, 5, 2])
    ones = np.ones((7, 2), np.float32)
    data = FeatureSet(ones[:6], ones, owner, np.zeros(6, np.int8), np.array([7, 3, 5, 9, 3, 5]))
    found = data.candidates([4, 0, 2, 1, 5])
    assert found.places.tolist() == [0, 1, 2] and found.rows.tolist() == [4, 0, 2]
    assert found.captions.tolist() == [1, 4, 0, 3, 2, 6, 5]
    assert found.owner.tolist() == [0, 0, 0, 1, 2, 2, 2]
