"""The decoded cache: a data set's pictures decoded once, made smaller, and kept on disk to be cropped from ever after.

Two files in the cache folder. `decoded-PLACE.pixels` holds the pictures back to back, uint8 RGB, rows from top to
bottom; `decoded-PLACE.safetensors` says where each lies, its CRC-32, and under `key` what all of it was made of: the
files' length and time of change, the rows, the size, the margin, the decoder's version. PLACE is a digest of paths and
settings. Another key means that the cache is stale; other bytes, that it is damaged. Both are made anew and told.

What is kept, and what it costs in faithfulness:

- With `augment`: the whole picture, its short side at most `margin` times the training size, never enlarged. The random
  crop is drawn on the size of the file's picture, with the same draws, and lies where it lies there, to fractions of a
  kept pixel: crop and mirror are those of the plain path. Where no picture was larger than what is kept, so is every
  pixel. Where pictures were made smaller they are resampled twice, which blurs a little (see `MARGIN`).
- Without `augment`: the finished square. Every pixel is that of the plain path.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays

from varalign import _core
from varalign.data.files import cache_key, file_states, write_atomically, write_parts_atomically
from varalign.data.images import AnyPath, Augment, Preprocess, load_images, prepare

MARGIN = 1.5
"""Short side of a kept picture, in training sizes.

