"""Which captions of a data set are one text: those that are equal but for case, spaces and the final stop."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SameCaption = Literal["positive", "distinct"]

_STOPS = " .。．｡।۔"  # the full stops of Latin, Chinese and Japanese, Hindi and Urdu


def normalised(caption: str) -> str:
    """The caption in lower case and Unicode's form NFC, with single spaces and without a final stop."""
    if caption.isascii():
        return " ".join(caption.lower().split()).rstrip(_STOPS)
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", caption).casefold())
    return " ".join(folded.split()).rstrip(_STOPS)


def numbered(captions: Iterable[str]) -> NDArray[np.int64]:
    """(T,): for each caption the place of the first one that is equal to it after `normalised`."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(normalised(caption), place) for place, caption in enumerate(captions)], np.int64)
