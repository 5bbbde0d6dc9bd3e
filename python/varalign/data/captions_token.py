"""Flickr8k's own form of captions: lines `name.jpg#0<TAB>caption`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from varalign.data.caption_file import CaptionFile, CaptionFormat, first_line, numbered_lines
from varalign.data.errors import DataError, shown

_LINE = re.compile(r"([^\t]*)#(\d{1,9})[ ]*\t(.*)", re.DOTALL)


def _rows(path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    for number, line in numbered_lines(path, text):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise DataError(
                f"{path} line {number}: wanted 'name.jpg#0<TAB>caption' as in the lines above, got {shown(line)}"
            )
        name = match[1].strip()
        if not name:
            raise DataError(f"{path} line {number}: no image name before '#'; wanted 'name.jpg#0<TAB>caption'")
        yield number, name, match[3].strip()


TOKEN = CaptionFormat(
    files=("Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt"),
    knows=lambda path, text: _LINE.fullmatch(first_line(text)) is not None,
    read=lambda path, text: CaptionFile.of_rows(path, _rows(path, text), []),
)
