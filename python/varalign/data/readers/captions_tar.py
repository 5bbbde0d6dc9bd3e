"""Captions in tar shards, as the library `webdataset` and the tool img2dataset write them.

Members of one stem are an example: an image, and `.txt` or `.caption` (a line a caption) or `.json` (an object with a
caption). Members are read in place, and only regular files are: links, devices and sparse files are passed over, and no
member's path is used as a path.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from varalign.data.errors import DataError, first_three, shown
from varalign.data.files import file_digest, open_user_file
from varalign.data.readers.caption_file import (
    CaptionFile,
    CaptionFormat,
    CaptionSource,
    checked_text,
    one_line,
    split_lines,
)
from varalign.data.readers.captions_records import captions_of
from varalign.data.readers.columns import find_columns
from varalign.data.readers.image_folder import is_companion, is_image_name
from varalign.data.readers.unpacked import Example, unpack

MAX_IMAGE_BYTES = 1 << 30
MAX_TEXT_BYTES = 1 << 20

_TEXTS = ("txt", "caption", "text", "json")
"""Ends of members that hold captions, the preferred first."""


def _read(source: CaptionSource) -> CaptionFile:
    path = source.path
    with open_user_file(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                examples = _examples(source, archive, _members(source, file, archive))
                return unpack(source, file_digest(path).hex(), examples, "tar shard")
        except tarfile.TarError as error:
            raise DataError(f"{path}: not a whole tar archive: {error}") from None


def _members(source: CaptionSource, file: BinaryIO, archive: tarfile.TarFile) -> dict[str, dict[str, tarfile.TarInfo]]:
    """The members of each stem by the ends of their names, in the order of the archive; DataError if it is damaged."""
    path = source.path
    found: dict[str, dict[str, tarfile.TarInfo]] = {}
    names: set[str] = set()
    for member in archive:
        if member.name in names and member.isreg():
            raise DataError(
                f"{path}: two members are named {shown(member.name)}; give each a name of its own, or keep the shards "
                "that were joined apart"
            )
        names.add(member.name)
        parent, _, leaf = member.name.rpartition("/")
        stem, dot, end = leaf.partition(".")
        if member.isreg() and not member.issparse() and stem and dot and not is_companion(leaf):
            found.setdefault(f"{parent}/{stem}", {})[end.lower()] = member
    # tarfile takes a damaged header behind the first member for the end of the archive.
    file.seek(archive.offset)
    rest = file.read(tarfile.BLOCKSIZE)
    if rest.strip(b"\0") or 0 < len(rest) < tarfile.BLOCKSIZE or file.seek(0, 2) < archive.offset:
        raise DataError(f"{path}: not a whole tar archive: the header at byte {archive.offset:,} is damaged or cut")
    if not rest:
        source.notes.append(f"{path.name}: the mark at the end of the archive is missing; it may be cut short")
    return found


def _examples(
    source: CaptionSource, archive: tarfile.TarFile, members: dict[str, dict[str, tarfile.TarInfo]]
) -> Iterator[Example]:
    images = {stem: next((end for end in ends if is_image_name(f"x.{end}")), "") for stem, ends in members.items()}
    texts = {stem: next((end for end in _TEXTS if end in ends), "") for stem, ends in members.items()}
    whole = [stem for stem in members if images[stem] and texts[stem]]
    if not whole:
        raise DataError(
            f"{source.path}: no member is an image with a .txt, .caption or .json of the same name; where the archive "
            "holds a data folder, unpack it: tar -xf"
        )
    for what, other, stems in (("images", "a caption", images), ("captions", "an image", texts)):
        alone = [shown(stem.strip("/")) for stem in members if stems[stem] and not (images[stem] and texts[stem])]
        if alone:
            source.notes.append(
                f"{source.path.name}: {len(alone):,} {what} without {other} beside them are left out: "
                f"{first_three(alone)}"
            )
    for stem in whole:
        image, text = members[stem][images[stem]], members[stem][texts[stem]]
        data = _bytes(source, archive, image, MAX_IMAGE_BYTES)
        captions = _captions(source, text.name, _bytes(source, archive, text, MAX_TEXT_BYTES))
        yield Example(image.name, data, captions)


def _bytes(source: CaptionSource, archive: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes:
    if member.size > limit:
        raise DataError(f"{source.path}: {shown(member.name)} has {member.size:,} bytes, more than {limit:,}")
    file = archive.extractfile(member)
    assert file is not None, "a regular file"
    return file.read()


def _captions(source: CaptionSource, name: str, data: bytes) -> list[str]:
    where = shown(name)
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text) if name.lower().endswith(".json") else None
    except (ValueError, RecursionError):
        raise DataError(f"{source.path}: {where} is not valid UTF-8, or no valid JSON") from None
    if value is None:
        return [one_line(checked_text(source.path, where, line)) for line in split_lines(text) if line.strip()] or [""]
    columns = find_columns(["file_name", *value], source.reading) if isinstance(value, dict) else None
    if columns is None:
        raise DataError(f"{source.path}: {where} has no caption (--caption-column NAME says what it is called)")
    captions = captions_of(source, f"{where}.{columns.caption}", value[columns.caption])
    return [captions] if isinstance(captions, str) else captions


TAR = CaptionFormat(files=("*.tar",), knows=lambda source: source.head[257:262] == b"ustar", read=_read)
