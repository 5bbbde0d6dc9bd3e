"""The error of bad input, and what its messages are made with."""

from __future__ import annotations

import stat
from pathlib import Path

MAX_FILE_BYTES = 256 << 20


class DataError(ValueError):
    """Bad input in a data set: the message says which file, what was wanted, what came, and what to do."""


def shown(text: str, limit: int = 80) -> str:
    """Quote text for a message: escapes control characters and cuts what is too long."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def first_three(items: list[str], what: str = "") -> str:
    """List the first three items and count the others: "a, b, c and 4 more"."""
    more = len(items) - 3
    tail = f" and {more:,} more{' ' + what if what else ''}" if more > 0 else ""
    return ", ".join(items[:3]) + tail


def read_bytes(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """Read a regular file of at most `limit` bytes; DataError for anything else (a folder, a pipe, no such file)."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: not a file but a {'folder' if stat.S_ISDIR(status.st_mode) else 'special file'}")
        if status.st_size > limit:
            raise DataError(f"{path}: {status.st_size:,} bytes, more than the {limit:,} that are read; split the file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return data
