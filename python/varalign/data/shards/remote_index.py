"""The index of a remote shard: kept in the cache, else fetched from beside the shard, else made from the shard."""

from __future__ import annotations

from pathlib import Path

from varalign.data.files import write_atomically
from varalign.data.readers.caption_file import CaptionSource
from varalign.data.shards.shard_copies import copy_place, fetch, fetch_small, fetching, in_use, remember
from varalign.data.shards.shard_index import INDEX_SUFFIX, ShardIndex, index_of, kept_index

_MAX_INDEX_BYTES = 1 << 30


def remote_index(source: CaptionSource, address: str, cache: Path) -> tuple[Path, ShardIndex]:
    """The place of a remote shard's local copy, which may not be there now, and the shard's index.

    Raises:
        DataError: the shard cannot be fetched, is damaged, or has a bad sample.
    """
    copy = copy_place(address, cache)
    kept = copy.with_name(f"{copy.name}{INDEX_SUFFIX}")
    columns = (source.reading.image_column, source.reading.caption_column)
    index = kept_index(kept)
    if index is None or index.columns != columns:
        with fetching(copy):
            index = kept_index(kept)  # by now another process may have made it
            if index is None or index.columns != columns:
                index = _beside(address) if columns == (None, None) else None
                index = index or _made(source, address, copy)
                write_atomically(kept, index.to_bytes())
    remember(copy, address, index.length, index.digest)
    return copy, index


def _beside(address: str) -> ShardIndex | None:
    data = fetch_small(address + INDEX_SUFFIX, _MAX_INDEX_BYTES)
    try:
        index = None if data is None else ShardIndex.from_bytes(data)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return index if index is not None and index.digest and index.columns == (None, None) else None


def _made(source: CaptionSource, address: str, copy: Path) -> ShardIndex:
    with in_use(copy):
        digest = fetch(address, copy)
        remember(copy, address, copy.stat().st_size, digest)
        with open(copy, "rb") as file:
            return index_of(source, file, digest=digest)
