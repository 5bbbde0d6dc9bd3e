"""Finds a data set's captions files and their images in a folder laid out as people have it.

Captions are the first of the files that `varalign.data.readers.captions.FORMATS` names; a note names the others that
are there. Where none of them is there, captions are what lies in the folders of the splits (`train`, `validation`,
`test`), else the only file whose name ends like a captions file. Several files are read together where each names a
split (`train.csv` and `test.csv`).

Images lie in the first of these folders that holds an image named in the captions: those that the form of the captions
file names, then Images, images, Flicker8k_Dataset, Flickr8k_Dataset, flickr30k_images, the folder itself, the captions
file's own folder.
"""

from __future__ import annotations

import fnmatch
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from varalign.data.errors import DataError, first_three, shown
from varalign.data.readers.caption_file import CaptionFile
from varalign.data.readers.captions import FORMATS, read_captions
from varalign.data.readers.columns import named_split
from varalign.data.readers.image_folder import IMAGE_FOLDERS, ImageFile, ImageFolder, ShardImages, is_companion
from varalign.data.readers.reading import Reading, of_hub
from varalign.data.shards.shard_list import names_shards, shard_files
from varalign.data.shards.shard_members import shown_place
from varalign.data.waiting import counted


class Missing(NamedTuple):
    """A caption whose image is not there. `line` is 0 for JSON."""

    file: Path
    line: int
    name: str


class Part(NamedTuple):
    """A captions file of a data set.

    file: the file. folder: where its images are looked for. split: the one that its name or its folder's says.
    """

    file: Path
    folder: Path
    split: str | None = None


@dataclass
class FoundFolder:
    """What a folder holds: I images in order of their first caption, T captions in file order.

    caption_owner: (T,) rows of `images`. form: what the captions files are, for people. splits: image row to "train",
    "dev" or "test" where the captions files or the folders of the images carry splits; splits_from: which of the two.
    missing: captions that name no image. bare: images that no caption names. empty: "file line n" of each empty caption
    left out.
    """

    folder: Path
    caption_files: list[Path]
    image_folders: list[Path]
    images: list[ImageFile]
    captions: list[str]
    caption_owner: NDArray[np.int64]
    form: str = ""
    splits: dict[int, str] = field(default_factory=dict)
    splits_from: str = ""
    missing: list[Missing] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@contextmanager
