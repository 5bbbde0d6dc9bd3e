"""Writes a data set as one Parquet file or an image folder, which the library `datasets` reads, or as tar shards.

Shards of webdataset's form are written by `varalign.data.shards.shard_writer`. The other two hold the images' bytes as
they are in the files, and a row an image: `image` (or `file_name`), `caption` (a text where no image has more than one,
else a list), and the split: a column `split` in Parquet, folders elsewhere. The splits are called train, validation and
test, as there. Images in no split have an empty `split`; the folders leave them out.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from varalign.data.datasets import ImageCaptions
from varalign.data.errors import DataError, how_to_install
from varalign.data.files import read_bytes, write_atomically, write_parts_atomically
from varalign.data.outputs import check_output_file
from varalign.data.shards.shard_writer import SHARD_SIZE, write_shards

SPLIT_NAMES = {0: "train", 1: "validation", 2: "test", -1: ""}
MARK = ".varalign-convert"
"""A file in folders that were written here: such a folder may be replaced."""
_ROWS = 64  # images held at once
_MOST_BYTES = 1 << 30  # as the decoder's own limit for a file


def check_target(form: str, out: Path, *, overwrite: bool = False) -> None:
    """Refuse a place that is taken.

    Raises:
        DataError: a file that is there without `overwrite`; a folder that is neither empty nor written here: it is
            never replaced, since that would delete what is in it.
    """
    if form == "parquet":
        check_output_file(out, overwrite=overwrite)
    elif os.path.lexists(out) and not out.is_dir():
        raise DataError(f"{out}: is a file; name a folder")
    elif out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise DataError(f"{out}: holds what this command did not write; name a new folder, or empty this one")


def convert_dataset(dataset: ImageCaptions, form: str, out: Path, *, shard_size: int = SHARD_SIZE) -> dict[str, Any]:
    """Write a data set whole or not at all, in the place that `check_target` found free.

    shard_size: images in a shard, at most.

    Returns:
        `images` and `captions` written, and images `left_out`, which are in no split.

    Raises:
        DataError: an image cannot be read, or pyarrow is missing.
        OSError: the disk is full, or the place cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = list(range(len(dataset.image_names)))
    if form == "parquet":
        write_parts_atomically(out, _parquet(dataset))
    elif form == "webdataset":
        with _whole_folder(out) as partial:
            write_shards(dataset, SPLIT_NAMES, partial, shard_size)
    else:
        rows = [row for row, code in enumerate(dataset.split.tolist()) if code >= 0]
        _write_folder(dataset, rows, out)
    captions = len(dataset.caption_rows(rows))
    return {"images": len(rows), "captions": captions, "left_out": len(dataset.image_names) - len(rows)}


def _captions(dataset: ImageCaptions, row: int) -> list[str]:
    return [dataset.captions[caption] for caption in dataset.caption_rows([row]).tolist()]


def _one_each(dataset: ImageCaptions) -> bool:
    return len(dataset.captions) == len(dataset.image_names)


def _parquet(dataset: ImageCaptions) -> Iterator[bytes]:
    """The bytes of the file, some rows at a time."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"--to parquet: Parquet files are written by pyarrow: {how_to_install('parquet')}") from None
    one = _one_each(dataset)
    text: dict[str, Any] = {"dtype": "string", "_type": "Value"}
    features = {
        "image": {"_type": "Image"},
        "caption": text if one else {"feature": text, "_type": "List"},
        "split": text,
    }
    schema = pyarrow.schema(
        {
            "image": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
            "caption": pyarrow.string() if one else pyarrow.list_(pyarrow.string()),
            "split": pyarrow.string(),
        },
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    sink = _Sink()
    with pyarrow.parquet.ParquetWriter(pyarrow.PythonFile(sink, mode="w"), schema) as writer:
        for start in range(0, len(dataset.image_names), _ROWS):
            rows = range(start, min(start + _ROWS, len(dataset.image_names)))
            captions = [_captions(dataset, row) for row in rows]
            columns = {
                "image": [
                    {
                        "bytes": read_bytes(dataset.image_paths[row], _MOST_BYTES),
                        "path": dataset.image_names[row].encode("utf-8", "replace").decode(),
                    }
                    for row in rows
                ],
                "caption": [texts[0] for texts in captions] if one else captions,
                "split": [SPLIT_NAMES[int(dataset.split[row])] for row in rows],
            }
            writer.write_table(pyarrow.table(columns, schema=schema))
            yield sink.taken()
    yield sink.taken()


class _Sink:
    """A file that keeps what is written until it is taken."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def flush(self) -> None:
        """Nothing waits elsewhere."""

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def _write_folder(dataset: ImageCaptions, rows: list[int], out: Path) -> None:
    with _whole_folder(out) as partial:
        one = _one_each(dataset)
        lines: dict[str, list[str]] = {}
        for row in rows:
            name, split = dataset.image_names[row], SPLIT_NAMES[int(dataset.split[row])]
            place = partial / split / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(read_bytes(dataset.image_paths[row], _MOST_BYTES))
            captions = _captions(dataset, row)
            line = json.dumps({"file_name": name, "caption": captions[0] if one else captions})
            lines.setdefault(split, []).append(f"{line}\n")
        for split, part in lines.items():
            write_atomically(partial / split / "metadata.jsonl", "".join(part).encode())


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write, under another name beside the one it then gets; a folder written before makes way."""
    partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.partial-"))
    try:
        write_atomically(partial / MARK, b"")
        yield partial
        partial.chmod(0o755)
        if out.is_dir():
            old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old-"))
            os.rename(out, old)
            os.rename(partial, out)
            shutil.rmtree(old)
        else:
            os.rename(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
