"""The decoded cache: a data set's images are decoded once and kept on disk, smaller; training crops are cut from them.

A cache is one file, `decoded-KEY.pixels`: the images back to back, uint8 RGB, rows from top to bottom; then the place
of each image; then checksums. KEY is a digest of the bytes of the images, the rows, the settings and the compiled core.
A file under a name therefore never changes, and runs with other rows or images use other files. A file is opened once,
and crops are cut from the open file that was checked, even if its name is given to another file. A damaged file is made
again, with a remark.

What is kept, and how its pixels differ from those without a cache:

- With `augment`: the whole image, its short side at most `MARGIN` times the training size, never enlarged. The random
  crop is drawn for the size of the original image, with the same draws, so it covers the same part, to fractions of a
  kept pixel, and the mirror is the same. An image that was not made smaller gives the same pixels. One that was made
  smaller is resampled twice, which blurs it a little.
- Without `augment`: the finished square. Every pixel is that of the plain path.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from varalign import _core
from varalign.data.files import cache_key, content_key, open_user_file, write_parts_atomically
from varalign.data.images import AnyPath, Augment, Preprocess, core_key, load_images, prepare
from varalign.data.shards.shard_copies import held
from varalign.data.shards.shard_members import shards_of
from varalign.data.waiting import counted

MARGIN = 1.5
"""Short side of a kept picture, in training sizes.

