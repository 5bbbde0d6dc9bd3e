"""Texts without images, from any file that holds some."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from varalign.data.errors import DataError
from varalign.data.readers.reading import Reading
from varalign.data.readers.texts import read_texts

KARPATHY = {"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A dog"}, {"raw": "A cat"}]}]}


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.txt", "A dog, running.\n\n  Two cats | one mouse\r\nimage, caption\n", None),
        ("a", "A dog", ["A dog"]),
        ("captions.txt", "image,caption\na.jpg,A dog, running\nb.jpg,A cat\n", ["A dog, running", "A cat"]),
        ("b.txt", "a.jpg,A dog\nb.jpg,A cat\n", ["A dog", "A cat"]),
        ("c.token.txt", "a.jpg#0\tA dog\na.jpg#1\tA cat\n", ["A dog", "A cat"]),
        ("d.csv", 'id,caption\n1,"A dog, running"\n2,\n3,A cat\n', ["A dog, running", "A cat"]),
        ("e.csv", 'text\n"A dog, running"\nA cat\n', ["A dog, running", "A cat"]),
        ("f.tsv", "title\tprice\nA dog\t3\nA cat\t4\n", ["A dog", "A cat"]),
        ("g.jsonl", '{"text": "A dog"}\n{"text": ["A cat", "One cat"]}\n', ["A dog", "A cat", "One cat"]),
        ("h.texts.jsonl", '"A dog"\n""\n"A \\u0063at"\n', ["A dog", "A cat"]),
        ("i.json", json.dumps(KARPATHY), ["A dog", "A cat"]),
        ("j.json", json.dumps([{"caption": "A dog", "split": "test"}]), ["A dog"]),
        ("k.json", json.dumps({"a.jpg": ["A dog", "A cat"]}), ["A dog", "A cat"]),
    ],
)
def test_texts_of_every_form(name: str, content: str, texts: list[str] | None, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode())
    wanted = ["A dog, running.", "Two cats | one mouse", "image, caption"] if texts is None else texts
    assert read_texts(tmp_path / name)[0] == wanted


def test_the_column_and_the_encoding_are_said(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes("id;Produkttext;price\n1;Gr\xfcner Hut;3\n".encode("latin-1"))
    texts, notes = read_texts(file, Reading(caption_column="Produkttext"))
    assert texts == ["Grüner Hut"] and any("Windows-1252" in note for note in notes)
    with pytest.raises(DataError, match=r"say which holds the captions \(--caption-column NAME\)"):
        read_texts(file)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "\n \n", "no text in the file; wanted a text a line"),
        ("a.txt", "", "no text in the file; wanted a text a line"),
        ("a.csv", "caption\n", "no caption in the file"),
        ("a.jsonl", '"A dog"\n{"a": 1}\n', "line 2: wanted a text"),
        ("a.jsonl", '""\n', "no text in the file"),
    ],
)
def test_what_holds_no_text_is_refused(name: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        read_texts(tmp_path / name)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises((DataError, OSError), match="none.txt"):
        read_texts(tmp_path / "none.txt")
