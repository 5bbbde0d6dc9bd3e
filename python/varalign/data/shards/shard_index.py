"""The index of a tar shard: each sample's name, where its image lies, its captions and its split.

Members of one key (the name up to its first dot) are a sample: an image, captions in `.txt`, `.caption` or `.text` (a
line a caption), and a `.json` (an object) that may hold captions instead, the split and the image's `file_name`. Only
regular members are read: links, devices and sparse files are passed over, and no member's name is used as a path.

An index is a text file: a line of facts on the shard, and a JSON array a line for each sample. One of a local shard is
kept in the cache under a key of the file's place, size, times and inode.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from varalign.data.errors import DataError, first_three, shown
from varalign.data.files import cache_key, open_user_file, read_bytes, write_atomically
from varalign.data.readers.caption_file import CaptionSource, checked_text, one_line, split_lines
from varalign.data.readers.captions_records import captions_of
from varalign.data.readers.columns import SPLIT_COLUMNS, chosen_column, find_columns
from varalign.data.readers.image_folder import is_companion, is_image_name

FORMAT = 1
"""Raised whenever what an index says of the same shard changes."""
INDEX_SUFFIX = ".index.jsonl"
"""What follows a shard's name in that of the index beside it, which spares readers of a remote shard a download."""

MAX_IMAGE_BYTES = 1 << 30
MAX_TEXT_BYTES = 1 << 20
_MAX_INDEX_BYTES = 1 << 30
_TEXTS = ("txt", "caption", "text")
"""Ends of members that hold captions alone, the preferred first."""

Members = dict[str, dict[str, tarfile.TarInfo]]


class Sample(NamedTuple):
    """A sample of a shard.

    name: of the image. offset, size: where its bytes lie. digest: their SHA-256 in hex; empty where it was not taken.
    captions: one empty one where there is none. split: the word for its split, if any. named: whether the shard says
    what the image's file was called, in `file_name`; else `name` is that of the member.
    """

    name: str
    offset: int
    size: int
    digest: str
    captions: list[str]
    split: str = ""
    named: bool = False


@dataclass(frozen=True)
class ShardIndex:
    """What a shard holds.

    samples: those with an image, in the order of the archive. without: names of texts without an image, with captions.
    notes: lines that the user should see. length, digest: bytes of the whole shard and their SHA-256 in hex; 0 and
    empty for a local one. columns: the image's and the caption's, as `Reading` has them.
    """

    samples: list[Sample]
    without: dict[str, list[str]]
    notes: list[str]
    length: int = 0
    digest: str = ""
    columns: tuple[str | None, str | None] = (None, None)

    def to_bytes(self) -> bytes:
        """The index as a file."""
        lines = [json.dumps(sample, ensure_ascii=False) for sample in self.samples]
        body = "".join(f"{line}\n" for line in lines).encode()
        facts = {"without": self.without, "notes": self.notes, "length": self.length, "digest": self.digest}
        head = {"varalign_shard_index": FORMAT, **facts, "columns": self.columns, "body": _sha256(body)}
        return json.dumps(head, ensure_ascii=False).encode() + b"\n" + body

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardIndex:
        """The index in a file that may be another's; ValueError where it is damaged, or of another format."""
        first, _, body = data.partition(b"\n")
        head: Any = json.loads(first)
        if not isinstance(head, dict) or head.get("varalign_shard_index") != FORMAT or head["body"] != _sha256(body):
            raise ValueError("damaged, or of another version of varalign")
        samples = [Sample(*json.loads(line)) for line in body.splitlines()]
        columns = head["columns"]
        index = cls(samples, head["without"], head["notes"], head["length"], head["digest"], (columns[0], columns[1]))
        index.check()
        return index

    def check(self) -> None:
        """ValueError where a value is of another type than it should be, or a place lies nowhere."""
        for s in self.samples:
            right = _are(str, s.name, s.digest, s.split, *s.captions) and _are(int, s.offset, s.size)
            if not (right and s.captions and type(s.named) is bool and min(s.offset, s.size) >= 0):
                raise ValueError("not of the form that varalign writes")
            if s.name != safe_name(s.name):
                raise ValueError(f"the name {shown(s.name)} leads out of a folder")
        texts = [*self.without, *(text for texts in self.without.values() for text in texts)]
        if not (_are(str, self.digest, *self.notes, *texts) and _are(int, self.length)):
            raise ValueError("not of the form that varalign writes")