Crops of 224 from photographs of 500 x 375 differ from the plain path's by (mean, 99.9th percentile, levels of 255), and
take on disk: 1.25: 1.45, 23, 0.3 MiB an image; 1.5: 0.56, 14, 0.44 MiB; 2: 0.02, 2, 0.5 MiB (most are whole then).
The differences cancel: nothing shifts and nothing gets brighter. `bench/pipeline.py` measures this.
"""

FORMAT = 2
"""Raised whenever the layout of the file changes."""

_CHUNK = 64
"""Pictures decoded between two writes: what is held in memory."""

Say = Callable[[str], None]
Settings = tuple[int, str, str, str]


@dataclass(frozen=True)
class DecodedCache:
    """Pictures on disk, by row of the data set; made by `decoded_cache`.

    path: the file. index: (I, 5) int64: offset, width and height as kept, width and height of the file's picture; zeros
    where the row is not kept. kept: the open file, as the Rust core reads it. settings: what `_settings` gives.
    """

    path: Path
    index: NDArray[np.int64]
    kept: _core.KeptImages
    settings: Settings

    def check(self, preprocess: Preprocess, augment: Augment | None, rows: int) -> None:
        """ValueError unless the cache was made for these settings, and for a data set of so many rows."""
        wanted = (*_settings(preprocess, augment), rows)
        if (*self.settings, len(self.index)) != wanted:
            raise ValueError(
                f"{self.path} was made for {self.settings} and {len(self.index)} files, but {wanted[:-1]} and {rows} "
                "files are wanted here (size, interpolation, decode, crops or how squares are cut)"
            )

    def __len__(self) -> int:
        """How many pictures are kept."""
        return int(np.count_nonzero(self.index[:, 1]))


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
    """The decoded cache of these files: the one on disk if it is whole, else made now.

    paths: the data set's files, by row. folder: where caches lie; made if absent. augment: whether crops will be drawn
    from it (their bounds do not matter). rows: the rows to keep (default all). threads: 0 means every core. say: called
    with remarks on progress.

    A file that cannot be decoded is not kept; the pipeline then meets it as it would have without a cache. Every byte
    of images and cache is read and checked. Raises OSError where the folder cannot be written or images change while
    they are decoded, and ValueError for a setting out of range.
    """
    files = [Path(path) for path in paths]
    wanted = np.arange(len(files)) if rows is None else np.unique(rows)
    if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < len(files):
        raise ValueError(f"rows must be from 0 to {len(files) - 1}, got {wanted[0]} to {wanted[-1]}")
    settings = _settings(preprocess, augment)
    chosen = [files[row] for row in wanted.tolist()]
    before = content_key(chosen)
    # Mean and deviation are not in the key: pixels are normalised after they leave the cache.
    key = cache_key(FORMAT, core_key(), *settings, MARGIN, len(files), wanted.tolist(), before)
    path = folder / f"decoded-{key[:32]}.pixels"
    found = _opened(path, key, len(files), settings)
    if isinstance(found, DecodedCache):
        say(f"decoded cache: {len(found)} images from {path}")
        return found
    if found:
        say(f"decoded cache: {found}; made anew")
    folder.mkdir(parents=True, exist_ok=True)
    write_parts_atomically(path, _parts(chosen, wanted, len(files), key, preprocess, augment, threads))
    made = _opened(path, key, len(files), settings)
    if content_key(chosen) != before:
        path.unlink(missing_ok=True)
        raise OSError(f"the images changed while they were decoded for {path}")
    if not isinstance(made, DecodedCache):
        raise OSError(f"{made or f'{path} has vanished'} just after it was written")
    say(f"decoded cache: {len(made)} images, {path.stat().st_size / 2**20:.0f} MiB, kept in {path}")
    return made


def _parts(
    paths: list[Path],
    rows: NDArray[np.int64],
    count: int,
    key: str,
    preprocess: Preprocess,
    augment: Augment | None,
    threads: int,
) -> Iterator[bytes | memoryview]:
    """The bytes of a cache, piece by piece."""
    index = np.zeros((count, 5), "<i8")
    offset = checksum = 0
    begins = range(0, len(rows), _CHUNK)
    for begin in counted(begins, "decoded cache", len(begins)):
        part = rows[begin : begin + _CHUNK].tolist()
        pictures = _decode(paths[begin : begin + _CHUNK], preprocess, augment, threads)
        for row, (picture, full) in zip(part, pictures, strict=True):
            if picture is not None:
                height, width, _ = picture.shape
                index[row] = offset, width, height, *full
                checksum = zlib.crc32(picture.data, checksum)
                offset += picture.nbytes
                yield picture.data
    trailer = index.tobytes() + checksum.to_bytes(4, "little")
    yield trailer
    yield hashlib.sha256(key.encode() + trailer).digest()


def _decode(
    paths: list[Path], preprocess: Preprocess, augment: Augment | None, threads: int
) -> list[tuple[NDArray[np.uint8] | None, tuple[int, int]]]:
    """The pictures as they are kept, None where one cannot be decoded, and the sizes crops are drawn on."""
    if augment is None:
        levels, errors = load_images(paths, preprocess, threads=threads, dtype="uint8")
        bad = {position for position, _ in errors}
        squares = np.ascontiguousarray(levels.transpose(0, 2, 3, 1), np.uint8)
        size = (preprocess.size, preprocess.size)
        return [(None if position in bad else square, size) for position, square in enumerate(squares)]
    short = round(preprocess.size * MARGIN)
    with held(shards_of(paths)[0]):
        made = _core.shrink_images([os.fspath(path) for path in paths], short, prepare(preprocess), threads)
    return [(picture, full) for picture, full, _ in made]


def _settings(preprocess: Preprocess, augment: Augment | None) -> Settings:
    """What a cache is made for: size, interpolation, decode, and "crops" or how squares are cut."""
    shape = "crops" if augment is not None else preprocess.resize
    return preprocess.size, preprocess.interpolation, preprocess.decode, shape


def _opened(path: Path, key: str, count: int, settings: Settings) -> DecodedCache | str:
    """The cache, checked and open; or what is wrong with it, empty where there is none."""
    try:
        with open_user_file(path) as file:
            index = _checked_index(file, key, count)
            if index is None:
                return f"{path} is damaged"
            # Opened by the number of the open file, so that the core reads the very file that was checked. On Windows
            # a file that is open cannot be exchanged.
            place = os.fspath(path) if os.name == "nt" else f"/dev/fd/{file.fileno()}"
            return DecodedCache(path, index, _core.KeptImages(place, [tuple(row) for row in index.tolist()]), settings)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, OverflowError) as error:
        return f"{path} is damaged ({error})"


def _checked_index(file: BinaryIO, key: str, count: int) -> NDArray[np.int64] | None:
    """Where each picture lies, if every byte of the file is what was written."""
    length = 40 * count + 4
    pixels = os.fstat(file.fileno()).st_size - length - 32
    if pixels < 0:
        return None
    checksum, left = 0, pixels
    while left and (block := file.read(min(left, 1 << 22))):
        checksum, left = zlib.crc32(block, checksum), left - len(block)
    trailer, digest = file.read(length), file.read(32)
    if digest != hashlib.sha256(key.encode() + trailer).digest() or checksum.to_bytes(4, "little") != trailer[-4:]:
        return None
    return np.frombuffer(trailer[:-4], "<i8").reshape(count, 5).astype(np.int64)
