"""Images that lie inside archives and tables are unpacked once, into a folder of the cache.

The folder has the form `imagefolder` of the library `datasets`: the images, and `metadata.jsonl` with their captions.
Its name is a digest of the bytes that it was made from. It appears whole or not at all, and one whose files are not
those that were written is made anew. Images with the same bytes are one file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from varalign.data.errors import DataError
from varalign.data.files import cache_key, default_cache, read_bytes
from varalign.data.readers.caption_file import CaptionFile, CaptionSource
from varalign.data.readers.captions_records import JSON_LINES
from varalign.data.readers.image_folder import is_image_name
from varalign.data.readers.reading import Reading

VERSION = 1
"""Raised whenever what is written changes."""

_METADATA = "metadata.jsonl"
_WHOLE = "whole.json"
_SUFFIXES = (
    *((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"RIFF", ".webp"), (b"BM", ".bmp")),
    *((b"II*\0", ".tif"), (b"MM\0*", ".tif")),
)
_LONGEST_NAME = 120


class Example(NamedTuple):
    """An image with its captions. name: what it is called there, if anything. split: the word for its split, if any."""

    name: str
    data: bytes
    captions: list[str]
    split: str = ""


def unpack(source: CaptionSource, content: str, examples: Iterable[Example], form: str) -> CaptionFile:
    """The captions of examples whose images are unpacked in the cache, now or before.

    Args:
        source: the archive.
        content: digest of what the examples are made from.
        examples: taken only where they are not unpacked yet.
        form: what the archive is, for people.

    Raises:
        DataError: the cache cannot be written, or the examples' own.
    """
    cache = Path(source.reading.cache) if source.reading.cache is not None else default_cache()
    columns = (source.reading.image_column, source.reading.caption_column)
    folder = cache / "unpacked" / cache_key(VERSION, content, *columns)[:32]
    mark = _mark(folder)
    if mark is not None:
        source.notes += mark["notes"]
    count = 0 if mark is not None else _write_whole(folder, examples, source.notes)
    metadata = CaptionSource(folder / _METADATA, Reading())
    found = JSON_LINES.read(metadata)
    return replace(
        found,
        path=source.path,
        lines=[0] * len(found.lines),
        form=form,
        notes=source.notes,
        image_folders=(str(folder.absolute()),),
        unpacked=count,
    )


def _mark(folder: Path) -> dict[str, Any] | None:
    """What was noted when the folder was written; None where it is not there or is damaged."""
    try:
        mark = json.loads(read_bytes(folder / _WHOLE))
        return dict(mark) if mark == {**_state(folder), "notes": mark["notes"]} else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _state(folder: Path) -> dict[str, object]:
    """The number of images, their bytes, and the digest of the metadata."""
    with os.scandir(folder) as entries:
        sizes = [entry.stat().st_size for entry in entries if entry.name not in (_METADATA, _WHOLE)]
    digest = hashlib.sha256(read_bytes(folder / _METADATA, 1 << 32)).hexdigest()
    return {"images": len(sizes), "bytes": sum(sizes), "metadata": digest}


def _write_whole(folder: Path, examples: Iterable[Example], notes: list[str]) -> int:
    """Write under another name beside the folder, then rename; returns the number of images.

    notes: to which reading the examples adds; they are kept with the images.
    """
    before = len(notes)
    partial: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.partial-"))
        count = _write_files(partial, examples)
        (partial / _WHOLE).write_text(json.dumps({**_state(partial), "notes": notes[before:]}))
        partial.chmod(0o755)
        if folder.exists():  # damaged
            shutil.rmtree(folder)
        os.rename(partial, folder)
        return count
    except OSError as error:
        if _mark(folder):  # another process was faster
            return len(list(folder.iterdir())) - 2
        raise DataError(
            f"{folder}: images cannot be unpacked there: {error.strerror or error}; name another folder (--cache DIR)"
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _write_files(folder: Path, examples: Iterable[Example]) -> int:
    name_of: dict[bytes, str] = {}
    taken: set[str] = set()
    with open(folder / _METADATA, "w", encoding="utf-8", newline="\n") as metadata:
        for number, example in enumerate(examples):
            digest = hashlib.sha256(example.data).digest()
            if digest not in name_of:
                name_of[digest] = _free_name(example, number, taken)
                (folder / name_of[digest]).write_bytes(example.data)
            record = {"file_name": name_of[digest], "text": example.captions, "split": example.split}
            metadata.write(json.dumps(record, ensure_ascii=False) + "\n")
    return len(name_of)


def _free_name(example: Example, number: int, taken: set[str]) -> str:
    """A name for a file that leads nowhere else and that no other image has, in whatever case."""
    leaf = example.name.replace("\\", "/").rpartition("/")[2]
    leaf = "".join(character for character in leaf if character.isprintable() and character not in '<>:"|?*').lstrip(
        "."
    )
    stem, suffix = os.path.splitext(leaf) if is_image_name(leaf) else (leaf, "")
    suffix = suffix or next((end for start, end in _SUFFIXES if example.data.startswith(start)), ".img")
    stem = stem.strip()[:_LONGEST_NAME] or f"{number:06d}"
    name = f"{stem}{suffix}"
    while name.casefold() in taken:
        name = f"{stem}-{number}{suffix}"
        number += 1
    taken.add(name.casefold())
    return name
