"""Reads captions files in the forms people have: CSV, `name.jpg#k<TAB>caption`, Karpathy's JSON, COCO's JSON.

What becomes of each line of a text form:

* blank lines are left out; a byte-order mark and any of the line ends LF, CRLF, CR are understood;
* CSV needs commas. A header (`image,caption`, in any order and with further columns) is used where there is one;
  without it the columns are image and caption. A caption with commas outside quotes is everything after the first
  comma, and a note counts those lines. A quoted caption may run over a few lines, which become one line with spaces;
* an empty caption is an error, unless `skip_empty` leaves it out and notes it;
* the five captions of `2258277193_586949ec62.jpg.1`, a known slip of Flickr8k.token.txt, are left out with a note;
* anything else (NUL, bytes that are not UTF-8, another delimiter, an unclosed quote, a missing column, an overlong
  line) is a `DataError` that names file and line and says what to do.

Time and memory are bounded by the size of the file, which may be at most `MAX_FILE_BYTES`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from varalign.data.caption_file import MAX_LINE_BYTES, CaptionFile
from varalign.data.captions_json import read_json_captions
from varalign.data.errors import DataError, first_three, shown
from varalign.data.files import MAX_FILE_BYTES, read_bytes

MAX_QUOTED_LINES = 16
KNOWN_SLIP = "2258277193_586949ec62.jpg.1"

IMAGE_COLUMNS = ("image", "image_name", "file_name", "filename")
CAPTION_COLUMNS = ("caption", "comment", "text")
_SUFFIX = r"\.(?:jpe?g|png|webp|gif|bmp|mpo)"
_TOKEN_LINE = re.compile(r"([^\t]*)#(\d{1,9})[ ]*\t(.*)", re.DOTALL)
_ROW_START = re.compile(rf'"?[^",]{{1,1000}}{_SUFFIX}"?\s*,', re.IGNORECASE)
_OTHER_DELIMITER = re.compile(
    rf'"?(?:[^,;|\t]{{1,1000}}{_SUFFIX}(?:#\d+)?|image(?:_name)?|caption)"?\s*([;|\t])', re.IGNORECASE
)
_DELIMITER_NAMES = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def read_captions(path: Path | str, *, skip_empty: bool = False) -> CaptionFile:
    """Read a captions file, whichever of the known forms it has.

    skip_empty: leave out rows whose caption is empty, instead of refusing the file.
    Raises DataError for everything that cannot be read as said at the top of this module.
    """
    path = Path(path)
    text = _read_text(path)
    if path.suffix.lower() == ".json" or text[:256].lstrip()[:1] in ("{", "["):
        found = read_json_captions(path, text)
    else:
        lines = _split_lines(path, text)
        first = next((line for line in lines if line.strip()), "")
        if not first:
            raise DataError(
                f"{path}: the file is empty; wanted lines like 'name.jpg,caption' or 'name.jpg#0<TAB>caption'"
            )
        rows = _token_rows(path, lines) if _TOKEN_LINE.fullmatch(first) else _CsvRows(path, lines)
        triples = list(rows)
        found = CaptionFile(path, [t[1] for t in triples], [t[2] for t in triples], [t[0] for t in triples])
        if isinstance(rows, _CsvRows):
            found.notes.extend(rows.notes())
    return _without_empty(_without_known_slip(found), skip_empty)


def _read_text(path: Path) -> str:
    data = read_bytes(path, MAX_FILE_BYTES)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: the text is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {path.name} > new.txt")
    if data[:4] == b"PK\x03\x04" or data[:2] == b"\x1f\x8b":
        raise DataError(f"{path}: a compressed archive, not a captions file; unpack it first")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        raise DataError(
            f"{path} line {_line_of(before)}: byte 0x{data[error.start]:02x} is not UTF-8; if the file is Latin-1 or "
            f"Windows-1252, convert it: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > new.txt"
        ) from None
    nul = text.find("\0")
    if nul >= 0:
        line = _line_of(text[:nul].encode())
        raise DataError(
            f"{path} line {line}: a NUL character; the file is damaged or not a text: mend or remove the line"
        )
    return text


def _line_of(before: bytes) -> int:
    return 1 + before.replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n")


def _split_lines(path: Path, text: str) -> list[str]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE_BYTES // 4 and len(line.encode()) > MAX_LINE_BYTES:
            raise DataError(
                f"{path} line {number}: {len(line.encode()):,} bytes long, more than the {MAX_LINE_BYTES:,} a line "
                "may have; mend or remove it"
            )
    return lines


def _token_rows(path: Path, lines: list[str]) -> Iterator[tuple[int, str, str]]:
    """(line, image name, caption) of `name.jpg#k<TAB>caption` lines."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _TOKEN_LINE.fullmatch(line)
        if match is None:
            raise DataError(
                f"{path} line {number}: wanted 'name.jpg#0<TAB>caption' as in the lines above, got {shown(line)}"
            )
        name = match[1].strip()
        if not name:
            raise DataError(f"{path} line {number}: no image name before '#'; wanted 'name.jpg#0<TAB>caption'")
        yield number, name, match[3].strip()


