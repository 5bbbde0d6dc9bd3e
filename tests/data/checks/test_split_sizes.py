"""What is said of the sizes of splits."""

from __future__ import annotations

import numpy as np
import pytest
from varalign.data.checks.split_sizes import split_sizes
from varalign.data.features import FeatureSet


@pytest.mark.parametrize(
    ("sizes", "lines"),
    [
        (
            (1200, 100, 25),
            [
                "train: 1,200 images, 2,400 captions",
                "dev: 100 images, 200 captions, so a recall near 50 % is known to ±9.8 points",
                "test: 25 images, 50 captions, so a recall near 50 % is known to ±19.6 points (few: wanted at least "
                "30)",
            ],
        ),
        (
            (40, 0, 0),
            [
                "train: 40 images, 80 captions (few: wanted at least 50)",
                "dev: 0 images, 0 captions (few: wanted at least 30)",
                "test: 0 images, 0 captions (few: wanted at least 30)",
            ],
        ),
    ],
)
def test_each_split_with_its_texts_and_how_well_a_recall_is_known(sizes: tuple[int, ...], lines: list[str]) -> None:
    split = np.repeat([0, 1, 2, -1], [*sizes, 3]).astype(np.int8)
    owner = np.repeat(np.arange(len(split)), 2)
    features = np.zeros((len(split), 1), np.float32)
    data = FeatureSet(features, features[owner], owner, split, np.arange(len(split)))
    assert split_sizes(data) == lines
