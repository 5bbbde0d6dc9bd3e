"""Captions in tar shards, as the library `webdataset` and the tool img2dataset write them, local or remote.

Nothing is unpacked: an image is a part of its shard, at the place that the shard's index says. A sample without a
caption has an empty one, and a caption without an image names one that is missing, so `--skip-missing` leaves out both.
"""

from __future__ import annotations

from pathlib import Path

from varalign.data.errors import DataError, shown
from varalign.data.files import default_cache
from varalign.data.readers.caption_file import CaptionFile, CaptionFormat, CaptionSource
from varalign.data.readers.columns import check_split_words, split_word
from varalign.data.readers.image_folder import ImageFile
from varalign.data.shards.remote_index import remote_index
from varalign.data.shards.shard_index import local_index
from varalign.data.shards.shard_members import address_of, member_path


def _read(source: CaptionSource) -> CaptionFile:
    cache = Path(source.reading.cache) if source.reading.cache is not None else default_cache()
    address = address_of(source.path)
    if address is None:
        shard, index = source.path, local_index(source, cache)
    else:
        shard, index = remote_index(source, address, cache)
    source.notes[:] = index.notes
    images: dict[str, ImageFile] = {}
    names: list[str] = []
    captions: list[str] = []
    for sample in index.samples:
        if sample.name in images:
            raise DataError(
                f"{source.path}: two images are called {shown(sample.name)}; give each sample a key, or a "
                "file_name, of its own"
            )
        path = member_path(shard, sample.offset, sample.size, sample.name)
        images[sample.name] = ImageFile(sample.name, path, sample.size, digest=sample.digest)
        names += [sample.name] * len(sample.captions)
        captions += sample.captions
    for name, texts in index.without.items():
        names += [name] * len(texts)
        captions += texts
    words = {sample.name: sample.split for sample in index.samples if sample.split}
    check_split_words(source.path, "split", words.values())
    splits = {name: split for name, word in words.items() if (split := split_word(word)) is not None}
    return CaptionFile(
        source.path,
        names,
        captions,
        [0] * len(names),
        "tar shard",
        splits or None,
        notes=source.notes,
        shard=shard,
        images=images,
        named=all(sample.named for sample in index.samples),
    )


TAR = CaptionFormat(
    files=("*.tar",),
    knows=lambda source: address_of(source.path) is not None or source.head[257:262] == b"ustar",
    read=_read,
)
