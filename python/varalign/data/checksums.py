"""Checksums of a large file block by block, so that every core takes its part."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

BLOCK = 64 << 20
"""Bytes under one checksum."""


class BlockDigests:
    """SHA-256 of each block of what passes through `parts`, for a file that is written once."""

    def __init__(self) -> None:
        self._done: list[bytes] = []
        self._block, self._room = hashlib.sha256(), BLOCK

    def parts(self, parts: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        """The parts as they are."""
        for part in parts:
            yield part
            left = memoryview(part).cast("B")
            while len(left):
                piece, left = left[: self._room], left[self._room :]
                self._block.update(piece)
                self._room -= len(piece)
                if not self._room:
                    self._done.append(self._block.digest())
                    self._block, self._room = hashlib.sha256(), BLOCK

    def found(self) -> list[bytes]:
        """The digests of all blocks, of which the last may be short."""
        return [*self._done, self._block.digest()] if self._room < BLOCK else list(self._done)


def block_digests(content: mmap.mmap, begin: int, end: int) -> list[bytes]:
    """What `BlockDigests` finds for the bytes of a mapped file from `begin` to `end`."""
    with ThreadPoolExecutor(os.cpu_count()) as readers, memoryview(content) as view:
        blocks = [view[first : min(first + BLOCK, end)] for first in range(begin, end, BLOCK)]
        found = list(readers.map(lambda block: hashlib.sha256(block).digest(), blocks))
        for block in blocks:
            block.release()
    return found
