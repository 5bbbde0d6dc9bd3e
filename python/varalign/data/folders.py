"""Finds a data set's captions files and their images in a folder laid out as people have it.

Captions are the first of the files that `varalign.data.captions.FORMATS` names; a note names the others that are there.
Images lie in the first of these folders that holds an image named in the captions: those that the form of the captions
file names, then Images, images, Flicker8k_Dataset, Flickr8k_Dataset, the folder itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from varalign.data.caption_file import CaptionFile
from varalign.data.captions import FORMATS, read_captions
from varalign.data.errors import DataError, first_three, shown
from varalign.data.image_folder import ImageFile, ImageFolder

IMAGE_FOLDERS = ("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", ".")


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
        located = _locate(images, read)
        _note_other_case(found, read, located)
        prefix = f"{images.base.name}/" if len(files) > 1 else ""
        rows: dict[str, int] = {}
        for name, image in located.items():
            if image is None:
                continue
            rows[name] = row_of.setdefault(image.path, len(row_of))
            if rows[name] == len(found.images):
                found.images.append(image._replace(name=prefix + image.name))
            if read.splits and name in read.splits:
                before, split = found.splits.get(rows[name]), read.splits[name]
                if before not in (None, split):
                    raise DataError(f"{read.path}: image {shown(name)} is in {before} and in {split}; keep it in one")
                found.splits[rows[name]] = split
        for name, caption, line in zip(read.image_names, read.captions, read.lines, strict=True):
            if name in rows:
                found.captions.append(caption)
                owner.append(rows[name])
            else:
                found.missing.append(Missing(path, line, name))
    found.caption_owner = np.array(owner, dtype=np.int64)
    named = {image.path for image in found.images}
    there = [(base / name, name) for base in found.image_folders for name in ImageFolder(base).names()]
    found.bare = [name for path, name in there if path not in named]
    return found


def _caption_files(folder: Path, captions_file: Path | None) -> tuple[list[Path], list[str]]:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "there is no such folder"
        raise DataError(
            f"{folder}: {what}; wanted one with captions.txt and Images/ ('varalign data sample DIR' writes one)"
        )
    if captions_file is not None:
        given = captions_file if captions_file.exists() else folder / captions_file
        return [given], []
    patterns = [pattern for form in FORMATS for pattern in form.files]
    groups = [sorted(path for path in folder.glob(pattern) if path.is_file()) for pattern in patterns]
    groups = [files for files in groups if files]
    if not groups:
        raise DataError(f"{folder}: no captions file; wanted one of {', '.join(patterns)}, or name it")
    others = [str(file.relative_to(folder)) for files in groups[1:] for file in files]
    note = f"captions from {groups[0][0].relative_to(folder)}; also there and not read: {first_three(others)}"
    return groups[0], [note] if others else []


def _image_folder(folder: Path, read: CaptionFile) -> ImageFolder:
    """The first candidate that holds an image of the captions; where none does, the first that exists."""
    names = [*read.image_folders, *IMAGE_FOLDERS]
    candidates = [ImageFolder(folder / name) for name in names if (folder / name).is_dir()]
    wanted = list(dict.fromkeys(read.image_names))
    return next((images for images in candidates if any(images.holds(name) for name in wanted)), candidates[0])


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


def _note_other_case(found: FoundFolder, read: CaptionFile, located: dict[str, ImageFile | None]) -> None:
    other = [f"{shown(name)} is {shown(image.name)}" for name, image in located.items() if image and image.other_case]
    if other:
        found.notes.append(
            f"{read.path.name}: {len(other):,} image names are in another case than their files: {first_three(other)}"
        )
