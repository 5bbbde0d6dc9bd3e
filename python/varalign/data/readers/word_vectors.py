"""Pretrained word vectors in a text file (GloVe, word2vec, fastText): a word a line and its numbers, spaces between.

word2vec's text form and fastText's `.vec` begin with a line of two numbers, how many words and dimensions there are.

V words asked for, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from varalign.data.errors import DataError, shown
from varalign.data.files import open_user_file, readable

_HOLDS = "a word and its numbers a line, with spaces between, as GloVe, word2vec's text form and fastText's .vec have"
_PACKED = {b"\x1f\x8b": "gzip", b"PK": "zip"}
MOST_DIMENSIONS = 4096


@dataclass(frozen=True)
class WordVectors:
    """Vectors of some words.

    Attributes:
        vectors: (V, D) float32, 0 for a word that the file lacks.
        found: (V,) whether the file has the word.
    """

    vectors: NDArray[np.float32]
    found: NDArray[np.bool_]


def read_word_vectors(path: Path, words: Sequence[str]) -> WordVectors:
    """Read the vectors of some words; the file is read once, line by line, and only these are kept.

    A word is looked up as it is written. Words are lower-cased, the file's need not be: a word that it lacks takes the
    vector of the first one there that differs by its case alone.

    Args:
        path: the file, in UTF-8.
        words: V words, each once.

    Raises:
        DataError: the file is packed, binary, cut short or broken, or has none of the words; the message names the
            line.
    """
    rows = {word.encode(): row for row, word in enumerate(words)}
    with readable(path), open_user_file(path) as file:
        for magic, name in _PACKED.items():
            if file.peek(2)[: len(magic)] == magic:  # type: ignore[attr-defined]
                raise DataError(f"{path}: packed ({name}), and word vectors are read as text: unpack it first")
        taken = _Taken(path, rows)
        announced = taken.read(file)
    if announced is not None and taken.lines < announced:
        raise DataError(
            f"{path}: its first line announces {announced:,} words and {taken.lines:,} follow: the file is cut short, "
            "download it again"
        )
    if not taken.exact and not taken.other_case:
        raise DataError(
            f"{path}: none of the {len(words):,} words of the training captions is in it: these are vectors of another "
            "language, or of none"
        )
    vectors = np.zeros((len(words), taken.dimensions), np.float32)
    for row, vector in (taken.other_case | taken.exact).items():
        vectors[row] = vector
    found = np.zeros(len(words), np.bool_)
    found[[*taken.exact, *taken.other_case]] = True
    return WordVectors(vectors, found)


class _Taken:
    """The vectors taken from a file so far, by row."""

    def __init__(self, path: Path, rows: dict[bytes, int]) -> None:
        self.path, self.rows, self.dimensions, self.lines = path, rows, 0, 0
        self.exact: dict[int, NDArray[np.float32]] = {}
        self.other_case: dict[int, NDArray[np.float32]] = {}

    def read(self, lines: Iterable[bytes]) -> int | None:
        """Take all lines; returns how many words the first line announces, None where it does not."""
        announced = None
        for number, line in enumerate(lines, 1):
            line = line.strip(b" \t\r\n")
            if number == 1 and (header := _header(line)) is not None:
                announced, self.dimensions = header
            elif line:
                self._take(number, line)
        if not self.lines:
            raise DataError(f"{self.path}: no word in the file; it should hold {_HOLDS}")
        return announced

    def _take(self, number: int, line: bytes) -> None:
        self.lines += 1
        if not self.dimensions:
            self.dimensions = len(line.split()) - 1
            if not 1 < self.dimensions <= MOST_DIMENSIONS or b"\0" in line:
                raise self._wrong(number, f"not word vectors; it should hold {_HOLDS} (of a binary model, save these)")
        word, *numbers = line.rsplit(None, self.dimensions)  # from the right: a few words of GloVe hold spaces
        if len(numbers) < self.dimensions:
            raise self._wrong(number, f"{len(numbers)} numbers, wanted {self.dimensions} as in the first line")
        row = self.rows.get(word)
        into = self.exact
        if row is None:
            row, into = self.rows.get(word.decode(errors="replace").lower().encode()), self.other_case
        if row is None or row in into:
            return
        try:
            vector = np.array(numbers, dtype=np.float32)
        except ValueError:
            raise self._wrong(number, f"{shown(word.decode())} is followed by what is no number") from None
        if not np.isfinite(vector).all():
            raise self._wrong(number, f"the vector of {shown(word.decode())} holds NaN or infinity")
        into[row] = vector

    def _wrong(self, number: int, what: str) -> DataError:
        return DataError(f"{self.path} line {number}: {what}")


def _header(line: bytes) -> tuple[int, int] | None:
    """How many words and dimensions, of a first line of two whole numbers."""
    parts = line.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        return None
    words, dimensions = int(parts[0]), int(parts[1])
    return (words, dimensions) if 1 < dimensions <= MOST_DIMENSIONS else None
