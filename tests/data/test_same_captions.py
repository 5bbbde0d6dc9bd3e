"""Which captions are one text."""

from __future__ import annotations

import pytest
from varalign.data.same_captions import normalised, numbered


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A dog .", "a  dog"),
        ("A dog.", " a dog "),
        ("Cafe\u0301 au lait", "CAFÉ AU LAIT."),
        ("STRASSE", "straße"),
        ("一只狗。", "一只狗"),
        ("a\u00a0dog", "a dog"),
        ("\u0130", "i\u0307"),
    ],
)
def test_case_spaces_unicode_and_the_final_stop_do_not_matter(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


def test_other_signs_and_words_do() -> None:
    texts = ["a dog", "a dog!", "a dog, running", "A Dog.", "a. dog", "", "."]
    assert numbered(texts).tolist() == [0, 1, 2, 0, 4, 5, 5]
