"""What a captions file says, whichever form it has, and what a reader of one form is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from varalign.data.errors import DataError, shown
from varalign.data.files import open_user_file
from varalign.data.readers.columns import Columns, check_split_words, split_word
from varalign.data.readers.image_folder import ImageFile
from varalign.data.readers.reading import Reading
from varalign.data.readers.text_file import (
    MAX_LINE_BYTES,
    beginning_of,
    is_large,
    lines_of,
    overlong,
    read_text,
)
from varalign.data.shards.shard_members import address_of


@dataclass(frozen=True)
class CaptionFile:
    """What one captions file says, in file order.

    path: the file. image_names, captions, lines: (T,) each; `lines` are 1-based, 0 where there are none (JSON). form:
    what the file is, for people. splits: image name to "train", "dev" or "test" where the file carries splits, else
    None. notes: lines that the user should see. empty_lines: the lines left out because their caption is empty (with
    `skip_empty` only). image_folders: where its images may lie, to be looked at before the usual folders. unpacked:
    images unpacked from it just now; None where they do not lie in it. shard, images: of a tar shard the file, and its
    images by their names in `image_names`; named: whether these names are those of files, which no other shard has.
    """

    path: Path
    image_names: list[str]
    captions: list[str]
    lines: list[int]
    form: str
    splits: dict[str, str] | None = None
    notes: list[str] = field(default_factory=list)
    empty_lines: list[int] = field(default_factory=list)
    image_folders: tuple[str, ...] = ()
    unpacked: int | None = None
    shard: Path | None = None
    images: dict[str, ImageFile] | None = None
    named: bool = False


class CaptionSource:
    """A captions file (or a folder that is one) that is to be read. Its bytes are read when they are first needed.

    Attributes:
        path: the file.
        reading: what the user said of it.
        notes: lines that the user should see; readers add theirs.
    """

    def __init__(self, path: Path, reading: Reading) -> None:
        self.path, self.reading = path, reading
        self.notes: list[str] = []

    @cached_property
    def head(self) -> bytes:
        """The first bytes, by which archives are known; none of a folder, or of what is not on this machine."""
        if self.path.is_dir() or address_of(self.path) is not None:
            return b""
        with open_user_file(self.path) as file:
            return file.read(512)

    @cached_property
    def beginning(self) -> str:
        """The text, or of a large file its first characters: by them forms of texts are known."""
        return beginning_of(self.path) if is_large(self.path) else self.text

    def lines(self) -> Iterator[tuple[int, str]]:
        """(number from 1, line) of each line; DataError for one of more than `MAX_LINE_BYTES`.

        Of a large file a block is in memory at a time.
        """
        lines = lines_of(self.path, self.notes) if is_large(self.path) else split_lines(self.text)
        return numbered_lines(self.path, lines)

    @cached_property
    def text(self) -> str:
        """The whole file as text; DataError where it is none, empty, or a large file, which only `lines` reads."""
        if is_large(self.path):
            raise DataError(
                f"{self.path}: {self.path.stat().st_size:,} bytes as one JSON value, which is read whole; write the "
                "pairs as JSON lines or CSV, of which a file may have any size"
            )
        text = read_text(self.path, self.notes)
        if not first_line(text):
            raise DataError(
                f"{self.path}: the file is empty; wanted lines like 'name.jpg,caption' or 'name.jpg#0<TAB>caption'"
            )
        return text


@dataclass(frozen=True)
class CaptionFormat:
    """A form of captions files.

    files: names or patterns, relative to a data folder, under which it is looked for; the files of one pattern are read
    together. suffixes: ends of names by which a file of any other name is taken, where it is the only one. finds: what
    is read of a data folder where the form has no file of its own. knows: whether a file has this form. read: reads it;
    raises DataError.
    """

    files: tuple[str, ...]
    knows: Callable[[CaptionSource], bool]
    read: Callable[[CaptionSource], CaptionFile]
    suffixes: tuple[str, ...] = ()
    finds: Callable[[Path], Path | None] | None = None


class Pairs:
    """Collects the pairs of a captions file row by row.

    Args:
        source: the file.
        columns: the columns that are read; their names are for messages.
    """

    def __init__(self, source: CaptionSource, columns: Columns) -> None:
        self._source, self._columns = source, columns
        self._texts_alone = bool(columns.image) and columns.image == columns.caption
        self._names: list[str] = []
        self._captions: list[str] = []
        self._lines: list[int] = []
        self._words: dict[str, str] = {}

    def add(self, line: int, where: str, name: str, captions: str | list[str], word: str = "") -> None:
        """Add an image with its captions.

        Args:
            line: of the row; 0 where rows have none.
            where: the row, for messages; empty where its line says it.
            name: the image's name. captions: one, or several. word: what the row says of the split.

        Raises:
            DataError: there is no name, or the image has another split than before.
        """
        if self._texts_alone:
            name = where or f"line {line}"
        if not name or self._words.setdefault(name, word) != word:
            self._refuse(where or f"line {line}", name, word)
        for caption in (captions,) if isinstance(captions, str) else captions:
            self._names.append(name)
            self._captions.append(caption)
            self._lines.append(line)

    def _refuse(self, where: str, name: str, word: str) -> NoReturn:
        if not name:
            raise DataError(f"{self._source.path} {where}: no image name")
        raise DataError(
            f"{self._source.path} {where}: image {shown(name)} is in {shown(self._words[name])} above and in "
            f"{shown(word)} here; keep it in one split"
        )

    def done(
        self, form: str, *, splits: dict[str, str] | None = None, image_folders: tuple[str, ...] = ()
    ) -> CaptionFile:
        """The file, with its `form` for people; DataError where its column of splits is not understood."""
        path, columns = self._source.path, self._columns
        if columns.split is not None:
            check_split_words(path, columns.split, set(self._words.values()))
            found = {name: split_word(word) for name, word in self._words.items()}
            splits = {name: split for name, split in found.items() if split is not None} or None
        read = [columns.image, columns.caption, *([columns.split] if columns.split else [])]
        form = f"{form}, columns {', '.join(shown(name) for name in read)}" if all(read) else form
        return CaptionFile(
            path,
            self._names,
            self._captions,
            self._lines,
            form,
            splits,
            notes=self._source.notes,
            image_folders=image_folders,
        )


def split_lines(text: str) -> list[str]:
    """The lines of a text whose lines end in LF, CRLF or CR, and in no other of Unicode's line ends."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def numbered_lines(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of each line; DataError for one of more than `MAX_LINE_BYTES`."""
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE_BYTES // 4 and len(line.encode()) > MAX_LINE_BYTES:
            raise overlong(path, number, f"{len(line.encode()):,} bytes long, more than the {MAX_LINE_BYTES:,}")
        yield number, line


def first_line(text: str) -> str:
    """The first line that is not blank; empty where all are."""
    found = re.search(r"\S", text)
    if found is None:
        return ""
    at = found.start()
    ends = [end for end in (text.find("\n", at), text.find("\r", at)) if end >= 0]
    return text[max(text.rfind("\n", 0, at), text.rfind("\r", 0, at)) + 1 : min(ends, default=len(text))]


def one_line(caption: str) -> str:
    """A caption without line ends."""
    return " ".join(caption.splitlines()).strip() if "\n" in caption or not caption.isprintable() else caption.strip()


def checked_text(path: Path, where: str, value: Any) -> str:
    """A text of a JSON file or table, without spaces around it.

    Raises:
        DataError: it is no text, too long, or holds what is no character.
    """
    if not isinstance(value, str):
        raise DataError(f"{path} {where}: wanted a text, got {shown(repr(value))}")
    if len(value) > MAX_LINE_BYTES:
        raise DataError(f"{path}: {where} is {len(value):,} characters long, more than {MAX_LINE_BYTES:,}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(f"{path}: {where} holds half of a surrogate pair, which is no character; mend it") from None
    if "\0" in value:
        raise DataError(f"{path}: {where} holds a NUL character; mend it")
    return value.strip()
