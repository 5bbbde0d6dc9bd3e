"""Captions as delimited text: columns between commas, tabs, semicolons or vertical bars, in the forms that people have.

* The separator is the one under which the first line is a header with a column of images and one of captions, in any
  order and beside further columns; or, without a header, the one behind the name of the first image.
* A caption that holds separators outside quotes is everything after the first one where there are two columns, and a
  note counts those lines.
* A field may stand in quotes, with spaces before and after them; a quote inside is written "". A quoted caption may run
  over `MAX_QUOTED_LINES` lines, which become one line with spaces. A field that begins with a quoted word after a
  space (`a.jpg, "Stop" is written there`) is no quoted field: its quote marks are part of the caption.
* A field may be a list of captions as JSON or Python write it: `["A dog .", "One dog ."]`.
* Flickr30k's `results.csv` has the header `image_name| comment_number| comment`. Quote marks mean nothing in it, and a
  caption may hold bars. A row of the public file lacks the bar after the number (`2199200615.jpg| 4   A dog runs …`):
  such a row is read, and a note counts them.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from varalign.data.errors import DataError, first_three, shown
from varalign.data.images import IMAGE_SUFFIXES
from varalign.data.readers.caption_file import (
    CaptionFile,
    CaptionFormat,
    CaptionSource,
    Pairs,
    first_line,
)
from varalign.data.readers.columns import UNREACHABLE, Columns, OtherColumns, find_columns, refuse_columns
from varalign.data.readers.reading import SEPARATORS

MAX_QUOTED_LINES = 200
_NAMES = {character: name for name, character in SEPARATORS.items()}
_SUFFIX = rf"(?:{'|'.join(re.escape(suffix) for suffix in sorted(IMAGE_SUFFIXES))})"
_NAME_FIRST = re.compile(rf'[ \t]*"?[^",;|\t]{{1,1000}}{_SUFFIX}(?:#\d+)?"?[ ]*([,;|\t])', re.IGNORECASE)
_NUMBER_AND_CAPTION = re.compile(r"\s*\d{1,9}\s+(\S.*)")
_ADDRESS = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True)
class Dialect:
    """How fields are separated. separator: one character. quotes: whether a field in quote marks is one field."""

    separator: str
    quotes: bool = True

    @property
    def _space(self) -> str:
        return " *" if self.separator == "\t" else r"[ \t]*"

    @cached_property
    def opening(self) -> re.Pattern[str]:
        """Spaces (group 1) and the quote mark that opens a field."""
        return re.compile(f'({self._space})"')

    @cached_property
    def field_end(self) -> re.Pattern[str]:
        """What may follow the quote mark that closes a field; group 1 is the separator."""
        return re.compile(rf"{self._space}(?:({re.escape(self.separator)})|\Z)")

    @cached_property
    def others(self) -> re.Pattern[str]:
        """Any of the other separators."""
        return re.compile("[" + "".join(re.escape(other) for other in _NAMES if other != self.separator) + "]")

    @cached_property
    def row_start(self) -> re.Pattern[str]:
        """The beginning of a row whose first column is an image name: no quoted caption goes on with one."""
        separator = re.escape(self.separator)
        name = rf'[^"{separator}]{{1,1000}}{_SUFFIX}'
        return re.compile(rf'[ \t]*(?:"{name}"|{name})\s*{separator}', re.IGNORECASE)


def _read(source: CaptionSource) -> CaptionFile:
    path = source.path
    lines = source.lines()
    first, header = next((number, line) for number, line in lines if line.strip())
    dialect, names = _dialect(source, first, header)
    columns = find_columns(names, source.reading) if names else Columns("", "", None)
    assert columns is not None
    if names:
        count, image, caption = len(names), names.index(columns.image), names.index(columns.caption)
        split = names.index(columns.split) if columns.split is not None else None
    else:
        count, image, caption, split = 2, 0, 1, None
    pairs, others = Pairs(source, columns), OtherColumns(path, names, columns, source.notes)
    bare: list[int] = []
    mended: list[str] = []
    looked_at: set[str] = set()  # an image has several rows, whose name is judged once
    for number, fields, record in _records(path, itertools.chain([(first, header)], lines), dialect):
        if names and number == first:
            continue
        if len(fields) > count and caption == count - 1 and _rest_is_caption(dialect, count, record):
            bare.append(number)
            fields = record.split(dialect.separator, count - 1)
        if len(fields) == count - 1 and caption == count - 1 and dialect.separator == "|":
            joined = _NUMBER_AND_CAPTION.fullmatch(fields[-1])
            if joined:
                fields = [*fields, joined[1]]
                mended.append(f"line {number}")
        if len(fields) != count:
            _refuse_other_separator(path, number, record, dialect)
            raise DataError(
                f"{path} line {number}: {len(fields)} columns where {count} are wanted; put a caption that has "
                f'{_NAMES[dialect.separator]}s in quotes ("…"): {shown(record)}'
            )
        name = fields[image].strip()
        if name not in looked_at:
            _refuse_other_separator(path, number, name, dialect)
            looked_at.add(name)
        word = fields[split] if split is not None else ""
        pairs.add(number, "", name, _captions(fields[caption]), word)
        if others.may_be_splits:
            others.row(dict(zip(names, fields, strict=False)))
    others.check()
    kind = _NAMES[dialect.separator]
    if bare:
        columns_end = kind if count == 2 else f"{count - 1} {kind}s"
        source.notes.append(
            f"{path.name}: {len(bare):,} lines have {kind}s outside quotes (first: line {bare[0]}); their caption is "
            f"everything after the first {columns_end}"
        )
    if mended:
        source.notes.append(
            f"{path.name}: {len(mended):,} rows lack the bar before the caption ({first_three(mended)}); the caption "
            "is what follows the number"
        )
    return pairs.done(f"{kind}-separated")


def _dialect(source: CaptionSource, number: int, first: str) -> tuple[Dialect, list[str]]:
    """The dialect that the first line shows, and the names of the columns: none where it is no header.

    Raises:
        DataError: it is neither a header with a column of images and one of captions nor a row.
    """
    path, reading = source.path, source.reading
    given = SEPARATORS[reading.separator] if reading.separator else None
    # Flickr30k's file has a space behind its bars and quote marks that mean nothing.
    dialects = [
        Dialect(separator, quotes=separator != "|" or "| " not in first)
        for separator in ([given] if given else SEPARATORS.values())
    ]
    headers = [([name.strip() for name in _first_fields(path, first, dialect)], dialect) for dialect in dialects]
    names, dialect = max(headers, key=lambda header: (find_columns(header[0], reading) is not None, len(header[0])))
    if find_columns(names, reading):
        return dialect, names
    row = _NAME_FIRST.match(first)
    if row and (given is None or given == row[1]):
        return next(dialect for dialect in dialects if dialect.separator == row[1]), []
    comma = next((names for names, dialect in headers if dialect.separator == (given or ",")), [])
    if any(_ADDRESS.match(name) for names, _ in headers for name in names):
        raise DataError(f"{path} line {number}: the file {UNREACHABLE}: {shown(first)}")
    asked = reading.image_column is not None or reading.caption_column is not None
    if len(comma) > 1 and "." in comma[0] and not asked:
        return Dialect(given or ","), []
    if len(names) > 1 and (asked or not any(character in first for character in ".!?")):
        raise refuse_columns(f"{path} line {number}", names, reading)
    raise DataError(
        f"{path} line {number}: wanted a header (image,caption) or a row (name.jpg,caption), got {shown(first)}"
    )


def names_images(source: CaptionSource) -> bool:
    """Whether the first line is a header with columns of images and captions, or begins with the name of an image."""
    first = first_line(source.beginning)
    headers = ([name.strip() for name in _first_fields(source.path, first, Dialect(c))] for c in SEPARATORS.values())
    return bool(_NAME_FIRST.match(first)) or any(find_columns(names, source.reading) for names in headers)


def _first_fields(path: Path, line: str, dialect: Dialect) -> list[str]:
    try:
        return next(_records(path, [(1, line)], dialect))[1]
    except DataError:  # under this separator a quote is not closed
        return [line]


def _rest_is_caption(dialect: Dialect, count: int, record: str) -> bool:
    """Whether the last column may hold separators: which of them are the columns' own is then clear."""
    return not dialect.quotes or (count == 2 and '"' not in record)