class _CsvRows:
    """Iterates (line, image name, caption) over the rows of a CSV file."""

    def __init__(self, path: Path, lines: list[str]) -> None:
        self.path, self.lines = path, lines
        self.columns, self.image, self.caption = 2, 0, 1
        self.bare_commas: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, str, str]]:
        first = True
        for number, fields, line in self._records():
            if first:
                first = False
                if self._take_header(number, fields, line):
                    continue
            yield self._row(number, fields, line)

    def notes(self) -> list[str]:
        if not self.bare_commas:
            return []
        return [
            f"{self.path.name}: {len(self.bare_commas):,} lines have commas outside quotes (first: line "
            f"{self.bare_commas[0]}); their caption is everything after the first comma"
        ]

    def _records(self) -> Iterator[tuple[int, list[str], str]]:
        """(first line, fields, text) of each record; only quoted fields need csv's rules, and they may span lines."""
        position = 0
        while position < len(self.lines):
            number, line = position + 1, self.lines[position]
            position += 1
            if not line.strip():
                continue
            if '"' not in line:
                yield number, line.split(","), line
                continue
            fields = self._parse(number, line)
            while fields is None:
                following = self.lines[position] if position < len(self.lines) else None
                if following is None or position - number >= MAX_QUOTED_LINES or _ROW_START.match(following):
                    raise DataError(
                        f'{self.path} line {number}: a quote (") is opened and not closed; close it at the end of the '
                        'caption, and write a quote inside a quoted caption as ""'
                    )
                line += "\n" + following
                position += 1
                fields = self._parse(number, line)
            yield number, fields, line

    def _parse(self, number: int, line: str) -> list[str] | None:
        """The fields of a record, or None where a quote is still open at its end."""
        try:
            return next(csv.reader([line], strict=True))
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                return None
            raise DataError(
                f'{self.path} line {number}: a quote (") is closed in the middle of a caption; write a quote inside a '
                f'quoted caption as "": {shown(line)}'
            ) from None

    def _take_header(self, number: int, fields: list[str], line: str) -> bool:
        """Use the first record as a header where it is one."""
        self._refuse_other_delimiter(number, line)
        names = [name.strip().lower() for name in fields]
        image = [i for i, name in enumerate(names) if name in IMAGE_COLUMNS]
        caption = [i for i, name in enumerate(names) if name in CAPTION_COLUMNS]
        if len(image) == 1 and len(caption) == 1:
            self.columns, self.image, self.caption = len(names), image[0], caption[0]
            return True
        if len(fields) < 2 or "." not in fields[0]:
            raise DataError(
                f"{self.path} line {number}: wanted a header (image,caption) or a row (name.jpg,caption), got "
                f"{shown(line)}"
            )
        return False

    def _row(self, number: int, fields: list[str], line: str) -> tuple[int, str, str]:
        if len(fields) > 2 and self.columns == 2 and self.image == 0 and '"' not in line:
            self.bare_commas.append(number)
            fields = line.split(",", 1)
        if len(fields) != self.columns:
            self._refuse_other_delimiter(number, line)
            raise DataError(
                f"{self.path} line {number}: {len(fields)} columns where {self.columns} are wanted; put a caption that "
                f'has commas in quotes ("…"): {shown(line)}'
            )
        name = fields[self.image].strip()
        if not name:
            raise DataError(f"{self.path} line {number}: no image name: {shown(line)}; wanted name.jpg,caption")
        self._refuse_other_delimiter(number, name)
        return number, name, " ".join(fields[self.caption].split("\n")).strip()

    def _refuse_other_delimiter(self, number: int, line: str) -> None:
        match = _OTHER_DELIMITER.match(line)
        if match:
            raise DataError(
                f"{self.path} line {number}: the columns are separated by {_DELIMITER_NAMES[match[1]]}; wanted commas "
                f"(name.jpg,caption): save the file as comma-separated values: {shown(line)}"
            )


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
    return CaptionFile(
        found.path,
        [found.image_names[i] for i in keep],
        [found.captions[i] for i in keep],
        [found.lines[i] for i in keep],
        found.splits,
        [*found.notes, note],
        found.empty_lines,
    )
