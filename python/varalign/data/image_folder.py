"""Finds images by the names that captions give them, and files with the same bytes.

A name matches a file in the first of these ways that fits one: as it is; in Unicode's composed form (macOS writes the
decomposed one); with slashes for backslashes; in another case, where that fits one file alone.

A name that is absolute, holds `..`, or is a link to somewhere outside the image folder is refused; that folder itself
may be a link. Names that begin with `._` are macOS's companions of files, not images.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from varalign.data.errors import DataError, shown
from varalign.data.files import file_digest, open_user_file, readable
from varalign.data.images import IMAGE_SUFFIXES

_TAIL = 512
_READERS = 8  # reads from a cold disk wait, they do not compute


class ImageFile(NamedTuple):
    """An image that is there.

    name: relative to the image folder, as the disk spells it. path, size: of the file. other_case: whether it was asked
    for in another case.
    """

    name: str
    path: Path
    size: int
    other_case: bool = False


class Spellings:
    """Finds names among others whatever their Unicode form, and in another case where that fits one name alone."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact: dict[str, str] = {}
        self._composed: dict[str, str] = {}
        self._folded: dict[str, str | None] = {}
        for name in names:
            composed = _composed(name)
            self._exact[name] = name
            self._composed.setdefault(composed, name)
            self._folded[composed.casefold()] = None if composed.casefold() in self._folded else name

    def find(self, name: str) -> str | None:
        """The one of the names that is meant, as it is spelled there."""
        composed = _composed(name)
        return self._exact.get(name) or self._composed.get(composed) or self._folded.get(composed.casefold())


class ImageFolder:
    """Looks image names up in a folder, each of its folders listed once."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._real = os.path.realpath(base)
        self._listed: dict[str, tuple[Spellings, dict[str, os.DirEntry[str]]]] = {}

    def find(self, name: str) -> ImageFile | None:
        """The image of that name, or None; DataError (without file and line) where the name leads out of the folder."""
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name) or ".." in parts:
            raise DataError(f"the image name {shown(name)} leads out of the image folder; name a file in {self.base}")
        place = self._place(name) or ("\\" in name and self._place("/".join(parts)))
        if not place:
            return None
        parent, entry = place
        if (entry.is_symlink() or parent) and not self._keeps(entry.path):
            raise DataError(
                f"the image {shown(name)} is a link that leads out of {self.base}; put the file itself there, or make "
                "the whole image folder the link"
            )
        try:
            size = entry.stat().st_size
        except OSError:
            return None
        other_case = _composed(entry.name) != _composed(parts[-1]) and entry.name != name
        path = self.base / parent / entry.name
        return ImageFile(f"{parent}/{entry.name}" if parent else entry.name, path, size, other_case)

    def holds(self, name: str) -> bool:
        """Whether `find` finds the image; a name that leads out of the folder is none of its images."""
        try:
            return self.find(name) is not None
        except DataError:
            return False

    def names(self) -> list[str]:
        """The names of the image files directly in the folder, sorted."""
        _, entries = self._list("")
        return sorted(name for name in entries if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)

    def _keeps(self, path: str) -> bool:
        return os.path.commonpath([self._real, os.path.realpath(path)]) == self._real

    def _place(self, name: str) -> tuple[str, os.DirEntry[str]] | None:
        parent, _, leaf = name.rpartition("/")
        spellings, entries = self._list(parent)
        found = spellings.find(leaf)
        return None if found is None else (parent, entries[found])

    def _list(self, parent: str) -> tuple[Spellings, dict[str, os.DirEntry[str]]]:
        """The files of a folder: their spellings, and their entries by name."""
        if parent not in self._listed:
            try:
                with os.scandir(self.base / parent) as found:
                    entries = {entry.name: entry for entry in found if _is_file(entry)}
            except (FileNotFoundError, NotADirectoryError):
                entries = {}
            except (OSError, ValueError) as error:
                raise DataError(f"the folder {self.base / parent} cannot be read: {error}") from error
            self._listed[parent] = Spellings(entries), entries
        return self._listed[parent]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file() and not entry.name.startswith("._")
    except OSError:  # a link that leads to itself
        return False


def identical_files(images: list[ImageFile]) -> NDArray[np.int64]:
    """(I,) int64: for each image the row of the first one with the same bytes (its own row if it is the first).

    Cheap: only files of one size are looked at, only those with the same last bytes are hashed whole.
    """
    ids = np.arange(len(images), dtype=np.int64)
    by_size: dict[int, list[int]] = {}
    for row, image in enumerate(images):
        by_size.setdefault(image.size, []).append(row)
    candidates = [row for rows in by_size.values() if len(rows) > 1 for row in rows]
    by_tail: dict[tuple[int, bytes], list[int]] = {}
    with ThreadPoolExecutor(_READERS) as readers:
        parts = [candidates[start::_READERS] for start in range(_READERS)]
        for part, tails in zip(
            parts, readers.map(lambda part: [_read_tail(images[row]) for row in part], parts), strict=True
        ):
            for row, tail in zip(part, tails, strict=True):
                by_tail.setdefault((images[row].size, tail), []).append(row)
    for rows in by_tail.values():
        if len(rows) > 1:
            first: dict[bytes, int] = {}
            for row in sorted(rows):
                ids[row] = first.setdefault(_digest(images[row].path), row)
    return ids


def _read_tail(image: ImageFile) -> bytes:
    with readable(image.path), open_user_file(image.path) as file:
        file.seek(max(0, image.size - _TAIL))
        return file.read(_TAIL)


def _digest(path: Path) -> bytes:
    with readable(path):
        return file_digest(path)
