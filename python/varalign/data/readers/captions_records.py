"""Captions as JSON lines, an object a line, and what they share with lists of records in other files.

A record has a text that names the image and one or several captions, under the names of
`varalign.data.readers.columns`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from varalign.data.errors import DataError, shown
from varalign.data.json_file import load_json
from varalign.data.readers.caption_file import (
    CaptionFile,
    CaptionFormat,
    CaptionSource,
    Pairs,
    checked_text,
    first_line,
    one_line,
)
from varalign.data.readers.columns import OtherColumns, require_columns

_LONGEST_FIRST_LINE = 1 << 16


def read_records(source: CaptionSource, records: Iterable[tuple[int, str, Any]], form: str) -> CaptionFile:
    """Read (line, where, record) for each record; the first one's keys say which are read.

    Raises:
        DataError: naming the file and the record.
    """
    path = source.path
    pairs: Pairs | None = None
    for line, where, record in records:
        if not isinstance(record, dict):
            raise DataError(f"{path} {where}: wanted an object with an image and a caption, got {shown(repr(record))}")
        if pairs is None:
            columns = require_columns(f"{path} {where}", list(record), source.reading)
            pairs = Pairs(source, columns)
            others = OtherColumns(path, list(record), columns, source.notes)
        for key in columns[:2]:
            if key not in record:
                raise DataError(f"{path} {where}: no {shown(key)}, which the first record has")
        name = where if columns.image == columns.caption else record[columns.image]
        name = checked_text(path, f"{where}.{columns.image}", str(name) if type(name) is int else name)
        word = record.get(columns.split) if columns.split is not None else None
        word = "" if word is None else checked_text(path, f"{where}.{columns.split}", word)
        others.row(record)
        pairs.add(line, where, name, captions_of(source, f"{where}.{columns.caption}", record[columns.caption]), word)
    if pairs is None:
        raise DataError(f"{path}: no caption in the file; wanted records with an image and a caption")
    others.check()
    return pairs.done(form)


def captions_of(source: CaptionSource, where: str, value: Any) -> str | list[str]:
    """The caption, or captions, of a record; an empty one where there is none."""
    if isinstance(value, list):
        return [one_line(checked_text(source.path, f"{where}[{k}]", text)) for k, text in enumerate(value)]
    return "" if value is None else one_line(checked_text(source.path, where, value))


def _lines(source: CaptionSource) -> Iterator[tuple[int, str, Any]]:
    for number, line in source.lines():
        if line.strip():
            yield number, f"line {number}", load_json(source.path, line, f" line {number}")


def _knows(source: CaptionSource) -> bool:
    text = source.beginning
    first = first_line(text)
    if not first.lstrip().startswith("{") or len(first) > _LONGEST_FIRST_LINE:
        return False
    if source.path.suffix.lower() in JSON_LINES.suffixes:
        return True
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return bool(first_line(text[text.index(first) + len(first) :]))


JSON_LINES = CaptionFormat(
    files=("captions.jsonl", "metadata.jsonl"),
    knows=_knows,
    read=lambda source: read_records(source, _lines(source), "JSON lines"),
    suffixes=(".jsonl", ".ndjson"),
)
