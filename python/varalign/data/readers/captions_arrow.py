"""Data sets of the library `datasets` (extra `hf`): a folder that `save_to_disk` wrote, or `hf:NAME` of the hub.

No code of a data set is run: the library reads tables and images only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from varalign.data.errors import DataError, first_three, how_to_install
from varalign.data.files import content_key
from varalign.data.readers.caption_file import CaptionFile, CaptionFormat, CaptionSource, Pairs, checked_text
from varalign.data.readers.captions_records import captions_of
from varalign.data.readers.columns import Columns, OtherColumns, require_columns, split_word
from varalign.data.readers.reading import HUB, of_hub
from varalign.data.readers.unpacked import Example, unpack

TIMEOUT = 5.0
"""Seconds to wait for the hub's first answer."""

Parts = list[tuple[str, Any]]
"""Parts of a data set, each with its split's name; empty for one that is no split."""
Rows = Iterator[tuple[str, Any, Any, str]]


def _read(source: CaptionSource) -> CaptionFile:
    path = source.path
    try:
        import datasets
    except ImportError:
        raise DataError(f"{path}: the library `datasets` reads its data sets: {how_to_install('hf')}") from None
    found = _from_hub(datasets, path.as_posix()) if of_hub(path) else _from_disk(datasets, path.parent)
    parts: Mapping[str, Any] = found if isinstance(found, datasets.DatasetDict) else {"": found}
    odd = [name for name in parts if split_word(name) is None]
    if len(parts) > 1 and odd:
        source.notes.append(f"{path}: parts that are no split, whose images are in none: {first_three(odd)}")
    try:
        return _read_parts(source, datasets, [("" if name in odd else name, part) for name, part in parts.items()])
    except (DataError, OSError, MemoryError):
        raise
    except Exception as error:  # the library raises whatever its parts raise
        raise DataError(f"{path}: the data set is damaged: {_first_line(error)}") from error


def _read_parts(source: CaptionSource, datasets: Any, parts: Parts) -> CaptionFile:
    """The captions of the parts."""
    path = source.path
    for _, part in parts:
        part.data.validate(full=True)  # a damaged offset would end the process
    first = parts[0][1]
    columns = require_columns(str(path), first.column_names, source.reading)
    others = OtherColumns(path, first.column_names, columns, source.notes)
    texts = [name for name in others.may_be_splits if getattr(first.features[name], "dtype", "") == "string"]
    if texts and not any(split for split, _ in parts):
        for row in first.select_columns(texts):
            others.row(row)
            if not others.may_be_splits:
                break
        others.check()
    rows = _rows(datasets, parts, columns)
    if isinstance(first.features[columns.image], datasets.Value) and "string" in first.features[columns.image].dtype:
        pairs = Pairs(source, columns._replace(split=columns.split or "part"))
        for where, name, caption, word in rows:
            name = checked_text(path, f"{where}.{columns.image}", name)
            pairs.add(0, where, name, captions_of(source, f"{where}.{columns.caption}", caption), word)
        return pairs.done("a saved data set")
    files = [Path(file["filename"]) for _, part in parts for file in part.cache_files]
    # Rows that were selected or shuffled differ in the fingerprint, not in the files.
    content = content_key(files) + "".join(str(part._fingerprint) for _, part in parts)
    return unpack(source, content, _examples(source, columns, rows), "a data set of the library datasets")


def _from_disk(datasets: Any, folder: Path) -> Any:
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(f"{folder}: not a data set that save_to_disk wrote: {_first_line(error)}") from None


def _from_hub(datasets: Any, place: str) -> Any:
    name, _, config = place.removeprefix(HUB).partition(":")
    try:
        with _offline_without_answer(datasets, name):
            return datasets.load_dataset(name, config or None)
    except Exception as error:
        raise DataError(
            f"{place}: the hub does not give this data set ({_first_line(error)}); without a network, write it where "
            "there is one (datasets.load_dataset(NAME).save_to_disk(DIR)) and pass --data DIR"
        ) from None


@contextmanager
def _offline_without_answer(datasets: Any, name: str) -> Iterator[None]:
    """While entered, the library uses its cache alone if the hub does not answer: it would retry for a minute."""
    from huggingface_hub import constants, get_session

    places = ((datasets.config, "HF_HUB_OFFLINE"), (constants, "HF_HUB_OFFLINE"))
    before = [getattr(module, attribute) for module, attribute in places]
    try:
        # The session is httpx's or requests', whose errors have only Exception in common.
        get_session().head(f"{constants.ENDPOINT}/datasets/{name}", timeout=TIMEOUT)
    except Exception:
        for module, attribute in places:
            setattr(module, attribute, True)
    try:
        yield
    finally:
        for (module, attribute), value in zip(places, before, strict=True):
            setattr(module, attribute, value)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _rows(datasets: Any, parts: Parts, columns: Columns) -> Rows:
    """(where, image, caption, word of the split) of each row; images as they are stored, labels by their names."""
    for split, part in parts:
        wanted = part.select_columns([name for name in columns if name is not None])
        labels = {}
        for name, feature in wanted.features.items():
            if isinstance(feature, datasets.Image):
                wanted = wanted.cast_column(name, datasets.Image(decode=False))
            elif isinstance(feature, datasets.ClassLabel):
                labels[name] = feature.int2str
        for number, row in enumerate(wanted):
            values = [labels[name](row[name]) if name in labels else row[name] for name in columns if name is not None]
            word = str(values[2]) if columns.split is not None else split
            yield f"{split or 'row'}[{number}]", values[0], values[1], word


def _examples(source: CaptionSource, columns: Columns, rows: Rows) -> Iterator[Example]:
    for where, image, caption, word in rows:
        data, name = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
        if data is None and name:
            data = Path(name).read_bytes()  # of the library's own cache
        if not isinstance(data, bytes):
            raise DataError(f"{source.path} {where}: no image in the column {columns.image!r}")
        captions = captions_of(source, f"{where}.{columns.caption}", caption)
        yield Example(str(name or ""), data, [captions] if isinstance(captions, str) else captions, word)


_MARKS = ("dataset_dict.json", "state.json")
"""Files that save_to_disk writes into the folder of several parts, and of one."""

ARROW = CaptionFormat(
    files=_MARKS,
    knows=lambda source: of_hub(source.path) or source.path.name in _MARKS,
    read=_read,
)