Crops of 224 from photographs of 500 x 375 differ from the plain path's by (mean, 99.9th percentile, levels of 255), and
take on disk: 1.25: 1.45, 23, 0.3 MiB an image; 1.5: 0.56, 14, 0.44 MiB; 2: 0.02, 2, 0.5 MiB (most are whole then).
The differences cancel: nothing shifts and nothing gets brighter. `bench/pipeline.py` measures this.
"""

FORMAT = 1
"""Raised whenever what is kept changes; with the core's version it is the decoder's part of the key."""

_CHUNK = 64
"""Pictures decoded between two writes: what is held in memory."""

Say = Callable[[str], None]
MadeFor = tuple[int, str, str, str]


@dataclass(frozen=True)
class DecodedCache:
    """Pictures on disk, by row of the data set; made by `decoded_cache`.

    path: the `.pixels` file. index: (I, 5) int64: offset, width and height as kept, width and height of the file's
    picture; zeros where the row is not kept. key: what it was made of. made_for: what `made_for` gives.
    """

    path: Path
    index: NDArray[np.int64]
    key: str
    made_for: MadeFor

    def check(self, preprocess: Preprocess, augment: Augment | None, rows: int | None = None) -> None:
        """ValueError unless the cache was made for these settings, and for so many rows."""
        wanted = made_for(preprocess, augment)
        if self.made_for != wanted:
            raise ValueError(f"{self.path} was made for {_named(self.made_for)}, and {_named(wanted)} is wanted here")
        if rows is not None and rows != len(self.index):
            raise ValueError(f"{self.path} was made for a data set of {len(self.index)} files, not of {rows}")

    def __len__(self) -> int:
        """How many pictures are kept."""
        return int(np.count_nonzero(self.index[:, 1]))

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        """The picture of a row, (H, W, 3), memory-mapped; KeyError where it is not kept."""
        offset, width, height = (int(value) for value in self.index[row, :3])
        if width == 0:
            raise KeyError(f"row {row} is not in the decoded cache {self.path}")
        return np.memmap(self.path, np.uint8, "r", offset, (height, width, 3))

    def core(self) -> _core.KeptImages:
        """The form that the Rust core reads from."""
        return _core.KeptImages(os.fspath(self.path), [tuple(entry) for entry in self.index.tolist()])


def decoded_cache(
    paths: Sequence[AnyPath],
    preprocess: Preprocess,
    folder: Path,
    *,
    augment: Augment | None,
    rows: NDArray[np.int64] | None = None,
    threads: int = 0,
    say: Say = lambda line: None,
) -> DecodedCache:
    """The decoded cache of these files: the one on disk if it is whole and still true, else made now.

    paths: the data set's files, by row. folder: where caches lie; made if absent. augment: whether crops will be drawn
    from it (their bounds do not matter). rows: the rows to keep (default all). threads: 0 means
    every core. say: called with a line where something is to be told.

    A file that cannot be decoded is not kept; the pipeline then meets it as it would have without a cache. Reading it
    again checks every byte, at the speed of zlib's CRC-32. Raises OSError where the folder cannot be written, and
    ValueError for a setting out of range.
    """
    files = [Path(path) for path in paths]
    wanted = np.arange(len(files)) if rows is None else np.unique(rows)
    if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < len(files):
        raise ValueError(f"rows must be from 0 to {len(files) - 1}, got {wanted[0]} to {wanted[-1]}")
    # Mean and deviation come after the cache: any will do.
    settings = (
        FORMAT, preprocess.size, preprocess.interpolation, preprocess.decode,
        MARGIN if augment is not None else preprocess.resize,
    )  # fmt: skip
    place = cache_key(*settings, *(os.path.abspath(path) for path in files))[:24]
    states = file_states([files[row] for row in wanted.tolist()])
    key = cache_key(*settings, _core.__version__, states, hashlib.sha256(wanted.astype("<i8").tobytes()).hexdigest())
    pixels = folder / f"decoded-{place}.pixels"
    found = _read(pixels, key, len(files), made_for(preprocess, augment))
    if isinstance(found, DecodedCache):
        say(f"decoded cache: {len(found)} images from {pixels}")
        return found
    if found:
        say(f"decoded cache: {found}; made anew")
    folder.mkdir(parents=True, exist_ok=True)
    index, sums = np.zeros((len(files), 5), np.int64), np.zeros(len(files), np.int64)

    def parts() -> Iterator[memoryview]:
        offset = 0
        for begin in range(0, len(wanted), _CHUNK):
            part = wanted[begin : begin + _CHUNK].tolist()
            chosen = [files[row] for row in part]
            pictures = _decode(chosen, preprocess, augment, threads)
            for row, (picture, full) in zip(part, pictures, strict=True):
                if picture is not None:
                    height, width, _ = picture.shape
                    index[row] = offset, width, height, *full
                    sums[row] = zlib.crc32(picture.data)
                    offset += picture.nbytes
                    yield picture.data
            if (done := begin + len(part)) // 2048 != begin // 2048:
                say(f"decoded cache: {done} of {len(wanted)} images")

    # Without the old index the old pixels count for nothing, so no moment has an index of other pixels.
    _index_of(pixels).unlink(missing_ok=True)
    write_parts_atomically(pixels, parts())
    arrays = {"index": index, "crc32": sums}
    write_atomically(_index_of(pixels), save_arrays(arrays, metadata={"key": key}))
    cache = DecodedCache(pixels, index, key, made_for(preprocess, augment))
    say(f"decoded cache: {len(cache)} images, {pixels.stat().st_size / 2**20:.0f} MiB, kept in {pixels}")
    return cache


def _decode(
    paths: list[Path],
    preprocess: Preprocess,
    augment: Augment | None,
    threads: int,
) -> list[tuple[NDArray[np.uint8] | None, tuple[int, int]]]:
    """The pictures as they are kept, None where one cannot be decoded, and the sizes crops are drawn on."""
    if augment is None:
        levels, errors = load_images(paths, preprocess, threads=threads, dtype="uint8")
        bad = {position for position, _ in errors}
        squares = np.ascontiguousarray(levels.transpose(0, 2, 3, 1), np.uint8)
        size = (preprocess.size, preprocess.size)
        return [(None if position in bad else square, size) for position, square in enumerate(squares)]
    preparation = prepare(preprocess)
    short = round(preprocess.size * MARGIN)
    made = _core.shrink_images([os.fspath(path) for path in paths], short, preparation, threads)
    return [(picture, full) for picture, full, _ in made]


def _index_of(pixels: Path) -> Path:
    return pixels.with_suffix(".safetensors")


def made_for(preprocess: Preprocess, augment: Augment | None) -> MadeFor:
    """What a cache must have been made for: size, interpolation, decoder, and "crops" or how squares were cut."""
    shape = "crops" if augment is not None else preprocess.resize
    return preprocess.size, preprocess.interpolation, preprocess.decode, shape


def _named(kind: MadeFor) -> str:
    size, interpolation, decode, shape = kind
    what = "random crops" if shape == "crops" else "finished squares"
    return f"{what} of {size} ({interpolation}, resize={shape!r}, decode={decode!r})"


def _read(pixels: Path, key: str, count: int, kind: MadeFor) -> DecodedCache | str:
    """The cache, or what is wrong with it; empty where there is none."""
    path = _index_of(pixels)
    if not path.exists():
        return ""
    try:
        with safe_open(path, framework="numpy") as file:
            found = (file.metadata() or {}).get("key")
            index, sums = file.get_tensor("index"), file.get_tensor("crc32")
    except (OSError, SafetensorError) as error:
        return f"{path} is damaged ({error})"
    if found != key:
        return f"{pixels} is stale: the images, their choice or the decoder have changed"
    if index.shape != (count, 5) or sums.shape != (count,) or index.dtype != np.int64 or sums.dtype != np.int64:
        return f"{path} is damaged (an index of {index.dtype} {index.shape})"
    cache = DecodedCache(pixels, index, key, kind)
    try:
        cache.core()  # checks that every picture lies within the file
        levels = np.memmap(pixels, np.uint8, "r") if len(cache) else np.empty(0, np.uint8)
    except (OSError, ValueError, OverflowError) as error:
        return f"{pixels} is damaged ({error})"
    for row in np.flatnonzero(index[:, 1]).tolist():
        offset, width, height = (int(value) for value in index[row, :3])
        if zlib.crc32(levels[offset : offset + 3 * width * height].data) != sums[row]:
            return f"{pixels} is damaged (the picture of row {row} has changed)"
    return cache