def uncollected() -> Iterator[None]:
    """Within it Python looks for no garbage: of a million pairs there is none, and each look visits them all."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@uncollected()
def read_folder(folder: Path, reading: Reading = Reading(), *, skip_empty: bool = False) -> FoundFolder:
    """Read the captions of a folder and find their images.

    reading: what the user says of the folder. skip_empty: leave out empty captions and list them.
    Missing images are listed in the result, everything else that is bad raises DataError.
    """
    parts, notes = _find_parts(folder, reading)
    found = FoundFolder(folder, [part.file for part in parts], [], [], [], np.zeros(0, np.int64), notes=notes)
    places_split = len({part.split for part in parts}) > 1
    row_of: dict[str, int] = {}  # by the path as text: a Path takes ten times as long to hash
    prefixes: dict[str, Path] = {}
    names: dict[str, Path] = {}
    unpacked: list[int] = []
    owner: list[int] = []
    folders: dict[Path, ImageFolder] = {}
    for part in counted(parts, "reading captions files", len(parts)):
        read = read_captions(part.file, reading, skip_empty=skip_empty)
        found.form = found.form or read.form
        found.notes.extend(read.notes)
        found.empty.extend(f"{part.file.name} line {line}" if line else part.file.name for line in read.empty_lines)
        images = _image_folder(folder, part, read, reading)
        unpacked += [read.unpacked] if read.unpacked is not None else []
        folders.setdefault(images.base, images)
        located = _locate(images, read)
        found.notes.extend(_lenience(read, located))
        prefix = _prefix(folder, part, read, images, prefixes) if len(parts) > 1 else ""
        rows: dict[str, int] = {}
        for name, image in located.items():
            if image is None:
                continue
            rows[name] = row_of.setdefault(os.fspath(image.path), len(row_of))
            if rows[name] == len(found.images):
                if read.named and names.setdefault(image.name, part.file) != part.file:
                    both = f"{shown_place(names[image.name])} and {shown_place(part.file)}"
                    raise DataError(f"{both}: each has an image {shown(name)}; keep one of them, or rename one")
                found.images.append(image._replace(name=prefix + image.name) if prefix else image)
            split = (read.splits or {}).get(name, part.split if places_split and read.splits is None else None)
            if places_split and part.folder != folder and part.split and split is not None and split != part.split:
                raise DataError(
                    f"{read.path}: image {shown(name)} is in {split} by its column, and in {part.split} by its folder; "
                    "keep one of them"
                )
            if split is not None and found.splits.setdefault(rows[name], split) != split:
                before = found.splits[rows[name]]
                raise DataError(f"{read.path}: image {shown(name)} is in {before} and in {split}; keep it in one")
        if len(rows) == len(located):
            found.captions += read.captions
            owner += [rows[name] for name in read.image_names]
            continue
        for name, caption, line in zip(read.image_names, read.captions, read.lines, strict=True):
            if name in rows:
                found.captions.append(caption)
                owner.append(rows[name])
            else:
                found.missing.append(Missing(part.file, line, name))
    found.image_folders = list(folders)
    found.caption_owner = np.array(owner, dtype=np.int64)
    if unpacked:
        now = f"{sum(unpacked):,} images unpacked into" if sum(unpacked) else "the images lie unpacked in"
        found.notes.append(f"{now} {found.image_folders[-1].parent}")
    found.splits_from = first_three([path.name for path in found.caption_files])
    by_folder = _splits_by_folder(found.images)
    others = [found.images[row].name for row, split in found.splits.items() if by_folder.get(row, split) != split]
    if others:
        found.notes.append(
            f"{len(others):,} images lie in a folder named like another split than {found.splits_from} says; the file "
            f"is obeyed: {first_three(others)}"
        )
    if not found.splits and len(set(by_folder.values())) > 1:
        found.splits, found.splits_from = by_folder, "the folders of the images"
    for base, images in folders.items():
        place = os.path.join(base, "")
        found.bare += [name for name in images.names() if place + name not in row_of]
    return found


def given_place(place: str, folder: Path) -> Path:
    """A file or folder that the user names: relative to the working folder where it is there, else to `folder`."""
    path = Path(place)
    return path if path.exists() else folder / path


def _find_parts(folder: Path, reading: Reading) -> tuple[list[Part], list[str]]:
    """The captions files of a folder that belong together, and a note on others that are there."""
    if of_hub(folder):
        return [Part(folder, Path("."))], []
    if reading.captions is None and names_shards(folder):
        files = shard_files(folder)
        return _together(Path(os.path.commonpath([path.parent for path in files])), files), []
    if not folder.is_dir():
        if folder.is_file():
            raise DataError(f"{folder}: a file; pass its folder instead, and --captions {folder.name}")
        raise DataError(
            f"{folder}: there is no such folder; wanted one with captions.txt and Images/ ('varalign data sample DIR' "
            "writes one)"
        )
    if reading.captions is not None:
        return [Part(given_place(reading.captions, folder), folder)], []
    notes: list[str] = []
    groups = list(_known_files(folder)) or _split_folders(folder, notes)
    groups = groups or _without_files(folder) or _only_files(folder)
    if not groups:
        for path in sorted(folder.glob("*.xls*")):
            raise DataError(f"{path}: an Excel workbook; save it as CSV (UTF-8) beside it")
        patterns = [pattern for form in FORMATS for pattern in form.files]
        there = [shown(path.name + "/" * path.is_dir(), 40) for path in _entries(folder)]
        raise DataError(
            f"{folder}: no captions file; wanted one of {', '.join(patterns)}, or a .txt beside each image; there is "
            f"{first_three(there) or 'nothing'}; if one of these holds the captions, name it (--captions FILE)"
        )
    taken = {part.file for part in groups[0]}
    others = [str(part.file.relative_to(folder)) for parts in groups[1:] for part in parts if part.file not in taken]
    if others:
        read = groups[0][0].file.relative_to(folder)
        notes.append(f"captions from {read}; also there and not read: {first_three(others)}")
    return groups[0], notes


def _known_files(folder: Path) -> Iterator[list[Part]]:
    """The files of each known name that is there."""
    for form in FORMATS:
        for pattern in form.files:
            files = _matching(folder, pattern)
            files = [path for path in files if path.match(pattern)] or files
            if files:
                yield _together(folder, files)


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not is_companion(path.name))


def _matching(folder: Path, pattern: str) -> list[Path]:
    """The files of a name or pattern, in whatever case, sorted."""
    first, _, rest = pattern.partition("/")
    found = [path for path in _entries(folder) if fnmatch.fnmatchcase(path.name.lower(), first.lower())]
    if not rest:
        return [path for path in found if path.is_file()]
    return [path for place in found if place.is_dir() for path in _matching(place, rest)]


def _split_folders(folder: Path, notes: list[str]) -> list[list[Part]]:
    """The captions files in the folders of the splits, as one data set; a note names folders without any."""
    parts: list[Part] = []
    without: list[str] = []
    others: list[str] = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        split = named_split(place.name)
        if split is None:
            others += [str(part.file.relative_to(folder)) for part in next(_known_files(place), [])]
            continue
        group = next(_known_files(place), []) or next(iter(_only_files(place)), [])
        parts += [part._replace(split=split) for part in group]
        without += [] if group else [f"{place.name}/"]
    if parts and without:
        notes.append(f"no captions in {first_three(without)}: left out")
    if parts and others:
        notes.append(f"in no folder of a split, and not read: {first_three(others)}")
    return [parts] if parts else []


def _without_files(folder: Path) -> list[list[Part]]:
    """What forms that have no file of their own find."""
    places = [place for form in FORMATS if form.finds is not None and (place := form.finds(folder)) is not None]
    return [[Part(place, folder)] for place in places]


def _only_files(folder: Path) -> list[list[Part]]:
    """The only file whose name ends like a captions file, or several of them that each name a split."""
    suffixes = {suffix for form in FORMATS for suffix in form.suffixes}
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and path.is_file() and not is_companion(path.name)
    )
    if len(files) > 1 and not all(named_split(path.stem) for path in files):
        raise DataError(
            f"{folder}: {first_three([path.name for path in files])} may each hold the captions; name the file "
            "(--captions FILE)"
        )
    return [_together(folder, files)] if files else []


def _together(folder: Path, files: list[Path]) -> list[Part]:
    return [Part(path, folder, named_split(path.stem)) for path in files]


def _image_folder(folder: Path, part: Part, read: CaptionFile, reading: Reading) -> ImageFolder:
    """The first candidate that holds an image of the captions; where none does, the first that exists."""
    if read.shard is not None and read.images is not None:
        return ShardImages(read.shard, read.images)
    if reading.images is not None:
        given = given_place(reading.images, folder)
        if not given.is_dir():
            raise DataError(f"--images {reading.images}: there is no such folder")
        return ImageFolder(given, follow_links=reading.follow_links)
    places = [part.folder / name for name in (*read.image_folders, *IMAGE_FOLDERS)] + [part.file.parent]
    candidates = [
        ImageFolder(place, follow_links=reading.follow_links) for place in dict.fromkeys(places) if place.is_dir()
    ]
    wanted = list(dict.fromkeys(read.image_names))
    for lenient in (False, True):
        for images in candidates:
            if any(images.holds(name, lenient=lenient) for name in wanted):
                return images
    return candidates[0]


def _prefix(folder: Path, part: Part, read: CaptionFile, images: ImageFolder, prefixes: dict[str, Path]) -> str:
    """What tells the images of this part from those of others: their folder, or the archive that they lie in.

    prefixes: those of the parts before, each with its folder of images.
    """
    if read.named:
        return ""
    if str(images.base) in read.image_folders or read.shard is not None:  # unpacked into the cache, or a shard
        within = folder if part.file.is_relative_to(folder) else part.folder
        return part.file.relative_to(within).with_suffix("").as_posix() + "/"
    prefix = f"{images.base.name}/"
    if prefixes.setdefault(prefix, images.base) != images.base and images.base.is_relative_to(folder):
        return images.base.relative_to(folder).as_posix() + "/"  # `train/images` after `test/images`
    return prefix


def _splits_by_folder(images: list[ImageFile]) -> dict[int, str]:
    """The splits of the images that lie in a folder named like one, by row."""
    found = {}
    for row, image in enumerate(images):
        if "/" not in image.name:
            continue
        words = [named_split(part) for part in image.name.split("/")[:-1]]
        split = next((word for word in words if word), None)
        if split is not None:
            found[row] = split
    return found


def _locate(images: ImageFolder, read: CaptionFile) -> dict[str, ImageFile | None]:
    """The image of each name in the captions, in order of their first captions; None where it is missing."""
    located: dict[str, ImageFile | None] = {}
    for name, line in zip(read.image_names, read.lines, strict=True):
        if name not in located:
            try:
                located[name] = images.find(name)
            except DataError as error:
                raise DataError(f"{read.path}{f' line {line}' if line else ''}: {error}") from None
    return located


def _lenience(read: CaptionFile, located: dict[str, ImageFile | None]) -> list[str]:
    """A note for each way in which names are not those of their files."""
    ways: dict[str, list[str]] = {}
    for name, image in located.items():
        if image and image.unlike:
            ways.setdefault(image.unlike, []).append(f"{shown(name)} is {shown(image.name)}")
    return [f"{read.path.name}: {len(names):,} image names {way}: {first_three(names)}" for way, names in ways.items()]
