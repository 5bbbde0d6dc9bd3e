"""Finds images by the names that captions give them, and files with the same bytes.

A name matches a file in the first of these ways that fits one: as it is; in Unicode's composed form (macOS writes the
decomposed one); with slashes for backslashes; in another case, where that fits one file alone; in a subfolder, where
just one file there ends so; without the end of the file's name, where that fits just one image.

A name that is absolute and not of the image folder, holds `..`, or is a link to somewhere outside the image folder is
refused (links unless `follow_links`); that folder itself may be a link. Names that begin with `._`, `.DS_Store` and
`Thumbs.db` are what macOS and Windows write, no images.
"""

from __future__ import annotations

import os
import re
import time
import unicodedata
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from varalign.data.errors import DataError, shown
from varalign.data.files import file_digest, read_end, readable, refuse_unreadable
from varalign.data.images import IMAGE_SUFFIXES
from varalign.data.waiting import waiting

OTHER_CASE = "are in another case than their files"
SUBFOLDER = "are found in subfolders"
WITHOUT_END = "lack the end of their files' names"

IMAGE_FOLDERS = (
    *("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k_images", "flickr30k-images"),
    ".",
)
"""Where the images of a data folder lie, the likeliest first."""

_DRIVE = re.compile(r"[A-Za-z]:/")
_TAIL = 128
_READERS = 8  # reads from a cold disk wait, they do not compute
_PART = 64  # files read at a time
_WAIT = 1e-4  # seconds a file from which threads read them: for files in memory, threads take half as long again
_COMPANIONS = frozenset({".ds_store", "thumbs.db", "desktop.ini"})


class ImageFile(NamedTuple):
    """An image that is there.

    name: relative to the image folder, as the disk spells it. path, size: of the file. unlike: in what way it was asked
    for by another name; empty where the name is its own. digest: SHA-256 of its bytes in hex where it is known, as that
    of an image in a remote shard is.
    """

    name: str
    path: Path
    size: int
    unlike: str = ""
    digest: str = ""


