"""Captions looked at one by one: words as the word tokenizer cuts them, captions in several splits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from varalign.data.checks.caption_check import check_captions
from varalign.data.datasets import ImageCaptions, load_dataset


@pytest.fixture(scope="module")
def data(image_folder: Path) -> ImageCaptions:
    return load_dataset(image_folder)


def with_captions(data: ImageCaptions, captions: list[str], rows: list[int]) -> ImageCaptions:
    return dataclasses.replace(data, captions=captions, caption_image_ids=np.array(rows))


@pytest.mark.parametrize(
    ("caption", "short"),
    [
        ("一只红狗在雪地里奔跑", False),
        ("远处有两只鸟", False),
        ("หมาวิ่งบนหาดทราย", False),
        ("犬が走る", False),
        ("狗", True),
        ("собака", True),
        ("dog", True),
        (". . .", True),
        ("two dogs", False),
        ("two bananas on a caption", False),
    ],
)
def test_words_are_counted_as_the_word_tokenizer_cuts_them(data: ImageCaptions, caption: str, short: bool) -> None:
    found = check_captions(with_captions(data, [caption], [0])).suspicious
    assert found == ([f"'000.jpg': {caption!r}: a word or less"] if short else [])


def test_scripts_that_the_word_tokenizer_does_not_cut_are_counted(data: ImageCaptions) -> None:
    captions = ["หมาวิ่งบนหาดทราย", "ดำ", "一只红狗在雪地里奔跑", "a dog runs", "หมาวิ่งบนหาดทราย สีดำ"]
    assert check_captions(with_captions(data, captions, [0] * 5)).uncut == {"Thai": 2}


def test_equal_captions_in_two_splits_are_counted(data: ImageCaptions) -> None:
    """Rows 0 to 59 are for training, 60 to 69 dev, 70 to 79 test."""
    captions = ["Two dogs run .", "two dogs  run", "TWO DOGS RUN", "a cat", "A cat.", "a bird", "a bird"]
    report = check_captions(with_captions(data, captions, [0, 61, 71, 1, 72, 5, 5]))
    assert report.repeated == {"two dogs run": 3, "a cat": 2}
    assert report.across == {"train and dev": 1, "train and test": 2, "dev and test": 1}


@pytest.mark.parametrize(
    ("caption", "why"),
    [
        ("a BROKEN , Image", "says that something went wrong"),
        ("No  caption", "says that something went wrong"),
        ("- N/A -", "says that something went wrong"),
        ("a dog\x07 runs", "holds control characters"),
        ("see HTTP://a.b c d", "holds a web address"),
    ],
)
def test_captions_that_say_too_little(data: ImageCaptions, caption: str, why: str) -> None:
    (found,) = check_captions(with_captions(data, [caption], [0])).suspicious
    assert found.endswith(f": {why}")
