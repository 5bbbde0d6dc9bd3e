"""Flickr8k's own form of captions: lines `name.jpg#0<TAB>caption`."""

from __future__ import annotations

import re

from varalign.data.errors import DataError, shown
from varalign.data.readers.caption_file import (
    CaptionFile,
    CaptionFormat,
    CaptionSource,
    Pairs,
    first_line,
)
from varalign.data.readers.columns import Columns

_LINE = re.compile(r"([^\t]*)#(\d{1,9})[ ]*\t(.*)", re.DOTALL)


def _read(source: CaptionSource) -> CaptionFile:
    path = source.path
    pairs = Pairs(source, Columns("", "", None))
    for number, line in source.lines():
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
        pairs.add(number, "", name, match[3].strip())
    return pairs.done("Flickr8k's token form")


TOKEN = CaptionFormat(
    files=("Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt", "results_20130124.token"),
    knows=lambda source: _LINE.fullmatch(first_line(source.beginning)) is not None,
    read=_read,
    suffixes=(".token",),
)