class Spellings:
    """Finds names among others whatever their Unicode form, and in another case where that fits one name alone."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = dict.fromkeys(names)

    def find(self, name: str) -> str | None:
        """The one of the names that is meant, as it is spelled there."""
        if name in self._exact:
            return name
        in_form, in_case = self._others
        composed = _composed(name)
        return in_form.get(composed) or in_case.get(composed.casefold())

    @cached_property
    def _others(self) -> tuple[dict[str, str], dict[str, str | None]]:
        """The names by their composed form, and by that in one case; None where several have it."""
        in_form: dict[str, str] = {}
        in_case: dict[str, str | None] = {}
        for name in self._exact:
            composed = _composed(name)
            folded = composed.casefold()
            in_form.setdefault(composed, name)
            in_case[folded] = None if folded in in_case else name
        return in_form, in_case


class ImageFolder:
    """Looks image names up in a folder, each of its folders listed once.

    Args:
        base: the folder.
        follow_links: whether an image may be a link that leads out of the folder.
    """

    def __init__(self, base: Path, *, follow_links: bool = False) -> None:
        self.base = base
        self._follow_links = follow_links
        self._real = os.path.realpath(base)
        self._kept: dict[str, bool] = {}
        self._bases = tuple(f"{place.rstrip('/')}/" for place in (str(base.absolute()), self._real))
        self._listed: dict[str, tuple[Spellings, dict[str, bool]]] = {}

    def find(self, name: str, *, lenient: bool = True) -> ImageFile | None:
        """The image of that name, or None; DataError (without file and line) where the name leads out of the folder.

        lenient: look in subfolders, and for files whose names have an end more.
        """
        asked = self._inside(name)
        place, unlike = self._place(asked), ""
        if place is None and "\\" in asked:
            place = self._place(asked.replace("\\", "/"))
        if place is not None and place[1] != asked:
            leaf = asked.replace("\\", "/").rpartition("/")[2]
            if place[1] != leaf and _composed(place[1]) != _composed(leaf):
                unlike = OTHER_CASE
        elif place is None and lenient:
            found, unlike = self._elsewhere(asked.replace("\\", "/"))
            place = self._place(found) if found else None
        if place is None:
            return None
        parent, leaf, is_link = place
        inside = f"{parent}/{leaf}" if parent else leaf
        path = self.base / inside
        if not self._follow_links and not (self._keeps(os.fspath(path)) if is_link else self._keeps_all(parent)):
            raise DataError(
                f"the image {shown(name)} is a link that leads out of {self.base}; put the file itself there, make "
                "the whole image folder the link, or pass --follow-links"
            )
        try:
            size = os.stat(path).st_size
        except OSError:
            return None
        return ImageFile(inside, path, size, unlike)

    def holds(self, name: str, *, lenient: bool = True) -> bool:
        """Whether `find` finds the image; a name that leads out of the folder is none of its images."""
        try:
            return self.find(name, lenient=lenient) is not None
        except DataError:
            return False

    def names(self) -> list[str]:
        """The names of the image files directly in the folder, sorted."""
        _, links = self._list("")
        return sorted(name for name in links if is_image_name(name))

    def all_names(self) -> list[str]:
        """The names of the image files in the folder and in its subfolders, sorted; hidden folders are passed over."""
        names = []
        seen = set()
        for place, folders, files in os.walk(self.base, followlinks=self._follow_links):
            state = os.stat(place)
            if (state.st_dev, state.st_ino) in seen:  # a link to a folder that was met
                folders.clear()
                continue
            seen.add((state.st_dev, state.st_ino))
            folders[:] = [folder for folder in folders if not folder.startswith(".")]
            parent = os.path.relpath(place, self.base).replace(os.sep, "/") + "/" if place != str(self.base) else ""
            names += [parent + name for name in files if is_image_name(name) and not is_companion(name)]
        return sorted(names)

    def _inside(self, name: str) -> str:
        """The name relative to the folder."""
        plain = name.replace("\\", "/")
        for base in self._bases:
            if plain.startswith(base):
                plain = name = plain[len(base) :].lstrip("/")
        if (
            plain.startswith("/")
            or (plain[1:3] == ":/" and _DRIVE.match(plain))
            or (".." in plain and ".." in plain.split("/"))
        ):
            raise DataError(f"the image name {shown(name)} leads out of the image folder; name a file in {self.base}")
        return name

    def alike(self, name: str) -> list[str]:
        """The images of that name in subfolders, or without the end of its name; `find` takes one alone."""
        return self._alike(name.replace("\\", "/"))[0]

    def _elsewhere(self, name: str) -> tuple[str | None, str]:
        """The one image of that name in a subfolder, or without the end of its name; and in what way it is unlike."""
        found, unlike = self._alike(name)
        return (found[0], unlike) if len(found) == 1 else (None, "")

    def _alike(self, name: str) -> tuple[list[str], str]:
        """The images in the first of the two ways that fits one; else in the first that fits any."""
        parent, _, leaf = name.rpartition("/")
        folded = _composed(leaf).casefold()
        ways: list[tuple[list[str], str]] = []
        for by, unlike in zip(self._index, (SUBFOLDER, WITHOUT_END), strict=True):
            found = by.get(folded, [])
            ways.append(([path for path in found if not parent or _ends_so(path, parent)], unlike))
        return min(ways, key=lambda way: (len(way[0]) != 1, not way[0]))

    @cached_property
    def _index(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The images in the folder and its subfolders by name, and by name without its end; both in one case."""
        by_leaf: dict[str, list[str]] = {}
        by_stem: dict[str, list[str]] = {}
        for path in self.all_names():
            leaf = _composed(path.rpartition("/")[2]).casefold()
            by_leaf.setdefault(leaf, []).append(path)
            by_stem.setdefault(os.path.splitext(leaf)[0], []).append(path)
        return by_leaf, by_stem

    def _keeps_all(self, parent: str) -> bool:
        """Whether a folder lies inside, and with it what is no link in it; asked of each file, so it is remembered."""
        if parent not in self._kept:
            self._kept[parent] = self._keeps(os.path.join(self.base, parent))
        return self._kept[parent]

    def _keeps(self, path: str) -> bool:
        return os.path.commonpath([self._real, os.path.realpath(path)]) == self._real

    def _place(self, name: str) -> tuple[str, str, bool] | None:
        """The folder that a file lies in, its name there, and whether it is a link."""
        parent, _, leaf = name.rpartition("/")
        spellings, links = self._list(parent)
        found = spellings.find(leaf)
        return None if found is None else (parent, found, links[found])

    def _list(self, parent: str) -> tuple[Spellings, dict[str, bool]]:
        """The files of a folder: their spellings, and by name whether they are links.

        Entries themselves are not kept: of 100,000 files they and the `stat` that each keeps hold 100 MiB.
        """
        if parent not in self._listed:
            try:
                with os.scandir(self.base / parent) as found:
                    links = {entry.name: entry.is_symlink() for entry in found if _is_file(entry)}
            except (FileNotFoundError, NotADirectoryError):
                links = {}
            except (OSError, ValueError) as error:
                raise DataError(f"the folder {self.base / parent} cannot be read: {error}") from error
            self._listed[parent] = Spellings(links), links
        return self._listed[parent]


