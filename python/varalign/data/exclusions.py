"""Pairs that a person struck: left out of training by `--exclude FILE`.

The file is a table with a header, as `varalign diagnose` writes it (`pairs.csv`) or anyone else: a pair is named by the
columns of the image and the caption, or by `caption_row` where the captions are not known. Every line is a pair to
leave out; with a column `exclude`, only the lines that have something other than 0, no and false there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from varalign.data.datasets import ImageCaptions
from varalign.data.errors import DataError, shown
from varalign.data.features import FeatureSet
from varalign.data.files import readable
from varalign.data.readers.caption_file import first_line
from varalign.data.readers.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, chosen_column
from varalign.data.readers.image_folder import Spellings
from varalign.data.readers.reading import SEPARATORS
from varalign.data.readers.text_file import read_text
from varalign.data.same_captions import normalised

MARK, ROW = "exclude", "caption_row"
_NOT_MARKED = {"", "0", "no", "false"}
_MEND = "name pairs as 'varalign diagnose' lists them, or remove the line"

Data = ImageCaptions | FeatureSet


class _Struck(NamedTuple):
    """A line of the file: its number, the image's name, the caption and its row; "" where a cell is empty."""

    line: int
    image: str
    caption: str
    row: str


def excluded_rows(data: Data, file: Path) -> NDArray[np.bool_]:
    """(T,) which captions' pairs the file names.

    Raises:
        DataError: the file is no such table, or a line names no pair of the data.
    """
    names = data.image_names or [str(row) for row in range(len(data.split))]
    image_rows, spellings = {name: row for row, name in enumerate(names)}, Spellings(names)
    texts = data.caption_texts
    by_text: dict[tuple[int, str], list[int]] = {}
    if texts is not None:
        for row, (owner, text) in enumerate(zip(data.caption_owner.tolist(), texts, strict=True)):
            by_text.setdefault((owner, normalised(text)), []).append(row)
    found = np.zeros(len(data.caption_owner), dtype=np.bool_)
    for struck in _read(file):
        where = f"--exclude {file} line {struck.line}"
        name = next((name for cell in _cells(struck.image) if (name := spellings.find(cell)) is not None), None)
        if name is None:
            raise DataError(f"{where}: the data have no image {shown(struck.image)}; {_MEND}")
        image = image_rows[name]
        if texts is not None and struck.caption:
            keys = [(image, normalised(cell)) for cell in _cells(struck.caption)]
            rows = next((by_text[key] for key in keys if key in by_text), None)
            if rows is None:
                raise DataError(f"{where}: image {shown(name)} has no caption {shown(struck.caption)}; {_MEND}")
        elif not struck.row:
            missing = f"the captions of these data are not known, and the column {ROW}" if texts is None else "caption"
            raise DataError(f"{where}: {missing} is empty; {_MEND}")
        else:
            row = int(struck.row) if struck.row.isdecimal() else -1
            if not 0 <= row < len(found) or data.caption_owner[row] != image:
                raise DataError(f"{where}: caption row {shown(struck.row)} is not of image {shown(name)}; {_MEND}")
            rows = [row]
        found[rows] = True
    return found


def without_excluded(data: Data, file: Path) -> tuple[Data, str]:
    """The data without the pairs of the training split that the file names, and a line that counts them.

    An image without another pair leaves the split; pairs of dev and test stay, so that figures remain comparable.

    Raises:
        DataError: as `excluded_rows`, or no training pair is left.
    """
    named = excluded_rows(data, file)
    train = data.split[data.caption_owner] == 0
    gone = named & train
    if (gone == train).all():
        raise DataError(
            f"--exclude {file}: names every training pair; keep the lines of wrong pairs alone, or mark these in a "
            f"column {MARK}"
        )
    left = data.keeping(np.flatnonzero(~gone))
    bare = (left.split == 0) & (np.diff(left.caption_offsets) == 0)
    left.split[bare] = -1
    told = f"--exclude {file.name}: {int(gone.sum()):,} pairs left out of training"
    told += f", and with them {int(bare.sum()):,} images that have no other" if bare.any() else ""
    others = int((named & ~train).sum())
    return left, told + (f"; {others:,} named pairs are not in the training split and stay" if others else "")


def _read(file: Path) -> Iterator[_Struck]:
    with readable(file):
        text = read_text(file, [])
    header = first_line(text)
    if not header:
        raise DataError(f"--exclude {file}: the file is empty; wanted a header such as image,caption and a line a pair")
    found = [(next(csv.reader([header], delimiter=mark)), mark) for mark in SEPARATORS.values()]
    names, separator = max(found, key=lambda one: len(one[0]))
    image, caption = (chosen_column(names, None, known) for known in (IMAGE_COLUMNS, CAPTION_COLUMNS))
    mark, row = (chosen_column(names, None, (name,)) for name in (MARK, ROW))
    if image is None or (caption is None and row is None):
        raise DataError(
            f"--exclude {file}: the columns are {', '.join(shown(name, 40) for name in names[:20])}; wanted those of "
            f"the image and of its caption (or {ROW}), as 'varalign diagnose' writes them"
        )
    reader, count = csv.reader(io.StringIO(text, newline=""), delimiter=separator), 0
    for cells in _without_csv_errors(file, reader):
        if not any(cell.strip() for cell in cells) or cells == names:
            continue
        value = {name: cell.strip() for name, cell in zip(names, cells, strict=False)}
        if len(cells) != len(names):
            raise DataError(
                f"--exclude {file} line {reader.line_num}: {len(cells)} columns where the header has {len(names)}; put "
                "a caption that has the separator in it in quotes"
            )
        if mark is None or value[mark].lower() not in _NOT_MARKED:
            count += 1
            yield _Struck(reader.line_num, value[image], value.get(caption or "", ""), value.get(row or "", ""))
    if not count:
        raise DataError(
            f"--exclude {file}: no line is marked in the column {MARK}; write x there in the lines to leave out"
            if mark is not None
            else f"--exclude {file}: a header and no pair; wanted a line a pair to leave out"
        )


def _without_csv_errors(file: Path, reader: Any) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"--exclude {file} line {reader.line_num}: {error}; mend or remove the line") from None


def _cells(cell: str) -> list[str]:
    """What a cell may stand for: `runs.csv_table` puts an apostrophe before what a spreadsheet would compute."""
    return [cell, cell[1:]] if cell.startswith("'") else [cell]
