"""Images as the encoders want them: decoded, cropped, resized and normalised by the Rust core.

Pixels are Pillow's: `ImageOps.exif_transpose(image).convert("RGB")`, then Pillow's antialiased resampling to the short
side and the centre square (one level in two thousand is off by one), in float32 `(level / 255 - mean) / std`. JPEG
(and the first picture of an MPO), PNG, WebP, the first frame of a GIF, BMP, and the first picture of a TIFF, known by
content and never by name. Not Pillow's: 16-bit grey keeps its high byte. AVIF, HEIC, JPEG 2000 and JPEG XL are decoded
by Pillow and its plugins (extra `formats`), slower; everything else is refused by its name, with what converts it.

What a file may cost is limited before anything is allocated for it: `MAX_PIXELS` pixels, 1 GiB while it is decoded,
1 GiB on disk. The scans of a progressive JPEG may pass over the picture many times: at most 500, and 2^25 blocks of
work in all, about a second. Work is counted, not time, so the result does not depend on the machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from varalign import _core
from varalign.data.files import file_digest
from varalign.data.other_images import decode_other, versions
from varalign.data.shards.shard_copies import held
from varalign.data.shards.shard_members import shards_of

_core.decode_others_by(decode_other)

MAX_PIXELS: int = _core.MAX_PIXELS
"""Width times height above which a file is refused before it is decoded (Pillow's bound)."""
MAX_FILE_BYTES = 1 << 30
"""Size above which a file is refused."""

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".mpo", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"}
    | {".avif", ".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jxl"}
)
"""Ends of the names by which image files are recognised in a folder or a captions file; decoding goes by content."""

AnyPath = str | os.PathLike[str]
Pixels = NDArray[np.float32] | NDArray[np.uint8]
MemoryFormat = Literal["contiguous", "channels_last"]


@dataclass(frozen=True)
class Preprocess:
    """What an image encoder wants of its input.

    size: side of the square in pixels, 1 to 8192.
    mean, std: of the three channels on the scale 0 to 1 (the defaults are CLIP's).
    interpolation: "bicubic" (a = -0.5) or "bilinear", both antialiased.
    resize: "crop" takes the short side to `size` and keeps the centre square; "squash" takes both sides to `size`. Half
        of an odd margin is rounded to even by "crop", as torchvision does, and down or up by "crop-down", "crop-up".
    decode: "exact" gives Pillow's pixels; "fast" decodes a JPEG at 1/2, 1/4 or 1/8 of its size (by the lowest
        coefficients of each block) where that leaves at least a pixel for each one of the result, on both axes: from a
        short side of twice `size` on. Nothing shifts, random crops included; what is lost is fine texture. Of 255
        levels, photographs of 500 x 375 at 160 to 40 pixels come out 1 to 2.5 off on average and 14 to 28 at the 99.9th
        percentile (most where the smaller picture has hardly more pixels than the result), soft pictures half that.
    """

    size: int = 224
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize: Literal["crop", "crop-down", "crop-up", "squash"] = "crop"
    decode: Literal["exact", "fast"] = "exact"


@dataclass(frozen=True)
class Augment:
    """Random resized crop, mirror and colours, a pure function of (seed, epoch, row of the data set).

    scale: share of the picture's area, low and high. ratio: width over height of the crop, drawn log-uniformly.
    flip: chance of mirroring left and right. jitter: how far the factors of brightness, contrast and saturation may be
    from 1, in an order drawn too: torchvision's `ColorJitter` on uint8 pictures, after the crop, to the bit where
    torch fuses multiplication and addition. The formula of the draws stands in `rust/src/image/augment.rs`.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)


@lru_cache(maxsize=1)
def core_key() -> str:
    """Which code reads images and captions, for a cache's key: hex SHA-256 of the core, and the versions of Pillow."""
    return " ".join([file_digest(Path(_core.__file__)).hex(), *versions()])


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode one image to upright RGB.

    Returns (H, W, 3) uint8. Raises ValueError naming what is wrong where the bytes are damaged, cut short, of another
    format, or of more than `max_pixels` pixels.
    """
    return _core.decode_image(bytes(data), max_pixels)


def load_images(
    paths: Sequence[AnyPath],
    preprocess: Preprocess,
    *,
    augment: Augment | None = None,
    seed: int = 0,
    epoch: int = 0,
    rows: Sequence[int] | NDArray[np.int64] | None = None,
    threads: int = 0,
    dtype: Literal["float32", "uint8"] = "float32",
    sizes: NDArray[np.int64] | None = None,
) -> tuple[Pixels, list[tuple[int, str]]]:
    """Load some images at once.

    rows: the row of the data set of each path, for `augment` (default 0, 1, 2, ...). threads: 0 means every core.
    sizes: (B, 2) int64, gets the width and height of each file's upright picture, 0 and 0 where it failed.
    Returns pixels (B, 3, S, S) of `dtype`, and (position, message) of each file that failed, whose pixels are 0. Raises
    OSError where the system has no more file handles, which says nothing of the images.
    """
    row_list = list(range(len(paths))) if rows is None else np.asarray(rows, dtype=np.int64).tolist()
    check_dtype(dtype)
    out = np.empty((len(paths), 3, preprocess.size, preprocess.size), dtype=dtype)
    preparation = prepare(preprocess, augment, seed)
    with held(shards_of(paths)[0]):
        errors = _core.load_images(as_files(paths), row_list, preparation, out, epoch, threads, sizes)
    return out, errors


def as_files(paths: Sequence[AnyPath]) -> list[str]:
    """The paths as the core takes them; TypeError for one path in place of a list."""
    if isinstance(paths, str | bytes | os.PathLike):
        raise TypeError(f"wanted a list of paths, got one path: pass [{paths!r}]")
    return [os.fspath(path) for path in paths]


def check_dtype(dtype: str) -> None:
    """ValueError unless pixels can be of this type."""
    if dtype not in ("float32", "uint8"):
        raise ValueError(f"dtype must be 'float32' or 'uint8', got {dtype!r}")


def prepare(
    preprocess: Preprocess,
    augment: Augment | None = None,
    seed: int = 0,
    memory_format: MemoryFormat = "contiguous",
) -> _core.ImagePreparation:
    """The core's form of the settings; raises ValueError for a value out of range."""
    if preprocess.decode not in ("exact", "fast"):
        raise ValueError(f"decode must be 'exact' or 'fast', got {preprocess.decode!r}")
    if memory_format not in ("contiguous", "channels_last"):
        raise ValueError(f"memory_format must be 'contiguous' or 'channels_last', got {memory_format!r}")
    drawn = None if augment is None else (augment.scale, augment.ratio, augment.flip, augment.jitter)
    return _core.ImagePreparation(
        preprocess.size,
        preprocess.mean,
        preprocess.std,
        preprocess.interpolation,
        preprocess.resize,
        drawn,
        seed,
        preprocess.decode == "fast",
        memory_format == "channels_last",
    )