def _are(kind: type, *values: Any) -> bool:
    return all(type(value) is kind for value in values)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def local_index(source: CaptionSource, cache: Path) -> ShardIndex:
    """The index of a local shard, from the cache or made now and kept there, if it can be written.

    Raises:
        DataError: the shard is damaged, or a sample's text is.
    """
    with open_user_file(source.path) as file:
        state = os.fstat(file.fileno())
        place = (os.path.realpath(source.path), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        columns = (source.reading.image_column, source.reading.caption_column)
        kept = cache / "shards" / f"{cache_key(FORMAT, *place, *columns)[:32]}{INDEX_SUFFIX}"
        index = kept_index(kept)
        if index is None:
            index = index_of(source, file)
            with suppress(OSError):  # it is made anew next time
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(kept, index.to_bytes())
        return index


def kept_index(path: Path) -> ShardIndex | None:
    """The index that was kept in this file; None where it is not there or is damaged."""
    try:
        return ShardIndex.from_bytes(read_bytes(path, _MAX_INDEX_BYTES))
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None


def index_of(source: CaptionSource, file: BinaryIO, *, digest: str = "") -> ShardIndex:
    """Read a shard and index it.

    Args:
        source: the shard; its path is for messages, and what readers note goes to its `notes` too.
        file: the shard, open.
        digest: SHA-256 of the shard in hex, of a remote one; the images' are then taken too.

    Raises:
        DataError: the archive is damaged, two images have one key, or a text cannot be read.
    """
    before = len(source.notes)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            members = _members(source, file, archive)
            samples, without = _samples(source, archive, members, bool(digest))
    except (tarfile.TarError, EOFError) as error:
        raise _damaged(source.path, str(error)) from None
    if not any(sample.captions != [""] for sample in samples):
        raise DataError(
            f"{source.path}: no member is an image with a .txt, .caption or .json of the same name; where the archive "
            "holds a data folder, unpack it: tar -xf"
        )
    columns = (source.reading.image_column, source.reading.caption_column)
    length = file.seek(0, os.SEEK_END) if digest else 0
    return ShardIndex(samples, without, source.notes[before:], length, digest, columns)


def _damaged(path: Path, why: str, last: str = "") -> DataError:
    after = f" behind {shown(last)}" if last else ""
    return DataError(f"{path}: not a whole tar archive: {why}{after}; copy or download the shard again")


def _members(source: CaptionSource, file: BinaryIO, archive: tarfile.TarFile) -> Members:
    """The members of each key by the ends of their names, in the order of the archive; DataError if it is damaged."""
    path = source.path
    found: Members = {}
    names: set[str] = set()
    last = ""
    for member in _whole(archive, path):
        if member.name in names and member.isreg():
            raise DataError(
                f"{path}: two members are named {shown(member.name)}; give each a name of its own, or keep the shards "
                "that were joined apart"
            )
        names.add(member.name)
        last = member.name
        parent, _, leaf = member.name.rpartition("/")
        stem, dot, end = leaf.partition(".")
        if member.isreg() and not member.issparse() and stem and dot and not is_companion(leaf):
            found.setdefault(f"{parent}/{stem}", {})[end.lower()] = member
    # tarfile takes a damaged header behind the first member for the end of the archive.
    file.seek(archive.offset)
    rest = file.read(tarfile.BLOCKSIZE)
    if rest.strip(b"\0") or 0 < len(rest) < tarfile.BLOCKSIZE or file.seek(0, 2) < archive.offset:
        raise _damaged(path, f"the header at byte {archive.offset:,} is damaged or cut", last)
    if not rest:
        source.notes.append(f"{path.name}: the mark at the end of the archive is missing; it may be cut short")
    return found


def _whole(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """The members; DataError naming the last one where the archive is damaged behind it."""
    last = ""
    try:
        for member in archive:
            last = member.name
            yield member
    except tarfile.TarError as error:
        raise _damaged(path, str(error), last) from None


def _samples(
    source: CaptionSource, archive: tarfile.TarFile, members: Members, digests: bool
) -> tuple[list[Sample], dict[str, list[str]]]:
    samples: list[Sample] = []
    without: dict[str, list[str]] = {}
    for key, ends in members.items():
        image = _image(source, key, ends)
        text = _text(source, archive, ends)
        if image is None:
            if text.found:
                without[safe_name(text.name)] = list(text.captions)
            continue
        if image.size > MAX_IMAGE_BYTES:
            raise DataError(
                f"{source.path}: {shown(image.name)} has {image.size:,} bytes, more than {MAX_IMAGE_BYTES:,}"
            )
        name = safe_name(text.file_name or image.name)
        digest = _sha256(_bytes(source, archive, image, MAX_IMAGE_BYTES)) if digests else ""
        place = (image.offset_data, image.size)
        samples.append(Sample(name, *place, digest, list(text.captions) or [""], text.split, bool(text.file_name)))
    return samples, without


def _image(source: CaptionSource, key: str, ends: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The image of a sample: `key.jpg` before `key.seg.png`; DataError where two are as good."""
    images = [end for end in ends if is_image_name(f"x.{end}")]
    plain = [end for end in images if "." not in end] or images
    if len(plain) > 1:
        names = first_three([shown(ends[end].name) for end in plain])
        raise DataError(
            f"{source.path}: sample {shown(key.strip('/'))} has {len(plain)} images, {names}; keep one of them, or "
            "give each a key of its own, with captions"
        )
    return ends[plain[0]] if plain else None


class _Text(NamedTuple):
    """What a sample's texts say. name: of the member with the captions. found: whether one can hold captions."""

    name: str = ""
    found: bool = False
    captions: Sequence[str] = ()
    split: str = ""
    file_name: str = ""


def _text(source: CaptionSource, archive: tarfile.TarFile, ends: dict[str, tarfile.TarInfo]) -> _Text:
    lines = next((ends[end] for end in _TEXTS if end in ends), None)
    text = _Text()
    if "json" in ends:
        text = _json(source, archive, ends["json"], wanted=lines is None)
    if lines is not None:
        where = shown(lines.name)
        content = _decoded(source, where, _bytes(source, archive, lines, MAX_TEXT_BYTES))
        found = [one_line(checked_text(source.path, where, line)) for line in split_lines(content) if line.strip()]
        text = text._replace(name=lines.name, found=True, captions=found)
    return text


def _json(source: CaptionSource, archive: tarfile.TarFile, member: tarfile.TarInfo, *, wanted: bool) -> _Text:
    """What a sample's `.json` says. wanted: whether it has to hold captions."""
    where = shown(member.name)
    content = _decoded(source, where, _bytes(source, archive, member, MAX_TEXT_BYTES))
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise DataError(f"{source.path}: {where} is not valid UTF-8, or no valid JSON") from None
    record: dict[str, Any] = value if isinstance(value, dict) else {}
    captions: list[str] = []
    if wanted:
        columns = find_columns(["file_name", *record], source.reading)
        if columns is None or columns.caption not in record:
            raise DataError(f"{source.path}: {where} has no caption (--caption-column NAME says what it is called)")
        read = captions_of(source, f"{where}.{columns.caption}", record[columns.caption])
        captions = [read] if isinstance(read, str) else read
    column = chosen_column(list(record), None, SPLIT_COLUMNS)
    split, name = record.get(column) if column is not None else None, record.get("file_name")
    split = checked_text(source.path, f"{where}.{column}", split) if isinstance(split, str) else ""
    name = checked_text(source.path, f"{where}.file_name", name) if isinstance(name, str) else ""
    return _Text(member.name, wanted, captions, split, name)


def _decoded(source: CaptionSource, where: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except ValueError:
        raise DataError(f"{source.path}: {where} is not valid UTF-8, or no valid JSON") from None


def _bytes(source: CaptionSource, archive: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes:
    if member.size > limit:
        raise DataError(f"{source.path}: {shown(member.name)} has {member.size:,} bytes, more than {limit:,}")
    file = archive.extractfile(member)
    assert file is not None, "a regular file"
    data = file.read()
    if len(data) < member.size:
        raise _damaged(source.path, f"{shown(member.name)} is cut short")
    return data


def safe_name(name: str) -> str:
    """A member's name without what leads out of a folder, and without characters that cannot be printed."""
    parts: Iterable[str] = name.replace("\\", "/").split("/")
    parts = ("".join(c for c in part if c.isprintable()) for part in parts if not re.fullmatch(r"[A-Za-z]:", part))
    return "/".join(part for part in parts if part.strip() not in ("", ".", "..")) or "image"
