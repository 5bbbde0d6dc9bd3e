"""Captions files as text: their encoding is found out, and said where it is not UTF-8.

A file of up to `MAX_FILE_BYTES` is read whole. A larger one is read in blocks, line by line: it has to be UTF-8, or
UTF-16 from its beginning.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path

from varalign.data.errors import DataError
from varalign.data.files import MAX_FILE_BYTES, open_user_file, read_bytes
from varalign.data.waiting import waiting

MAX_LINE_BYTES = 1 << 16
_BLOCK = 1 << 22
_BEGINNING = 1 << 18
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
    _refuse_archive(path, data)
    text = _decoded(path, data, notes).removeprefix("\ufeff")
    nul = text.find("\0")
    if nul >= 0:
        raise _nul(path, _line_of(text[:nul].encode()))
    return text


def is_large(path: Path) -> bool:
    """Whether a file is read in blocks."""
    return path.is_file() and path.stat().st_size > MAX_FILE_BYTES


def beginning_of(path: Path) -> str:
    """The first characters of a large file, by which its form is known.

    Raises:
        DataError: as `lines_of`, or nothing is written there.
    """
    with open_user_file(path) as file:
        data = file.read(_BEGINNING)
    _refuse_archive(path, data)
    text = codecs.getincrementaldecoder(_encoding(data))("replace").decode(data).removeprefix("\ufeff")
    if not text.strip():
        raise DataError(f"{path}: its first {_BEGINNING:,} bytes hold no text; it is damaged or no captions file")
    return text


def lines_of(path: Path, notes: list[str]) -> Iterator[str]:
    """The lines of a large file without their ends, a block of it in memory at a time.

    Raises:
        DataError: naming the file and the line: of another encoding, a NUL character, or no end of a line in sight.
    """
    with open_user_file(path) as file, waiting(f"reading {path.name}, MiB", path.stat().st_size >> 20) as bar:
        encoding = _encoding(file.read(_SAMPLE))
        file.seek(0)
        if encoding != "utf-8":
            notes.append(f"{path.name}: the text is UTF-16")
        decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
        number, pending, block = 1, "", b"begin"
        while block:
            block = file.read(_BLOCK)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                before = decoder.decode(block[: max(0, error.start - len(error.object) + len(block))])
                raise DataError(
                    f"{path} line {number + before.count(chr(10))}: byte 0x{error.object[error.start]:02x} is not "
                    f"{encoding[:6].upper()}, as a file of more than {MAX_FILE_BYTES:,} bytes has to be; convert it: "
                    f"iconv -f ITS-ENCODING -t UTF-8 {path.name} > new.txt"
                ) from None
            text = pending + (text.removeprefix("\ufeff") if number == 1 and not pending else text)
            if (nul := text.find("\0")) >= 0:
                raise _nul(path, number + text.count("\n", 0, nul))
            *lines, pending = text.split("\n")
            number += len(lines)
            yield from lines
            bar.advance(len(block) >> 20)
            if len(pending) > MAX_LINE_BYTES:
                raise overlong(path, number, f"more than {MAX_LINE_BYTES:,} bytes long, the most that")
        yield pending


def overlong(path: Path, number: int, what: str) -> DataError:
    """The error for a line of more than `MAX_LINE_BYTES`."""
    return DataError(f"{path} line {number}: {what} a line may have; mend or remove it")


def _nul(path: Path, line: int) -> DataError:
    return DataError(f"{path} line {line}: a NUL character; the file is damaged or not a text: mend or remove the line")


def _refuse_archive(path: Path, data: bytes) -> None:
    if data[:4] == b"PK\x03\x04":
        what = "an Excel workbook; save it as CSV (UTF-8)" if path.suffix == ".xlsx" else "a compressed archive"
        raise DataError(f"{path}: {what}{'' if path.suffix == '.xlsx' else ', not a captions file; unpack it first'}")
    if data[:2] == b"\x1f\x8b":
        raise DataError(f"{path}: a compressed archive, not a captions file; unpack it first")


def _encoding(data: bytes) -> str:
    """That of a text which begins so: UTF-8 where it is not UTF-16."""
    return _UTF16.get(data[:2]) or _utf16_without_mark(data[:_SAMPLE]) or "utf-8"


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
