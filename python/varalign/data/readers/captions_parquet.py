"""Captions in Parquet files, read by pyarrow (extra `parquet`).

The column of images holds names, or the images themselves: bytes, or the struct `{bytes, path}` that the library
`datasets` writes. Captions are texts, lists of texts, or class labels whose names the library wrote into the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from varalign.data.errors import DataError, how_to_install
from varalign.data.files import file_digest, open_user_file
from varalign.data.readers.caption_file import CaptionFile, CaptionFormat, CaptionSource, Pairs, checked_text
from varalign.data.readers.captions_records import captions_of
from varalign.data.readers.columns import Columns, OtherColumns, require_columns
from varalign.data.readers.unpacked import Example, unpack

_ROWS, _ROWS_OF_NAMES = 64, 1 << 14
"""Rows that are held at once, of images and of their names."""


def _read(source: CaptionSource) -> CaptionFile:
    path = source.path
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: Parquet files are read by pyarrow: {how_to_install('parquet')}") from None
    with open_user_file(path) as file:
        with _valid(path):
            table = pyarrow.parquet.ParquetFile(file)
            schema = table.schema_arrow
        columns = require_columns(str(path), schema.names, source.reading)
        _look_over(source, table, columns)
        kind, types = schema.field(columns.image).type, pyarrow.types
        labels = _label_names(schema.metadata, columns)
        if types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind):
            return _names(source, columns, _rows(path, table, columns, labels, _ROWS_OF_NAMES))
        if types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind):
            examples = _examples(source, columns, _rows(path, table, columns, labels, _ROWS))
            return unpack(source, file_digest(path).hex(), examples, "Parquet with images")
    raise DataError(f"{path}: the column {columns.image!r} holds {kind}; wanted names of images, or their bytes")


def _look_over(source: CaptionSource, table: Any, columns: Columns) -> None:
    """Look at the columns that are not read, at their texts as far as one of them may be a split."""
    schema = table.schema_arrow
    others = OtherColumns(source.path, schema.names, columns, source.notes)
    texts = [name for name in others.may_be_splits if str(schema.field(name).type).endswith("string")]
    if not texts:
        return
    with _valid(source.path):
        for batch in table.iter_batches(batch_size=_ROWS_OF_NAMES, columns=texts):
            for row in batch.to_pylist():
                others.row(row)
            if not others.may_be_splits:
                return
    others.check()


@contextmanager
def _valid(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises for a damaged file into a DataError; errors of the system go through."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, ValueError, IndexError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(f"{path}: not valid Parquet: {reason}") from None


def _rows(
    path: Path, table: Any, columns: Columns, labels: dict[str, list[str]], size: int
) -> Iterator[tuple[int, Any, Any, str]]:
    """(row, image, caption, word of the split) of each row."""
    names = [name for name in columns if name is not None]
    with _valid(path):
        batches = table.iter_batches(batch_size=size, columns=names)
    start = 0
    while True:
        with _valid(path):
            batch = next(batches, None)
            if batch is None:
                return
            values = [batch.column(name).to_pylist() for name in names]
            for column, name in zip(values, names, strict=True):
                if name in labels:
                    column[:] = [labels[name][value] if type(value) is int else value for value in column]
        words = values[2] if columns.split is not None else [""] * len(values[0])
        for row, (image, caption, word) in enumerate(zip(values[0], values[1], words, strict=True), start):
            yield row, image, caption, str(word) if word is not None else ""
        start += len(values[0])


def _names(source: CaptionSource, columns: Columns, rows: Iterator[tuple[int, Any, Any, str]]) -> CaptionFile:
    pairs = Pairs(source, columns)
    for row, name, caption, word in rows:
        where = f"row {row}"
        name = "" if name is None else checked_text(source.path, f"{where}.{columns.image}", str(name))
        pairs.add(0, where, name, captions_of(source, f"{where}.{columns.caption}", caption), word)
    return pairs.done("Parquet")


def _examples(source: CaptionSource, columns: Columns, rows: Iterator[tuple[int, Any, Any, str]]) -> Iterator[Example]:
    for row, image, caption, word in rows:
        data, name = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
        if not isinstance(data, bytes):
            raise DataError(
                f"{source.path} row {row}: no image in the column {columns.image!r}; write the file with its images' "
                "bytes, or with their names as texts"
            )
        captions = captions_of(source, f"row {row}.{columns.caption}", caption)
        yield Example(str(name or ""), data, [captions] if isinstance(captions, str) else captions, word)


def _label_names(metadata: dict[bytes, bytes] | None, columns: Columns) -> dict[str, list[str]]:
    """The names of class labels, by column, as the library `datasets` writes them into the schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: list(features[name]["names"]) for name in columns if name and "names" in features.get(name, {})}
    except (KeyError, ValueError, TypeError):
        return {}


PARQUET = CaptionFormat(
    files=("captions.parquet", "metadata.parquet", "*.parquet", "data/*.parquet"),
    knows=lambda source: source.head[:4] == b"PAR1",
    read=_read,
)