def _ends_so(path: str, parent: str) -> bool:
    folder = path.rpartition("/")[0]
    return f"/{folder}".endswith(f"/{parent}")


def is_companion(name: str) -> bool:
    """Whether macOS or Windows wrote the file beside those of the user."""
    return name.startswith("._") or name.lower() in _COMPANIONS


def is_image_name(name: str) -> bool:
    """Whether the name ends like an image's."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _composed(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return not is_companion(entry.name) and entry.is_file()
    except OSError:  # a link that leads to itself
        return False


def identical_files(images: list[ImageFile]) -> NDArray[np.int64]:
    """(I,) int64: for each image the row of the first one with the same bytes (its own row if it is the first).

    Cheap: only files of one size are looked at, only those with the same last bytes are hashed whole.
    """
    ids = np.arange(len(images), dtype=np.int64)
    sizes = [image.size for image in images]
    by_size: dict[int, list[int]] = {}
    for row, size in enumerate(sizes):
        by_size.setdefault(size, []).append(row)
    candidates = [row for rows in by_size.values() if len(rows) > 1 for row in rows]
    by_tail: dict[tuple[int, bytes], list[int]] = {}
    parts = [candidates[start : start + _PART] for start in range(0, len(candidates), _PART)]

    def tails_of(rows: list[int]) -> list[bytes]:
        return [_read_tail(images[row]) for row in rows]

    began = time.perf_counter()
    tails_of(candidates[:_PART])
    waits = time.perf_counter() - began > _PART * _WAIT
    with ThreadPoolExecutor(_READERS) as readers, waiting("comparing image files", len(candidates)) as bar:
        for part, tails in zip(parts, (readers.map if waits else map)(tails_of, parts), strict=True):
            for row, tail in zip(part, tails, strict=True):
                by_tail.setdefault((sizes[row], tail), []).append(row)
            bar.advance(len(part))
    for rows in by_tail.values():
        if len(rows) > 1:
            first: dict[bytes, int] = {}
            for row in sorted(rows):
                ids[row] = first.setdefault(_digest(images[row]), row)
    return ids


def _read_tail(image: ImageFile) -> bytes:
    if image.digest:
        return bytes.fromhex(image.digest)
    try:
        return read_end(image.path, image.size, _TAIL)
    except (OSError, MemoryError) as error:
        refuse_unreadable(image.path, error)


def _digest(image: ImageFile) -> bytes:
    if image.digest:
        return bytes.fromhex(image.digest)
    with readable(image.path):
        return file_digest(image.path)


class ShardImages(ImageFolder):
    """The images of a tar shard by the names that its captions give them.

    Args:
        base: the shard.
        images: they.
    """

    def __init__(self, base: Path, images: dict[str, ImageFile]) -> None:
        super().__init__(base)
        self._images = images

    def find(self, name: str, *, lenient: bool = True) -> ImageFile | None:
        """The image of that name, or None."""
        return self._images.get(name)

    def names(self) -> list[str]:
        """None: an image without a caption has an empty one."""
        return []
