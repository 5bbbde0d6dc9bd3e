"""Finds a data set's captions files and images in a folder laid out as people have it.

Captions, the first of these that is there (a note names the others): captions.txt, captions.csv, Flickr8k.token.txt,
Flickr8k_text/Flickr8k.token.txt, dataset.json, dataset_flickr8k.json, and all of annotations/captions_*.json or
captions_*.json together. Images, the first of these that holds an image named in the captions: for a COCO file
captions_X.json the folders X and images/X, then Images, images, Flicker8k_Dataset, Flickr8k_Dataset, the folder itself.

Names match whether they are spelled in Unicode's composed or decomposed form (macOS writes the latter). A name that is
absolute, holds `..`, or is a link to somewhere outside the image folder is refused; that folder itself may be a link.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from varalign.data.caption_file import CaptionFile
from varalign.data.captions import read_captions
from varalign.data.errors import DataError, first_three, shown

CAPTION_FILES = (
    "captions.txt",
    "captions.csv",
    "Flickr8k.token.txt",
    "Flickr8k_text/Flickr8k.token.txt",
    "dataset.json",
    "dataset_flickr8k.json",
)
COCO_FILES = ("annotations/captions_*.json", "captions_*.json")
IMAGE_FOLDERS = ("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", ".")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".mpo"})
_TAIL = 512
_READERS = 8  # reads from a cold disk wait, they do not compute


class ImageFile(NamedTuple):
    """An image that is there: its name relative to the image folder as the disk spells it, its path, its size."""

    name: str
    path: Path
    size: int


class Missing(NamedTuple):
    """A caption whose image is not there. `line` is 0 for JSON."""

    file: Path
    line: int
    name: str


@dataclass
class FoundFolder:
    """What a folder holds: I images in order of their first caption, T captions in file order.

    caption_owner: (T,) rows of `images`. splits: image row to "train", "dev" or "test" where the captions files carry
    splits. missing: captions that name no image. bare: images that no caption names. empty: "file line n" of each empty
    caption left out.
    """

    folder: Path
    caption_files: list[Path]
    image_folders: list[Path]
    images: list[ImageFile]
    captions: list[str]
    caption_owner: NDArray[np.int64]
    splits: dict[int, str] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_folder(folder: Path, captions_file: Path | None = None, *, skip_empty: bool = False) -> FoundFolder:
    """Read the captions of a folder and find their images.

    captions_file: the captions where they are not found by name. skip_empty: leave out empty captions and list them.
    Missing images are listed in the result, everything else that is bad raises DataError.
    """
    files, notes = _caption_files(folder, captions_file)
    found = FoundFolder(folder, files, [], [], [], np.zeros(0, np.int64), notes=notes)
    row_of: dict[Path, int] = {}
    owner: list[int] = []
    for path in files:
        read = read_captions(path, skip_empty=skip_empty)
        found.notes.extend(read.notes)
        found.empty.extend(f"{path.name} line {line}" if line else path.name for line in read.empty_lines)
        images = _image_folder(folder, read)
        if images.base not in found.image_folders:
            found.image_folders.append(images.base)
        prefix = f"{images.base.name}/" if len(files) > 1 else ""
        located: dict[str, int] = {}
        for name, caption, line in zip(read.image_names, read.captions, read.lines, strict=True):
            row = located.get(name)
            if row is None:
                row = located[name] = _locate(images, read, name, line, prefix, found, row_of)
            if row < 0:
                found.missing.append(Missing(path, line, name))
            else:
                found.captions.append(caption)
                owner.append(row)
    found.caption_owner = np.array(owner, dtype=np.int64)
    found.bare = _bare_images(found)
    return found


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


class ImageFolder:
    """Looks image names up in a folder, each of its folders listed once."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._real = os.path.realpath(base)
        self._listed: dict[str, dict[str, os.DirEntry[str]]] = {}

    def find(self, name: str) -> ImageFile | None:
        """The image of that name, or None; DataError (without file and line) where the name leads out of the folder."""
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name) or ".." in parts:
            raise DataError(f"the image name {shown(name)} leads out of the image folder; name a file in {self.base}")
        parent, _, leaf = name.rpartition("/")
        listed = self._list(parent)
        entry = listed.get(leaf) or listed.get(unicodedata.normalize("NFC", leaf))
        if entry is None:
            return None
        if (entry.is_symlink() or parent) and not self._keeps(entry.path):
            raise DataError(
                f"the image {shown(name)} is a link that leads out of {self.base}; put the file itself there, or make "
                "the whole image folder the link"
            )
        try:
            size = entry.stat().st_size
        except OSError:
            return None
        return ImageFile(f"{parent}/{entry.name}" if parent else entry.name, self.base / parent / entry.name, size)

    def holds(self, name: str) -> bool:
        """Whether `find` finds the image; a name that leads out of the folder is none of its images."""
        try:
            return self.find(name) is not None
        except DataError:
            return False

    def names(self) -> list[str]:
        """The names of the image files directly in the folder, sorted."""
        entries = {e.name for e in self._list("").values()}
        return sorted(name for name in entries if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)

    def _keeps(self, path: str) -> bool:
        return os.path.commonpath([self._real, os.path.realpath(path)]) == self._real

    def _list(self, parent: str) -> dict[str, os.DirEntry[str]]:
        """The files of a folder by name, and by the composed form of the name where no file has that very name."""
        if parent not in self._listed:
            listed: dict[str, os.DirEntry[str]] = {}
            try:
                with os.scandir(self.base / parent) as entries:
                    files = [entry for entry in entries if _is_file(entry)]
            except (FileNotFoundError, NotADirectoryError):
                files = []
            except (OSError, ValueError) as error:
                raise DataError(f"the folder {self.base / parent} cannot be read: {error}") from error
            for entry in files:
                listed[entry.name] = entry
            for entry in files:
                listed.setdefault(unicodedata.normalize("NFC", entry.name), entry)
            self._listed[parent] = listed
        return self._listed[parent]


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False


