"""Writes a data set as tar shards of webdataset's form, each with its index beside it.

A sample is the image's bytes as they are, a `.json` with the image's `file_name` and its split, and a `.txt` with a
caption a line, under a key of nine digits, the image's row. The bytes of the shards depend on the data set alone.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

from varalign.data.datasets import ImageCaptions
from varalign.data.files import file_digest, read_bytes, write_atomically
from varalign.data.readers.caption_file import CaptionSource
from varalign.data.readers.image_folder import is_image_name
from varalign.data.readers.reading import Reading
from varalign.data.shards.shard_index import INDEX_SUFFIX, MAX_IMAGE_BYTES, index_of
from varalign.data.waiting import counted

SHARD_SIZE = 10_000
"""Images in a shard, at most."""
_SHARD_BYTES = 2 << 30


def write_shards(dataset: ImageCaptions, split_names: dict[int, str], folder: Path, shard_size: int) -> None:
    """Write `shard-000000.tar` and so on into a folder, each of at most `shard_size` images, and about 2 GiB.

    Raises:
        DataError: an image cannot be read.
        OSError: the disk is full.
    """
    rows = range(len(dataset.image_names))
    number, archive, images = 0, _opened(folder, 0), 0
    for row in counted(rows, "writing shards", len(rows)):
        data = read_bytes(dataset.image_paths[row], MAX_IMAGE_BYTES)
        if images == shard_size or (images and archive.offset + len(data) > _SHARD_BYTES):
            _finish(archive)
            number, images = number + 1, 0
            archive = _opened(folder, number)
        name, key = dataset.image_names[row], f"{row:09d}"
        captions = [dataset.captions[caption] for caption in dataset.caption_rows([row]).tolist()]
        record = {"file_name": name, "split": split_names[int(dataset.split[row])]}
        end = os.path.splitext(name)[1].lower() if is_image_name(name) else ".jpg"
        _add(archive, key + end, data)
        _add(archive, f"{key}.json", json.dumps(record).encode())
        _add(archive, f"{key}.txt", "".join(f"{caption}\n" for caption in captions).encode())
        images += 1
    _finish(archive)


def _opened(folder: Path, number: int) -> tarfile.TarFile:
    return tarfile.open(folder / f"shard-{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # of the year 1970, and of nobody
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _finish(archive: tarfile.TarFile) -> None:
    archive.close()
    shard = Path(str(archive.name))
    with open(shard, "rb") as file:
        index = index_of(CaptionSource(shard, Reading()), file, digest=file_digest(shard).hex())
    write_atomically(shard.with_name(shard.name + INDEX_SUFFIX), index.to_bytes())
