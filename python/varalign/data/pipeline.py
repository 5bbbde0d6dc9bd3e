"""Batches of images, decoded, cropped and packed ahead of the training step on the Rust core's threads."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from varalign import _core
from varalign.data.decoded import DecodedCache
from varalign.data.images import (
    AnyPath,
    Augment,
    MemoryFormat,
    Pixels,
    Preprocess,
    as_files,
    check_dtype,
    prepare,
)
from varalign.data.shards.shard_window import remote_shards, there


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


class ImagePipeline:
    """Batches of images made ahead on threads of their own, without the GIL.

    paths: the data set's files, by row. threads: 0 means every core. prefetch: the most batches that are under way or
    waiting at a time (memory: that many times B * 3 * S * S elements). decoded: the cache that rows are cropped from
    where it keeps them, made with the same `preprocess` and with `augment` or without.
    memory_format: "channels_last" lays the three values of a pixel side by side (`torch.channels_last`). The
    pixels depend on the file, (seed, epoch, row) and nothing else: not on threads, prefetch or timing. A pipeline holds
    no threads; a generator of `batches` does, until it is exhausted, closed or dropped.
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
        decoded: DecodedCache | None = None,
        memory_format: MemoryFormat = "contiguous",
    ) -> None:
        if prefetch < 1:
            raise ValueError(f"prefetch must be at least 1 batch, got {prefetch}")
        if threads < 0:
            raise ValueError(f"threads must be 0 (every core) or more, got {threads}")
        check_dtype(dtype)
        self._memory_format = memory_format
        preparation = prepare(preprocess, augment, seed, memory_format)
        files = as_files(paths)
        if decoded is not None:
            decoded.check(preprocess, augment, len(files))
        kept = None if decoded is None else decoded.kept
        shards, self._shard_of = remote_shards(paths)
        self._shards = np.array(shards, dtype=object)
        self._pipeline = _core.ImagePipeline(files, preparation, threads, prefetch, dtype == "uint8", kept)

    def batches(self, order: Sequence[NDArray[np.int64]], *, epoch: int = 0) -> Generator[ImageBatch, None, None]:
        """Make the batches of `order` (rows of each batch), in order.

        Decoding begins at this call. The threads end when the generator is exhausted, closed or dropped. Raises
        ValueError at once if a row has no path. A file that cannot be used is an entry of `ImageBatch.errors`.
        """
        order = [np.asarray(rows, dtype=np.int64) for rows in order]
        if self._shard_of is not None:
            return self._fetched(order, self._shard_of, epoch)
        return self._made(self._start(order, epoch))

    def _start(self, order: Sequence[NDArray[np.int64]], epoch: int) -> _core.ImageRun:
        return self._pipeline.start([rows.tolist() for rows in order], epoch)

    def _fetched(
        self, order: list[NDArray[np.int64]], shard_of: NDArray[np.int64], epoch: int
    ) -> Generator[ImageBatch, None, None]:
        """The batches, in parts whose remote shards were fetched ahead; how they are cut shows in no pixel."""
        needs = [self._shards[np.unique(shard_of[rows])].tolist() for rows in order]
        with closing(there(needs)) as parts:
            for part in parts:
                yield from self._made(self._start(order[part.start : part.stop], epoch))

    def _made(self, run: _core.ImageRun) -> Generator[ImageBatch, None, None]:
        try:
            while (batch := run.next()) is not None:
                rows, pixels, errors, wait = batch
                if self._memory_format == "channels_last":
                    pixels = pixels.transpose(0, 3, 1, 2)
                yield ImageBatch(rows, pixels, errors, wait)
        finally:
            run.close()  # waits for the threads: at most the sample that each is at
