"""The names that people give to the columns of images, captions and splits, and to the splits themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, KeysView, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from varalign.data.errors import DataError, first_three, shown
from varalign.data.readers.reading import Reading

IMAGE_COLUMNS = (
    *("image", "image_name", "file_name", "filename", "image_file", "image_filename", "image_path", "filepath"),
    *("file_path", "path", "file", "img", "img_name", "img_path", "picture", "photo", "image_id", "img_id", "id"),
)
"""In order of preference: a table with `id` and `file_name` is read by `file_name`."""
CAPTION_COLUMNS = (
    *("caption", "captions", "comment", "text", "sentence", "sentences", "description", "title", "raw", "prompt"),
    "alt_text",
)
SPLIT_COLUMNS = ("split", "splits", "partition", "subset", "fold", "set", "phase", "usage")
ADDRESS_COLUMNS = ("url", "image_url", "img_url", "image_link", "link", "image_urls", "urls")

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "devel", "development", "eval", "evaluation"), "dev"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "heldout"), "test"),
}
"""What people call the splits. `restval` is Karpathy's: everyone trains on it (Karpathy & Fei-Fei, CVPR 2015)."""

NO_IMAGES = ""
"""As the column of images: captions are read without any, and the captions stand for the images' names."""

UNREACHABLE = (
    "names images by their addresses on the web, and varalign downloads none: download them (img2dataset does, and "
    "writes tar shards that are read here), or add a column with the file of each image"
)


class Columns(NamedTuple):
    """The columns that are read, as they are spelled; `split` is None where there is none."""

    image: str
    caption: str
    split: str | None


def find_columns(names: Sequence[str], reading: Reading) -> Columns | None:
    """The columns to read among `names`, or None where the image's or the caption's is not among them."""
    caption = chosen_column(names, reading.caption_column, CAPTION_COLUMNS)
    if reading.image_column == NO_IMAGES:
        return None if caption is None else Columns(caption, caption, None)
    image = chosen_column(names, reading.image_column, IMAGE_COLUMNS)
    if image is None or caption is None or image == caption:
        return None
    return Columns(image, caption, chosen_column(names, None, SPLIT_COLUMNS))


def require_columns(where: str, names: Sequence[str], reading: Reading) -> Columns:
    """The columns to read among `names`; DataError beginning with `where` where there are none."""
    columns = find_columns(names, reading)
    if columns is None:
        raise refuse_columns(where, names, reading)
    return columns


def refuse_columns(where: str, names: Sequence[str], reading: Reading) -> DataError:
    """The error for columns among which the image's or the caption's is not: it lists them and says what to do."""
    columns = ", ".join(shown(name.strip(), 40) for name in names[:20]) + (" and more" if len(names) > 20 else "")
    for option, name in (("--image-column", reading.image_column), ("--caption-column", reading.caption_column)):
        if name and name not in names:
            return DataError(f"{where}: there is no column {shown(name)} as {option} says; the columns are {columns}")
    if reading.image_column == NO_IMAGES:
        return DataError(f"{where}: the columns are {columns}; say which holds the captions (--caption-column NAME)")
    image = chosen_column(names, reading.image_column, IMAGE_COLUMNS)
    if image is None and chosen_column(names, None, ADDRESS_COLUMNS) is not None:
        return DataError(f"{where}: the file {UNREACHABLE}; its columns are {columns}")
    missing = [
        f"{what} ({option} NAME)"
        for what, option, found in (
            ("the images' names", "--image-column", image),
            ("the captions", "--caption-column", chosen_column(names, reading.caption_column, CAPTION_COLUMNS)),
        )
        if found is None
    ] or ["the images' names and which the captions (--image-column NAME, --caption-column NAME)"]
    return DataError(f"{where}: the columns are {columns}; say which of them holds {' and which '.join(missing)}")


def split_word(text: str) -> str | None:
    """The split that a word stands for, or None."""
    return SPLIT_WORDS.get(text.strip().lower())


def named_split(name: str) -> str | None:
    """The split that the name of a file or folder has as one of its words: `captions_val2017` is dev."""
    found = {SPLIT_WORDS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else None


def check_split_words(path: Path, column: str, words: Iterable[str]) -> None:
    """Refuse a column that looks like a split and says what nobody understands: images of test would be trained on."""
    unknown = sorted({word.strip() for word in words if word.strip() and split_word(word) is None})
    if unknown:
        raise DataError(
            f"{path}: the column {shown(column)} looks like a split, but "
            f"{first_three([shown(word, 40) for word in unknown])} is no split; write train, dev or test there, or "
            "rename the column if it is something else"
        )


_SPLIT_FLAG = r"(is|in)_(train|training|test|val|valid|validation|dev)|(train|test|val|dev)(_set)?"


class OtherColumns:
    """The columns that are not read: other captions get a note, and one that is a split by its words is refused.

    Args:
        path: the file.
        names: all its columns; `used` are those that are read.
        notes: receives the note.

    Raises:
        DataError: a column such as `is_test`, and no column that says the split.
    """

    def __init__(self, path: Path, names: Sequence[str], used: Columns, notes: list[str]) -> None:
        self._path = path
        self._words: dict[str, set[str]] = {}
        captions = [
            name for name in names if _plain(name) in CAPTION_COLUMNS and name not in (used.image, used.caption)
        ]
        if captions:
            notes.append(
                f"{path.name}: captions are read from the column {shown(used.caption, 40)}, not from "
                f"{first_three([shown(name, 40) for name in captions])} (--caption-column NAME says which)"
            )
        flags = [name for name in names if re.fullmatch(_SPLIT_FLAG, _plain(name))] if used.split is None else []
        if flags:
            raise DataError(
                f"{path}: the column {shown(flags[0])} looks like a split; make of it one column split that says "
                "train, dev or test, or remove it"
            )
        if used.split is None:
            self._words = {name: set() for name in names if name not in (used.image, used.caption)}

    @property
    def may_be_splits(self) -> KeysView[str]:
        """The columns that may still be one; where there is none, further rows need not be looked at."""
        return self._words.keys()

    def row(self, values: Mapping[str, object]) -> None:
        """Look at a row."""
        for name in list(self._words):
            value = values.get(name)
            if isinstance(value, str) and split_word(value):
                self._words[name].add(value.strip())
            else:
                del self._words[name]

    def check(self) -> None:
        """DataError where there is such a column: whoever has not renamed it would train on test images."""
        for name, words in self._words.items():
            if len({split_word(word) for word in words}) > 1:
                raise DataError(
                    f"{self._path}: the column {shown(name)} says {first_three(sorted(words))}, so it looks like a "
                    "split; rename it split and it is obeyed, or remove it"
                )


def chosen_column(names: Sequence[str], given: str | None, known: Sequence[str]) -> str | None:
    """The column that the user names, else the first of the known ones that is there."""
    if given is not None:
        return given if given in names else next((name for name in names if _plain(name) == _plain(given)), None)
    by_name = {_plain(name): name for name in reversed(names)}
    return next((by_name[name] for name in known if name in by_name), None)


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())
