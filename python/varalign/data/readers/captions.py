"""Reads a captions file, whichever of the known forms it has.

A new form is a file with a `CaptionFormat`, and a row in `FORMATS`. For all of them:

* blank lines are left out; a byte-order mark and any of the line ends LF, CRLF, CR are understood; a text is UTF-8,
  UTF-16 or Windows-1252, and a note says where it is not UTF-8;
* an empty caption is an error, unless `skip_empty` leaves it out and notes it;
* the five captions of `2258277193_586949ec62.jpg.1`, a known slip of Flickr8k.token.txt, are left out with a note;
* a column that looks like a split has to say train, dev or test;
* anything else (NUL, another encoding, another delimiter, an unclosed quote, a missing column, an overlong line) is a
  `DataError` that names file and line and says what to do.

Time and memory are bounded by the size of the file. One JSON value may have at most `MAX_FILE_BYTES`; files of lines
may have any size, and of a larger one the pairs alone are in memory (`varalign.data.readers.text_file`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from varalign.data.errors import DataError, first_three, shown
from varalign.data.files import readable
from varalign.data.readers.caption_file import CaptionFile, CaptionSource
from varalign.data.readers.captions_arrow import ARROW
from varalign.data.readers.captions_beside import BESIDE
from varalign.data.readers.captions_delimited import DELIMITED, FLICKR30K
from varalign.data.readers.captions_json import JSON
from varalign.data.readers.captions_parquet import PARQUET
from varalign.data.readers.captions_records import JSON_LINES
from varalign.data.readers.captions_tar import TAR
from varalign.data.readers.captions_token import TOKEN
from varalign.data.readers.reading import Reading
from varalign.data.shards.shard_members import address_of

FORMATS = (DELIMITED, TOKEN, JSON, JSON_LINES, FLICKR30K, PARQUET, TAR, BESIDE, ARROW)
"""In the order in which their files are looked for in a folder. A file is read by the last one that knows it: delimited
text knows every text, and archives are known before any text is read."""

KNOWN_SLIP = "2258277193_586949ec62.jpg.1"


def read_captions(path: Path | str, reading: Reading = Reading(), *, skip_empty: bool = False) -> CaptionFile:
    """Read a captions file, whichever of the known forms it has.

    reading: what the user said of it. skip_empty: leave out rows whose caption is empty, instead of refusing the file.
    Raises DataError for everything that cannot be read as said at the top of this module.
    """
    path = Path(path)
    with readable(path), _naming(path):
        source = CaptionSource(path, reading)
        form = next(form for form in reversed(FORMATS) if form.knows(source))
        return _without_empty(_without_known_slip(form.read(source)), skip_empty)


@contextmanager
def _naming(place: Path) -> Iterator[None]:
    """Within, the messages of DataErrors name a remote place by its address, of which its path lacks a slash."""
    try:
        yield
    except DataError as error:
        address = address_of(place)
        if address is None:
            raise
        raise DataError(str(error).replace(str(place), address)) from None


def _without_known_slip(found: CaptionFile) -> CaptionFile:
    slips = [i for i, name in enumerate(found.image_names) if name == KNOWN_SLIP]
    note = f"{found.path.name}: {len(slips)} captions of {KNOWN_SLIP} left out: a known slip of Flickr8k's own file"
    return _without(found, slips, note) if slips else found


def _without_empty(found: CaptionFile, skip: bool) -> CaptionFile:
    empty = [i for i, caption in enumerate(found.captions) if not caption]
    if len(found.captions) == 0:
        raise DataError(
            f"{found.path}: no caption in the file (a header at most); wanted lines like 'name.jpg,caption'"
        )
    if not empty:
        return found
    where = [f"line {found.lines[i]}" if found.lines[i] else f"image {shown(found.image_names[i])}" for i in empty]
    if not skip:
        raise DataError(
            f"{found.path} {first_three(where)}: the caption is empty; write it, remove the line, or pass "
            "--skip-missing to leave such lines out"
        )
    found.empty_lines.extend(found.lines[i] for i in empty)
    return _without(found, empty, f"{found.path.name}: {len(empty):,} empty captions left out ({first_three(where)})")


def _without(found: CaptionFile, rows: list[int], note: str) -> CaptionFile:
    gone = set(rows)
    keep = [i for i in range(len(found.captions)) if i not in gone]
    return replace(
        found,
        image_names=[found.image_names[i] for i in keep],
        captions=[found.captions[i] for i in keep],
        lines=[found.lines[i] for i in keep],
        notes=[*found.notes, note],
    )
