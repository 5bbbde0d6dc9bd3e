"""Images as the encoders want them: decoded, cropped, resized and normalised by the Rust core, batches made ahead.

Pixels are Pillow's: `ImageOps.exif_transpose(image).convert("RGB")`, then Pillow's antialiased resampling to the short
side and the centre square (one level in two thousand is off by one), in float32 `(level / 255 - mean) / std`. JPEG
(and the first picture of an MPO), PNG, WebP, the first frame of a GIF, and BMP, known by content and never by name;
everything else is refused by its name.

What a file may cost is limited before anything is allocated for it: `MAX_PIXELS` pixels, 1 GiB while it is decoded,
1 GiB on disk; the time of a JPEG, whose scans may go over the picture again and again, by their number (500) and by the
work of them all (2^25 blocks, about a second). Time is limited as work: the result does not depend on the machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from varalign import _core

if TYPE_CHECKING:
    from varalign.data.decoded import DecodedCache

MAX_PIXELS: int = _core.MAX_PIXELS
"""Width times height at which a file is refused before it is decoded, unless told otherwise (Pillow's bound)."""

AnyPath = str | os.PathLike[str]
Pixels = NDArray[np.float32] | NDArray[np.uint8]
MemoryFormat = Literal["contiguous", "channels_last"]


@dataclass(frozen=True)
class Preprocess:
    """What an image encoder wants of its input.

    size: side of the square in pixels, 1 to 8192.
    mean, std: of the three channels on the scale 0 to 1 (the defaults are CLIP's).
    interpolation: "bicubic" (a = -0.5) or "bilinear", both antialiased.
    resize: "crop" takes the short side to `size` and keeps the centre square; "squash" takes both sides to `size`.
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
    resize: Literal["crop", "squash"] = "crop"
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


@dataclass
class ImageBatch:
    """One batch: row of each sample, its pixels, and what went wrong.

    rows: (B,) int64. pixels: (B, 3, S, S), float32 (or uint8 levels); zeros where a sample failed.
    errors: position in the batch and message. wait: seconds that the caller waited for this batch.
    """

    rows: NDArray[np.int64]
    pixels: Pixels
    errors: list[tuple[int, str]] = field(default_factory=list)
    wait: float = 0.0


def decode_image(data: bytes, *, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """Decode one image to upright RGB.

    Returns (H, W, 3) uint8. Raises ValueError naming what is wrong where the bytes are damaged, cut short, of another
    format, or of more than `max_pixels` pixels (default `MAX_PIXELS`).
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
    max_pixels: int | None = None,
    memory_format: MemoryFormat = "contiguous",
    out: Pixels | None = None,
) -> tuple[Pixels, list[tuple[int, str]]]:
    """Load some images at once.

    rows: the row of the data set of each path, for `augment` (default 0, 1, 2, ...). threads: 0 means every core.
    memory_format: "channels_last" lays the three values of a pixel side by side, as `torch.channels_last` has them.
    out: (B, 3, S, S) of `dtype` is written to, and returned, where given, else a new array; its memory must be laid out
    as `memory_format` says. `tensor.numpy()` of a pinned tensor is one that a GPU copies from.
    Returns pixels (B, 3, S, S) of `dtype`, and (position, message) of each file that failed, whose pixels are 0.
    """
    files = _files(paths)
    row_list = list(range(len(paths))) if rows is None else np.asarray(rows, dtype=np.int64).tolist()
    preparation = prepare(preprocess, augment, seed, max_pixels, memory_format)
    _is_uint8(dtype)
    if out is None:
        size = preprocess.size
        shape = (len(paths), size, size, 3) if memory_format == "channels_last" else (len(paths), 3, size, size)
        laid = np.empty(shape, dtype=dtype)
        out = _as_nchw(laid, memory_format)
    else:
        laid = _laid_out(out, (len(paths), 3, preprocess.size, preprocess.size), dtype, memory_format)
    errors = _core.load_images(files, row_list, preparation, laid, epoch, threads)
    return out, errors


