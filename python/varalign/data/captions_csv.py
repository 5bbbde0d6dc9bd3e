"""Captions as comma-separated values, in the forms that people have.

* A header (`image,caption`, in any order and with further columns) is used where there is one; without it the columns
  are image and caption.
* A caption with commas outside quotes is everything after the first comma, and a note counts those lines.
* A field may stand in quotes, with spaces before and after them; a quote inside is written "". A quoted caption may run
  over `MAX_QUOTED_LINES` lines, which become one line with spaces. A field that begins with a quoted word after a
  space (`a.jpg, "Stop" is written there`) is no quoted field: its quote marks are part of the caption.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from varalign.data.caption_file import CaptionFile, CaptionFormat, header_columns, numbered_lines
from varalign.data.errors import DataError, shown
from varalign.data.images import IMAGE_SUFFIXES

MAX_QUOTED_LINES = 200

_SUFFIX = rf"(?:{'|'.join(re.escape(suffix) for suffix in sorted(IMAGE_SUFFIXES))})"
_ROW_START = re.compile(rf'[ \t]*"?[^",]{{1,1000}}{_SUFFIX}"?\s*,', re.IGNORECASE)
_OTHER_DELIMITER = re.compile(
    rf'"?(?:[^,;|\t]{{1,1000}}{_SUFFIX}(?:#\d+)?|image(?:_name)?|caption)"?\s*([;|\t])', re.IGNORECASE
)
_DELIMITER_NAMES = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_OPENING = re.compile(r'([ \t]*)"')
_QUOTES = re.compile('"+')
_FIELD_END = re.compile(r"[ \t]*(?:(,)|\Z)")


def _read(path: Path, text: str) -> CaptionFile:
    notes: list[str] = []
    return CaptionFile.of_rows(path, _rows(path, text, notes), notes)


def _rows(path: Path, text: str, notes: list[str]) -> Iterator[tuple[int, str, str]]:
    columns, image, caption = 0, 0, 1
    bare_commas: list[int] = []
    for number, fields, record in _records(path, [line for _, line in numbered_lines(path, text)]):
        if not columns:
            _refuse_other_delimiter(path, number, record)
            header = header_columns(fields)
            if header:
                columns, (image, caption) = len(fields), header
                continue
            columns = 2
            if len(fields) < 2 or "." not in fields[0]:
                raise DataError(
                    f"{path} line {number}: wanted a header (image,caption) or a row (name.jpg,caption), got "
                    f"{shown(record)}"
                )
        if len(fields) > 2 and columns == 2 and image == 0 and '"' not in record:
            bare_commas.append(number)
            fields = record.split(",", 1)
        if len(fields) != columns:
            _refuse_other_delimiter(path, number, record)
            raise DataError(
                f"{path} line {number}: {len(fields)} columns where {columns} are wanted; put a caption that has "
                f'commas in quotes ("…"): {shown(record)}'
            )
        name = fields[image].strip()
        if not name:
            raise DataError(f"{path} line {number}: no image name: {shown(record)}; wanted name.jpg,caption")
        _refuse_other_delimiter(path, number, name)
        yield number, name, fields[caption].replace("\n", " ").strip()
    if bare_commas:
        notes.append(
            f"{path.name}: {len(bare_commas):,} lines have commas outside quotes (first: line {bare_commas[0]}); their "
            "caption is everything after the first comma"
        )


def _records(path: Path, lines: list[str]) -> Iterator[tuple[int, list[str], str]]:
    """(first line, fields, text) of each record that is not blank; a quoted field may span lines."""
    position = 0
    while position < len(lines):
        first, record = position, lines[position]
        position += 1
        if '"' not in record:
            if record.strip():
                yield first + 1, record.split(","), record
            continue
        fields: list[str] = []
        at = 0
        while at <= len(record):
            opening = _OPENING.match(record, at)
            closing = opening and _closing_quote(record, opening.end())
            while opening and not closing:
                following = lines[position] if position < len(lines) else None
                if following is None or _ROW_START.match(following):
                    raise DataError(
                        f'{path} line {first + 1}: a quote (") is opened and not closed; close it at the end of the '
                        'caption, and write a quote inside a quoted caption as ""'
                    )
                if position - first >= MAX_QUOTED_LINES:
                    raise DataError(
                        f"{path} line {first + 1}: a quoted caption runs over more than {MAX_QUOTED_LINES} lines; "
                        'close its quote ("), or write the caption on one line'
                    )
                start = len(record) + 1
                record += "\n" + following
                position += 1
                closing = _closing_quote(record, start)
            end = _FIELD_END.match(record, closing) if closing else None
            if opening and closing and end:
                fields.append(record[opening.end() : closing - 1].replace('""', '"'))
                at = end.end() if end[1] else len(record) + 1
                continue
            if opening and (not opening[1] or position > first + 1):
                raise DataError(
                    f'{path} line {first + 1}: a quote (") is closed in the middle of a caption; write a quote inside '
                    f'a quoted caption as "": {shown(record)}'
                )
            comma = record.find(",", at)
            fields.append(record[at : comma if comma >= 0 else None])
            at = comma + 1 if comma >= 0 else len(record) + 1
        yield first + 1, fields, record


def _closing_quote(record: str, start: int) -> int | None:
    """Where the quoted field that is open at `start` ends, its quote included: behind the first odd run of quotes."""
    runs = _QUOTES.finditer(record, start)
    return next((run.end() for run in runs if (run.end() - run.start()) % 2), None)


def _refuse_other_delimiter(path: Path, number: int, text: str) -> None:
    match = _OTHER_DELIMITER.match(text)
    if match:
        raise DataError(
            f"{path} line {number}: the columns are separated by {_DELIMITER_NAMES[match[1]]}; wanted commas "
            f"(name.jpg,caption): save the file as comma-separated values: {shown(text)}"
        )


CSV = CaptionFormat(files=("captions.txt", "captions.csv"), knows=lambda path, text: True, read=_read)
