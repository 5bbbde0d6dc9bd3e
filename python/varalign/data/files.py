"""Files of users are opened here, results are written here whole or not at all, and caches get their keys here.

Every call names the path where the system's error does not. What is written goes through `os`, one call after another,
so that a test can refuse any single one of them (`tests/faults/disk.py`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NoReturn

from varalign.data.errors import DataError
from varalign.data.shards.shard_copies import copy_digest, held
from varalign.data.shards.shard_members import member_of
from varalign.data.waiting import counted

MAX_FILE_BYTES = 256 << 20

_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
_READ_AT_ONCE = getattr(os, "O_NONBLOCK", 0)  # opening a named pipe returns without waiting for its writer
_READERS = 8  # threads that hash: reads from a cold disk wait, and hashing releases the interpreter lock
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)
_KINDS = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"))
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)


def open_user_file(path: Path | str) -> BinaryIO:
    """Open a file that a user names, to read its bytes. Every reader of users' files opens them by this function.

    Raises:
        DataError: the name is that of a folder, pipe, socket or device (none is waited for), or no name at all.
        OSError: from the system, as `open` raises it.
    """
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _READ_AT_ONCE))  # noqa: SIM115
    except IsADirectoryError:
        raise DataError(f"{path}: not a file but a folder") from None
    except ValueError as error:  # a NUL character, or half of a surrogate pair
        raise DataError(f"{str(path)!r}: no name of a file: {error}") from None
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        file.close()
        kind = next((name for matches, name in _KINDS if matches(mode)), "device")
        raise DataError(f"{path}: not a file but a {kind}")
    return file


@contextmanager
def opened(path: Path | str) -> Iterator[tuple[BinaryIO, int]]:
    """A user's file, or a member of a tar shard, open at its first byte, and how many bytes it has.

    Raises:
        DataError: as `open_user_file`; or the shard is shorter than it was, or cannot be fetched.
        OSError: from the system.
    """
    member = member_of(path)
    if member is None:
        with open_user_file(path) as file:
            yield file, os.fstat(file.fileno()).st_size
        return
    with held([member.shard]), open_user_file(member.shard) as file:
        if member.offset + member.size > (length := os.fstat(file.fileno()).st_size):
            raise DataError(f"{path}: the shard ends at byte {length:,}, before this image; it has changed")
        file.seek(member.offset)
        yield file, member.size


def is_there(path: Path | str) -> bool:
    """Whether a path names a file, or a member of a tar shard."""
    return member_of(path) is not None or os.path.isfile(path)


def read_bytes(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """Read a user's file, or a member of a tar shard, of at most `limit` bytes.

    Raises:
        DataError: it cannot be read, or is no regular file.
        OSError: the system has no more file handles, which says nothing of the file.
    """
    with readable(path), opened(path) as (file, size):
        if size > limit:
            raise DataError(f"{path}: {size:,} bytes, more than the {limit:,} that are read; split the file")
        return file.read(size)


def read_end(path: Path, size: int, count: int) -> bytes:
    """The last bytes of a user's file, `count` of them or all, which has `size`; raises what `open_user_file` raises.

    A third of the time of a file object: of 100,000 images of a data set each may be asked for its end.
    """
    if member_of(path) is not None:
        with opened(path) as (file, _):
            file.seek(max(0, size - count), os.SEEK_CUR)
            return file.read(min(size, count))
    handle = os.open(path, os.O_RDONLY | _READ_AT_ONCE | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise DataError(f"{path}: not a file")
        if hasattr(os, "pread"):
            return os.pread(handle, count, max(0, size - count))
        os.lseek(handle, max(0, size - count), os.SEEK_SET)
        return os.read(handle, count)
    finally:
        os.close(handle)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what reading a file raises into a DataError, but not a lack of file handles: it says nothing of the file."""
    try:
        yield
    except (OSError, MemoryError) as error:
        refuse_unreadable(path, error)


def refuse_unreadable(path: Path, error: OSError | MemoryError) -> NoReturn:
    """Raise what `readable` raises; for loops over so many files that entering `readable` for each takes long."""
    if isinstance(error, MemoryError):
        raise DataError(f"{path}: too large for the memory that is free") from None
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise error
    raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


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
    with _renamed(path) as temporary, naming(path):
        handle = os.open(temporary, _NEW, 0o666)
        try:
            for part in parts:
                _write_all(handle, part)
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def written_by_name(path: Path) -> Iterator[Path]:
    """`write_atomically` for a library that writes to a name: within, a temporary name that is synced and renamed.

    Raises:
        OSError: as `write_atomically`; what is raised within goes through, the file under the name untouched.
    """
    with _renamed(path) as temporary:
        yield temporary
        with naming(path):
            handle = os.open(temporary, os.O_RDWR | getattr(os, "O_BINARY", 0))
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """A temporary name, which becomes `path` where nothing is raised within; what was written is deleted otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one that is reported
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


def default_cache() -> Path:
    """`$VARALIGN_CACHE`, else `~/.cache/varalign`."""
    named = os.environ.get("VARALIGN_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "varalign"


def cache_key(*parts: object) -> str:
    """A name for what depends on all `parts`: hexadecimal sha256 of their texts."""
    digest = hashlib.sha256()
    for part in parts:
        text = str(part).encode("utf-8", "surrogateescape")
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def file_digest(path: Path) -> bytes:
    """SHA-256 of the bytes of a file or of a member of a tar shard, read in pieces; raises what `opened` raises."""
    digest = hashlib.sha256()
    with opened(path) as (file, left):
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.digest()


def content_key(paths: Sequence[Path]) -> str:
    """Hex SHA-256 over the bytes of some files in order: the part of a cache's key that says what was read.

    A file that is absent or may not be read counts as such: its reader says so. 118,000 files of 150 kB take 15 to 35
    seconds on two cores; names, sizes and times would be faster, and the same for two folders that differ.

    Raises:
        OSError: the system has no more file handles or memory, or a disk fails.
    """

    def digests(part: Sequence[Path]) -> list[bytes]:
        return [digest_or_absent(path) for path in part]

    whole = hashlib.sha256()
    with ThreadPoolExecutor(_READERS) as readers:
        chunks = [paths[start : start + 64] for start in range(0, len(paths), 64)]
        for part in counted(readers.map(digests, chunks), "reading files", len(chunks)):
            whole.update(b"".join(part))
    return whole.hexdigest()


def digest_or_absent(path: Path) -> bytes:
    """`file_digest`; for a file that is absent or may not be read, and for what is no file, a constant.

    A member of a remote shard is named by the digest of the shard, which every copy is checked by, and by its place.
    """
    member = member_of(path)
    try:
        if member is not None and (digest := copy_digest(member.shard)):
            return hashlib.sha256(f"{digest} {member.offset} {member.size}".encode()).digest()
        return file_digest(path)
    except DataError:
        return b"no regular file".ljust(32)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return b"absent".ljust(32)


def _write_all(handle: int, data: bytes | memoryview) -> None:
    left = memoryview(data).cast("B")
    while len(left):
        left = left[os.write(handle, left) :]  # the system may take a part, 2 GiB at most on Linux
