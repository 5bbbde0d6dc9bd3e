"""Captions in a text file beside each image: `a.txt` or `a.caption` for `a.jpg`, a line a caption.

Images may lie in subfolders. Images without a text are counted in a note.
"""

from __future__ import annotations

import os
from pathlib import Path

from varalign.data.errors import DataError, first_three, shown
from varalign.data.readers.caption_file import CaptionFile, CaptionFormat, CaptionSource, Pairs, split_lines
from varalign.data.readers.columns import Columns
from varalign.data.readers.image_folder import IMAGE_FOLDERS, ImageFolder
from varalign.data.readers.text_file import read_text

SUFFIXES = (".txt", ".caption")


def _texts_beside(base: Path, name: str) -> list[Path]:
    stem = os.path.splitext(base / name)[0]
    return [Path(stem + suffix) for suffix in SUFFIXES if os.path.isfile(stem + suffix)]


def _finds(folder: Path) -> Path | None:
    """The first folder of images in which a text lies beside one."""
    for place in (folder / name for name in IMAGE_FOLDERS):
        if place.is_dir() and any(_texts_beside(place, name) for name in ImageFolder(place).all_names()):
            return place
    return None


def _read(source: CaptionSource) -> CaptionFile:
    base, pairs = source.path, Pairs(source, Columns("", "", None))
    folder = ImageFolder(base, follow_links=source.reading.follow_links)
    without: list[str] = []
    encodings: list[str] = []
    names = folder.all_names()
    for name in names:
        texts = _texts_beside(base, name)
        if not texts:
            without.append(shown(name))
            continue
        lines = [line.strip() for text in texts for line in split_lines(read_text(text, encodings))]
        captions = list(dict.fromkeys(line for line in lines if line))
        pairs.add(0, f"image {shown(name)}", name, captions or "")
    if len(without) == len(names):
        raise DataError(f"{base}: not a file but a folder, and no image in it has a .txt or .caption beside it")
    if encodings:
        source.notes.append(f"{len(encodings):,} texts are not UTF-8: {encodings[0]}")
    if without:
        source.notes.append(
            f"{len(without):,} images have no text beside them and are left out: {first_three(without)}"
        )
    return pairs.done("a text beside each image", image_folders=(str(base.absolute()),))


BESIDE = CaptionFormat(files=(), knows=lambda source: source.path.is_dir(), read=_read, finds=_finds)
