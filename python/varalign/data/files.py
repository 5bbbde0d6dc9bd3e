"""Files that are written whole or not at all: the only place where the package's results meet the disk.

Every call names the path where the system's error does not. What is written goes through `os`, one call after another,
so that a test can refuse any single one of them (`tests/faults/disk.py`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put `path` into an OSError that names no file, as those of write and fsync do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that its name holds the old bytes or the new ones, never a part; synced before it is renamed.

    Raises:
        OSError: naming the path; the file under the name is then untouched.
    """
    write_parts_atomically(path, (data,))


def write_parts_atomically(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """The same for what does not fit in memory: `parts` are taken and written one after another.

    Raises:
        OSError: as `write_atomically`; what `parts` raises goes through, the file under the name untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            handle = os.open(temporary, _NEW, 0o666)
            try:
                for part in parts:
                    _write_all(handle, part)
                os.fsync(handle)
            finally:
                os.close(handle)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable, where the system can."""
    if os.name == "nt":
        return
    with naming(folder):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_folder(folder: Path) -> None:
    """Delete a folder with all that is in it; OSError names it, or what is in it."""
    with naming(folder):
        shutil.rmtree(folder)


class AppendedFile:
    """A file that lines are added to; each `write` is handed to the system at once.

    Raises:
        OSError: from every method, naming the path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with naming(path):
            self._handle = os.open(path, _APPEND, 0o666)

    def write(self, data: bytes) -> None:
        """Append; after an error a part may be there."""
        with naming(self.path):
            _write_all(self._handle, data)

    def sync(self) -> None:
        """Make what was written durable."""
        with naming(self.path):
            os.fsync(self._handle)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            with naming(self.path):
                os.close(handle)


def cache_key(*parts: object) -> str:
    """A name for what depends on all `parts`: hexadecimal sha256 of their texts."""
    digest = hashlib.sha256()
    for part in parts:
        text = str(part).encode("utf-8", "surrogateescape")
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def file_states(paths: list[Path]) -> str:
    """A digest of size and time of change of every file: what tells that an image was exchanged, or is gone."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            state = os.stat(path)
        except OSError:  # whoever reads it says so
            digest.update(b"absent")
            continue
        digest.update(state.st_size.to_bytes(8, "little") + state.st_mtime_ns.to_bytes(12, "little", signed=True))
    return digest.hexdigest()


def _write_all(handle: int, data: bytes | memoryview) -> None:
    left = memoryview(data).cast("B")
    while len(left):
        left = left[os.write(handle, left) :]  # the system may take a part, 2 GiB at most on Linux