def _caption_files(folder: Path, captions_file: Path | None) -> tuple[list[Path], list[str]]:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "there is no such folder"
        raise DataError(
            f"{folder}: {what}; wanted one with captions.txt and Images/ ('varalign data sample DIR' writes one)"
        )
    if captions_file is not None:
        given = captions_file if captions_file.exists() else folder / captions_file
        return [given], []
    groups = [[folder / name] for name in CAPTION_FILES if (folder / name).is_file()]
    groups += [files for pattern in COCO_FILES if (files := sorted(folder.glob(pattern)))]
    if not groups:
        raise DataError(
            f"{folder}: no captions file; wanted one of {', '.join(CAPTION_FILES)}, {', '.join(COCO_FILES)}, or name it"
        )
    others = [str(file.relative_to(folder)) for files in groups[1:] for file in files]
    note = f"captions from {groups[0][0].relative_to(folder)}; also there and not read: {first_three(others)}"
    return groups[0], [note] if others else []


def _image_folder(folder: Path, read: CaptionFile) -> ImageFolder:
    """The first candidate that holds an image of the captions; where none does, the first that exists."""
    match = re.fullmatch(r"captions_(.+)", read.path.stem)
    ahead = (match[1], f"images/{match[1]}") if match and read.path.suffix == ".json" else ()
    candidates = [ImageFolder(folder / name) for name in (*ahead, *IMAGE_FOLDERS) if (folder / name).is_dir()]
    names = list(dict.fromkeys(read.image_names))
    for images in candidates:
        if any(images.holds(name) for name in names):
            return images
    return candidates[0]


def _locate(
    images: ImageFolder,
    read: CaptionFile,
    name: str,
    line: int,
    prefix: str,
    found: FoundFolder,
    row_of: dict[Path, int],
) -> int:
    """The row of the named image in `found.images`, a new one where it is named first; -1 where it is missing."""
    try:
        image = images.find(name)
    except DataError as error:
        raise DataError(f"{read.path}{f' line {line}' if line else ''}: {error}") from None
    if image is None:
        return -1
    row = row_of.setdefault(image.path, len(found.images))
    if row == len(found.images):
        found.images.append(image._replace(name=prefix + image.name))
    if read.splits and name in read.splits:
        split = read.splits[name]
        if found.splits.setdefault(row, split) != split:
            raise DataError(
                f"{read.path}: image {shown(name)} is in {found.splits[row]} and in {split}; keep it in one"
            )
    return row


def _bare_images(found: FoundFolder) -> list[str]:
    named = {image.path for image in found.images}
    return [name for base in found.image_folders for name in ImageFolder(base).names() if base / name not in named]


def _read_tail(image: ImageFile) -> bytes:
    try:
        with image.path.open("rb", buffering=0) as file:
            file.seek(max(0, image.size - _TAIL))
            return file.read(_TAIL)
    except OSError as error:
        raise DataError(f"{image.path}: cannot be read: {error.strerror or error}") from error


def _digest(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.digest()