def _laid_out(out: Pixels, shape: tuple[int, ...], dtype: str, memory_format: MemoryFormat) -> Pixels:
    """A caller's batch in the order of its memory; raises TypeError or ValueError where it is no such batch."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a numpy array, got {type(out).__name__}; pass tensor.numpy() of a tensor")
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"out must be {dtype} of shape {shape}, got {out.dtype} of {out.shape}")
    laid = out.transpose(0, 2, 3, 1) if memory_format == "channels_last" else out
    if not (laid.flags.c_contiguous and laid.flags.writeable and laid.flags.aligned):
        raise ValueError(
            f"out must be writeable and laid out without gaps in the order {memory_format!r}; pass a new array or a "
            "slice of whole samples"
        )
    return laid


class ImagePipeline:
    """Batches of images made ahead on threads of their own, without the GIL.

    paths: the data set's files, by row. threads: 0 means every core. prefetch: the most batches that are under way or
    waiting at a time (memory: that many times B * 3 * S * S elements). decoded: the cache that rows are cropped from
    where it keeps them (`varalign.data.decoded`), made with the same `preprocess` and with `augment` or without.
    memory_format: "channels_last" lays the three values of a pixel side by side (`torch.channels_last`). The
    pixels depend on the file, (seed, epoch, row) and nothing else: not on threads, prefetch or timing. A pipeline holds
    no threads; an iterator of `batches` does, until it is exhausted, closed or dropped.
    """

    def __init__(
        self,
        paths: Sequence[AnyPath],
        preprocess: Preprocess,
        *,
        augment: Augment | None = None,
        seed: int = 0,
        threads: int = 0,
        prefetch: int = 4,
        dtype: Literal["float32", "uint8"] = "float32",
        max_pixels: int | None = None,
        decoded: DecodedCache | None = None,
        memory_format: MemoryFormat = "contiguous",
    ) -> None:
        if prefetch < 1:
            raise ValueError(f"prefetch must be at least 1 batch, got {prefetch}")
        if threads < 0:
            raise ValueError(f"threads must be 0 (every core) or more, got {threads}")
        self.preprocess = preprocess
        self.augment = augment
        self._memory_format = memory_format
        preparation = prepare(preprocess, augment, seed, max_pixels, memory_format)
        files = _files(paths)
        if decoded is not None:
            decoded.check(preprocess, augment, len(files))
        kept = None if decoded is None else decoded.core()
        self._pipeline = _core.ImagePipeline(files, preparation, threads, prefetch, _is_uint8(dtype), kept)

    def batches(self, order: Sequence[NDArray[np.int64]], *, epoch: int = 0) -> Iterator[ImageBatch]:
        """Make the batches of `order` (rows of each batch), in order.

        Decoding begins at this call. The threads end when the iterator is exhausted, closed or dropped. Raises
        ValueError at once if a row has no path. A file that cannot be used is an entry of `ImageBatch.errors`.
        """
        run = self._pipeline.start([np.asarray(rows, dtype=np.int64).tolist() for rows in order], epoch)
        return ImageBatches(run, self._memory_format)


def _files(paths: Sequence[AnyPath]) -> list[str]:
    if isinstance(paths, str | bytes | os.PathLike):
        raise TypeError(f"wanted a list of paths, got one path: pass [{paths!r}]")
    return [os.fspath(path) for path in paths]


class ImageBatches(Iterator[ImageBatch]):
    """The iterator of `ImagePipeline.batches`; a context manager too."""

    def __init__(self, run: _core.ImageRun, memory_format: MemoryFormat = "contiguous") -> None:
        self._run = run
        self._memory_format = memory_format

    def __next__(self) -> ImageBatch:
        try:
            batch = self._run.next()
        except BaseException:
            self.close()
            raise
        if batch is None:
            self.close()
            raise StopIteration
        rows, pixels, errors, wait = batch
        return ImageBatch(rows, _as_nchw(pixels, self._memory_format), errors, wait)

    def close(self) -> None:
        """Stop the threads and wait for them (at most the sample that each is at)."""
        self._run.close()

    def __enter__(self) -> ImageBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prepare(
    preprocess: Preprocess,
    augment: Augment | None = None,
    seed: int = 0,
    max_pixels: int | None = None,
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
        max_pixels,
        preprocess.decode == "fast",
        memory_format == "channels_last",
    )


def _as_nchw(pixels: Pixels, memory_format: MemoryFormat) -> Pixels:
    return pixels.transpose(0, 3, 1, 2) if memory_format == "channels_last" else pixels


def _is_uint8(dtype: str) -> bool:
    if dtype not in ("float32", "uint8"):
        raise ValueError(f"dtype must be 'float32' or 'uint8', got {dtype!r}")
    return dtype == "uint8"
