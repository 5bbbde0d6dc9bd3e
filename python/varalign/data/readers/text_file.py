"""Captions files as text: their encoding is found out, and said where it is not UTF-8."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from varalign.data.errors import DataError
from varalign.data.files import MAX_FILE_BYTES, read_bytes

_SAMPLE = 1 << 12
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_MOST_ODD = 0.3
"""Share of bytes beyond ASCII from which on a text is not taken for Windows-1252: few European texts have a tenth, and
Cyrillic or Chinese in their own encodings have more than half."""


def read_text(path: Path, notes: list[str]) -> str:
    """The text of a file in UTF-8, UTF-16 or, where nothing else fits, Windows-1252; a note says which.

    Raises:
        DataError: naming the file and, where one is at fault, the line.
    """
    data = read_bytes(path, MAX_FILE_BYTES)
    if data[:4] == b"PK\x03\x04":
        what = "an Excel workbook; save it as CSV (UTF-8)" if path.suffix == ".xlsx" else "a compressed archive"
        raise DataError(f"{path}: {what}{'' if path.suffix == '.xlsx' else ', not a captions file; unpack it first'}")
    if data[:2] == b"\x1f\x8b":
        raise DataError(f"{path}: a compressed archive, not a captions file; unpack it first")
    text = _decoded(path, data, notes).removeprefix("\ufeff")
    nul = text.find("\0")
    if nul >= 0:
        line = _line_of(text[:nul].encode())
        raise DataError(
            f"{path} line {line}: a NUL character; the file is damaged or not a text: mend or remove the line"
        )
    return text


def _decoded(path: Path, data: bytes, notes: list[str]) -> str:
    utf16 = _UTF16.get(data[:2]) or _utf16_without_mark(data[:_SAMPLE])
    if utf16 is not None:
        try:
            text = data.decode(utf16)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: byte {error.start} is not UTF-16, as the file begins; save it as UTF-8") from None
        notes.append(f"{path.name}: the text is UTF-16")
        return text
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = error
    before, around = data[: wrong.start], data[max(0, wrong.start - _SAMPLE) : wrong.start + _SAMPLE]
    few_odd = len(_BEYOND_ASCII.findall(around)) < _MOST_ODD * len(around)
    if wrong.reason != "unexpected end of data" and few_odd and not _damaged_utf8(data):
        try:
            text = data.decode("cp1252")
            notes.append(f"{path.name}: the text is not UTF-8 and was read as Windows-1252 (Latin-1)")
            return text
        except UnicodeDecodeError:
            pass
    raise DataError(
        f"{path} line {_line_of(before)}: byte 0x{data[wrong.start]:02x} is not UTF-8, and the text is not "
        f"Windows-1252 either; convert it: iconv -f ITS-ENCODING -t UTF-8 {path.name} > new.txt"
    ) from None


def _damaged_utf8(data: bytes) -> bool:
    """Whether more letters beyond ASCII are UTF-8 than are not."""
    text = data.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    return sum(map(len, re.findall(r"[^\x00-\x7f\ufffd]+", text))) >= bad


def _utf16_without_mark(data: bytes) -> str | None:
    """UTF-16 of mostly Latin letters without a byte-order mark has a zero in every second byte."""
    for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros, others = data[first::2].count(0), data[1 - first :: 2].count(0)
        if zeros >= 8 and zeros > 0.6 * (len(data) // 2) and not others:
            return name
    return None


def _line_of(before: bytes) -> int:
    return 1 + before.replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n")
