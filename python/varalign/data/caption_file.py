"""What a captions file says, whichever form it has, and what a reader of one form is."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from varalign.data.errors import DataError

MAX_LINE_BYTES = 1 << 16
IMAGE_COLUMNS = ("image", "image_name", "file_name", "filename")
CAPTION_COLUMNS = ("caption", "comment", "text")


@dataclass(frozen=True)
class CaptionFile:
    """What one captions file says, in file order.

    path: the file. image_names, captions, lines: (T,) each; `lines` are 1-based, 0 for JSON. splits: image name to
    "train", "dev" or "test" where the file carries splits, else None. notes: lines that the user should see.
    empty_lines: the lines left out because their caption is empty (with `skip_empty` only). image_folders: where its
    images may lie, to be looked at before the usual folders.
    """

    path: Path
    image_names: list[str]
    captions: list[str]
    lines: list[int]
    splits: dict[str, str] | None = None
    notes: list[str] = field(default_factory=list)
    empty_lines: list[int] = field(default_factory=list)
    image_folders: tuple[str, ...] = ()

    @classmethod
    def of_rows(cls, path: Path, rows: Iterable[tuple[int, str, str]], notes: list[str]) -> CaptionFile:
        """Made of (line, image name, caption) for each caption; `notes` may grow while `rows` are drawn."""
        lines, names, captions = [list(column) for column in zip(*rows, strict=True)] or ([], [], [])
        return cls(path, names, captions, lines, notes=notes)


@dataclass(frozen=True)
class CaptionFormat:
    """A form of captions files.

    files: names or patterns, relative to a data folder, under which it is looked for; the files of one pattern are read
    together. knows: whether a file (its path, its text) has this form. read: reads it; raises DataError.
    """

    files: tuple[str, ...]
    knows: Callable[[Path, str], bool]
    read: Callable[[Path, str], CaptionFile]


def split_lines(text: str) -> list[str]:
    """The lines of a text whose lines end in LF, CRLF or CR, and in no other of Unicode's line ends."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def numbered_lines(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of each line; DataError for one of more than `MAX_LINE_BYTES`."""
    for number, line in enumerate(split_lines(text), 1):
        if len(line) > MAX_LINE_BYTES // 4 and len(line.encode()) > MAX_LINE_BYTES:
            raise DataError(
                f"{path} line {number}: {len(line.encode()):,} bytes long, more than the {MAX_LINE_BYTES:,} a line "
                "may have; mend or remove it"
            )
        yield number, line


def first_line(text: str) -> str:
    """The first line that is not blank; empty where all are."""
    return next((line.rstrip("\n") for line in io.StringIO(text, newline=None) if line.strip()), "")


def header_columns(fields: Iterable[str]) -> tuple[int, int] | None:
    """Positions of the image's and the caption's column where the fields are a header that names one of each."""
    names = [name.strip().lower() for name in fields]
    image = [i for i, name in enumerate(names) if name in IMAGE_COLUMNS]
    caption = [i for i, name in enumerate(names) if name in CAPTION_COLUMNS]
    return (image[0], caption[0]) if len(image) == len(caption) == 1 else None
