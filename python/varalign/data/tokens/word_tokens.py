"""Whole words from the training captions: lower-cased, cut at white space and punctuation, punctuation dropped."""

from __future__ import annotations

from varalign._core import CaptionTokenizer
from varalign.data.tokens.tokenizer_kind import TokenizerKind, read_text

WORDS = TokenizerKind(
    "words",
    CaptionTokenizer.words,
    file="words.txt",
    read=lambda path: read_text(path).removesuffix("\n"),
    written=lambda vocabulary: f"{vocabulary}\n".encode() if vocabulary else b"",
)
