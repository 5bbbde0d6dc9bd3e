"""What sets one kind of tokenizer apart from another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varalign.data.files import open_user_file


@dataclass(frozen=True)
class TokenizerKind:
    """A kind of tokenizer.

    name: how a saved tokenizer names it. core: makes the compiled part of a vocabulary's text, one entry a line, and
    options. file: name of the vocabulary's file. read: the text of such a file; OSError or ValueError where it is none.
    written: a file's bytes of that text. words: repairs a text that the compiled part leaves and cuts it into words;
    None where nothing can be repaired.
    """

    name: str
    core: Callable[..., Any]
    file: str
    read: Callable[[Path], str]
    written: Callable[[str], bytes]
    words: Callable[[str], list[str]] | None = None


def read_file(path: Path) -> bytes:
    """The bytes of a vocabulary's file; OSError where it cannot be read, DataError where it is no regular file."""
    with open_user_file(path) as file:
        return file.read()


def read_text(path: Path) -> str:
    """The same as text; ValueError where it is not UTF-8."""
    try:
        return read_file(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error})") from error
