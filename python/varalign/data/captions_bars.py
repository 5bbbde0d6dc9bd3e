"""Flickr30k's form of captions, `results.csv`: a header `image_name| comment_number| comment`, columns between bars.

Quote marks mean nothing, and a caption may hold bars. A row of Flickr30k's own file lacks the bar after the number
(`2199200615.jpg| 4   A dog runs …`): such a row is read, and a note counts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from varalign.data.caption_file import CaptionFile, CaptionFormat, first_line, header_columns, numbered_lines
from varalign.data.errors import DataError, first_three, shown

_NUMBER_AND_CAPTION = re.compile(r"\s*\d{1,9}\s+(\S.*)")


def _read(path: Path, text: str) -> CaptionFile:
    notes: list[str] = []
    return CaptionFile.of_rows(path, _rows(path, text, notes), notes)


def _rows(path: Path, text: str, notes: list[str]) -> Iterator[tuple[int, str, str]]:
    lines = [(number, line) for number, line in numbered_lines(path, text) if line.strip()]
    header = lines[0][1].split("|")
    image, caption = header_columns(header) or (0, 0)
    last = len(header) - 1
    mended: list[str] = []
    for number, line in lines[1:]:
        fields = line.split("|", last)
        joined = _NUMBER_AND_CAPTION.fullmatch(fields[-1]) if len(fields) == last and caption == last else None
        if joined:
            fields += [joined[1]]
            mended.append(f"line {number}")
        if len(fields) <= last:
            raise DataError(f"{path} line {number}: {len(fields)} columns where {last + 1} are wanted: {shown(line)}")
        name = fields[image].strip()
        if not name:
            raise DataError(f"{path} line {number}: no image name: {shown(line)}")
        yield number, name, fields[caption].strip()
    if mended:
        notes.append(
            f"{path.name}: {len(mended):,} rows lack the bar before the caption ({first_three(mended)}); the caption "
            "is what follows the number"
        )


BARS = CaptionFormat(
    files=("results.csv",), knows=lambda path, text: header_columns(first_line(text).split("|")) is not None, read=_read
)
