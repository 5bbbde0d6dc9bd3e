"""Word vectors of text files: the three forms, and what is wrong with broken ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from varalign.data.errors import DataError
from varalign.data.readers.word_vectors import read_word_vectors

GLOVE = "the 1 2 3\ndog -0.5 0 1e-1\n. . . 7 7 7\nDog 9 9 9\nCat 4 5 6\n"


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "vectors.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("text", [GLOVE, "5 3\n" + GLOVE, GLOVE.replace("\n", " \r\n")], ids=["glove", "vec", "crlf"])
def test_vectors_of_the_words_asked_for(tmp_path: Path, text: str) -> None:
    found = read_word_vectors(written(tmp_path, text), ["dog", "snow", "cat"])
    assert found.found.tolist() == [True, False, True]  # "cat" is there as "Cat"
    expected = np.array([[-0.5, 0, 0.1], [0, 0, 0], [4, 5, 6]], np.float32)
    np.testing.assert_array_equal(found.vectors, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no word in the file"),
        ("a b.jpg\n", "line 1: not word vectors"),
        ("dog 1 2 3\ncat 1 2\n", "line 2: 2 numbers, wanted 3 as in the first line"),
        ("dog 1 2 x\n", "line 1: 'dog' is followed by what is no number"),
        ("dog 1 2 nan\n", "line 1: the vector of 'dog' holds NaN or infinity"),
        ("9 3\n" + GLOVE, "announces 9 words and 5 follow: the file is cut short"),
        ("hund 1 2 3\n", "none of the 2 words"),
        (b"\x1f\x8b\x08\x00", "packed .gzip., and word vectors are read as text: unpack it first"),
        (b"2 3\ndog \x00\x80\x81\x12\xff\x00\n\n", "line 2: "),
    ],
    ids=["empty", "captions", "short", "letters", "nan", "cut", "language", "gzip", "binary"],
)
def test_broken_files_are_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DataError, match=f"(?s){path}.*{message}"):
        read_word_vectors(path, ["dog", "cat"])