def _captions(field: str) -> str | list[str]:
    caption = field.replace("\n", " ").strip()
    if caption.startswith("[") and caption.startswith(("['", '["')) and caption.endswith(("']", '"]')):
        try:
            found = ast.literal_eval(caption)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return caption
        if isinstance(found, list) and all(isinstance(item, str) for item in found):
            return [item.strip() for item in found]
    return caption


def _records(path: Path, lines: Iterable[tuple[int, str]], dialect: Dialect) -> Iterator[tuple[int, list[str], str]]:
    """(first line, fields, text) of each record that is not blank; a quoted field may span lines."""
    separator, lines = dialect.separator, iter(lines)
    for first, record in lines:
        if not dialect.quotes or '"' not in record:
            if record.strip():
                yield first, record.split(separator), record
            continue
        fields: list[str] = []
        at, last = 0, first
        while at <= len(record):
            opening = dialect.opening.match(record, at)
            closing = opening and _closing_quote(record, opening.end())
            while opening and not closing:
                last, following = next(lines, (last, None))
                if following is None or dialect.row_start.match(following):
                    raise DataError(
                        f'{path} line {first}: a quote (") is opened and not closed; close it at the end of the '
                        'caption, and write a quote inside a quoted caption as ""'
                    )
                if last - first >= MAX_QUOTED_LINES:
                    raise DataError(
                        f"{path} line {first}: a quoted caption runs over more than {MAX_QUOTED_LINES} lines; "
                        'close its quote ("), or write the caption on one line'
                    )
                start = len(record) + 1
                record += "\n" + following
                closing = _closing_quote(record, start)
            end = dialect.field_end.match(record, closing) if closing else None
            if opening and closing and end:
                fields.append(record[opening.end() : closing - 1].replace('""', '"'))
                at = end.end() if end[1] else len(record) + 1
                continue
            if opening and (not opening[1] or last > first):
                raise DataError(
                    f'{path} line {first}: a quote (") is closed in the middle of a caption; write a quote inside '
                    f'a quoted caption as "": {shown(record)}'
                )
            comma = record.find(separator, at)
            fields.append(record[at : comma if comma >= 0 else None])
            at = comma + 1 if comma >= 0 else len(record) + 1
        yield first, fields, record


def _closing_quote(record: str, start: int) -> int | None:
    """Where the quoted field that is open at `start` ends, its quote included: behind the first odd run of quotes."""
    at = record.find('"', start)
    while at >= 0:
        if not record.startswith('"', at + 1):
            return at + 1
        at = record.find('"', at + 2)
    return None


def _refuse_other_separator(path: Path, number: int, text: str, dialect: Dialect) -> None:
    if not dialect.others.search(text):
        return
    match = _NAME_FIRST.match(text)
    if match and match[1] != dialect.separator:
        raise DataError(
            f"{path} line {number}: the columns are separated by a {_NAMES[match[1]]}; wanted a "
            f"{_NAMES[dialect.separator]}, as in the lines above: {shown(text)}"
        )


DELIMITED = CaptionFormat(
    files=("captions.txt", "captions.csv", "captions.tsv"),
    knows=lambda source: True,
    read=_read,
    suffixes=(".csv", ".tsv"),
)
FLICKR30K = CaptionFormat(files=("results.csv", "metadata.csv", "metadata.tsv"), knows=lambda source: False, read=_read)
"""The names that are looked for after those of the JSON forms."""
