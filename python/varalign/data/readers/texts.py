"""Texts without images: a caption a line, or the captions of any captions file, with or without a column of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from varalign.data.errors import DataError
from varalign.data.files import open_user_file, readable
from varalign.data.json_file import load_json
from varalign.data.readers.caption_file import CaptionSource, checked_text, first_line, one_line
from varalign.data.readers.captions import FORMATS, read_captions
from varalign.data.readers.captions_delimited import DELIMITED, FLICKR30K, names_images
from varalign.data.readers.captions_records import JSON_LINES
from varalign.data.readers.columns import NO_IMAGES
from varalign.data.readers.reading import Reading

_LINES = (".txt", ".text", "")
"""Ends of the names of files that are texts, a caption a line, unless their content names images."""


def read_texts(path: Path, reading: Reading = Reading()) -> tuple[list[str], list[str]]:
    """The captions of a file, and the notes that the user should see.

    * `.txt`: a caption a line, unless its first line has the image's name or is a header with columns of images and
      captions;
    * `.jsonl` whose lines are JSON strings, as `STEM.texts.jsonl` beside a features file;
    * everything else as captions files are read, in any of their forms; tables and records need no column of images.

    Empty captions are left out, with a note.

    Raises:
        DataError: the file is absent, empty, or in no such form.
    """
    with readable(path):
        source = CaptionSource(path, reading)
        suffix = path.suffix.lower()
        if suffix in _LINES:
            with open_user_file(path) as file:
                if not file.read(1 << 16).strip():
                    raise DataError(f"{path}: no text in the file; wanted a text a line")
        if suffix in JSON_LINES.suffixes and first_line(source.beginning).lstrip().startswith('"'):
            return _strings(source), source.notes
        others = [form for form in FORMATS if form not in (DELIMITED, FLICKR30K)]
        if suffix in _LINES and not any(form.knows(source) for form in others) and not names_images(source):
            lines = (one_line(line) for _, line in source.lines())
            return [line for line in lines if line], source.notes
    found = read_captions(path, replace(reading, image_column=NO_IMAGES), skip_empty=True)
    return found.captions, found.notes


def _strings(source: CaptionSource) -> list[str]:
    texts = []
    for number, line in source.lines():
        if line.strip():
            value = load_json(source.path, line, f" line {number}")
            texts.append(one_line(checked_text(source.path, f"line {number}", value)))
    if not any(texts):
        raise DataError(f"{source.path}: no text in the file; wanted a JSON string a line")
    return [text for text in texts if text]
