"""Checksums of blocks, while they are written and of a mapped file."""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path

import pytest
from varalign.data import checksums
from varalign.data.checksums import BlockDigests, block_digests


@pytest.mark.parametrize("size", [1, 15, 16, 17, 64])
def test_both_ways_are_sha256_of_each_block(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "BLOCK", 16)
    content = bytes(range(size))
    right = [hashlib.sha256(content[start : start + 16]).digest() for start in range(0, size, 16)]
    writing = BlockDigests()
    parts = [content[:5], memoryview(content)[5:40], content[40:]]
    assert b"".join(writing.parts(parts)) == content and writing.found() == right
    file = tmp_path / "file"
    file.write_bytes(b"header" + content + b"end")
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert block_digests(mapped, 6, 6 + size) == right
