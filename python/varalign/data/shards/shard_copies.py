"""Local copies of remote shards: fetched whole through `webdataset` when an image of them is read, and removed again.

A copy lies in the cache as `NAME-KEY.remote.tar`; beside it, in `….json`, its address, size and SHA-256, by which what
comes is checked. All copies in a cache together take at most `VARALIGN_SHARD_CACHE` gigabytes (50 where that is not
set), those in use aside: the copy used longest ago goes first. Processes that share a cache share the copies, by file
locks; where the system has none (Windows), no copy is removed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from varalign.data.errors import DataError, how_to_install
from varalign.data.shards.shard_members import REMOTE, member_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LIMIT = "VARALIGN_SHARD_CACHE"
_DEFAULT_LIMIT = 50.0
_TRIES, _PAUSE = 3, 2.0  # a connection that breaks; curl itself tries again only before the first byte
_BLOCK = 1 << 20
_REASONS = {
    6: "there is no such host",
    7: "the host refuses the connection",
    22: "it is not there, or may not be read",
    28: "the host does not answer",
    127: "the program that fetches it is not installed",
}
_TOOLS = {"s3": "the AWS command line (aws), which has to be logged in", "gs": "gsutil, which has to be logged in"}


class _Origin(NamedTuple):
    """Where a copy comes from, and what it has to be."""

    address: str
    bytes: int
    digest: str


def copy_place(address: str, cache: Path) -> Path:
    """Where the copy of the shard at an address lies."""
    stem = re.sub(r"[^\w.-]", "_", address.partition("?")[0].rpartition("/")[2]).removesuffix(".tar")
    return cache / "shards" / f"{stem[:80]}-{hashlib.sha256(address.encode()).hexdigest()[:16]}{REMOTE}"


def remember(copy: Path, address: str, length: int, digest: str) -> None:
    """Note where a copy comes from, by which it can be fetched again."""
    origin = _Origin(address, length, digest)
    with suppress(DataError):
        if _origin(copy) == origin:
            return
    temporary = copy.with_name(f".{copy.name}.json.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(origin._asdict()), encoding="utf-8")
    os.replace(temporary, _origin_file(copy))
    _origin.cache_clear()


def copy_digest(shard: Path) -> str | None:
    """SHA-256 in hex of a shard that is a copy; None of a local one."""
    return _origin(shard).digest if shard.name.endswith(REMOTE) else None


def state_file(path: Path | str) -> str:
    """The file that changes where an image does: its own, its shard, or what was noted of a remote shard."""
    member = member_of(path)
    if member is None:
        return str(path)
    return str(_origin_file(member.shard) if member.shard.name.endswith(REMOTE) else member.shard)


@contextmanager
def held(shards: Iterable[Path]) -> Iterator[None]:
    """Within, these shards are there: copies are fetched where they are not, and none of them is removed.

    Raises:
        DataError: a shard cannot be fetched, or is not what it was.
    """
    with ExitStack() as locks:
        for shard in dict.fromkeys(shards):
            if shard.name.endswith(REMOTE):
                locks.enter_context(_held(shard))
        yield


@contextmanager
def _held(copy: Path) -> Iterator[None]:
    origin = _origin(copy)
    with in_use(copy):
        if not _is_whole(copy, origin):
            with fetching(copy):
                if not _is_whole(copy, origin) and fetch(origin.address, copy) != origin.digest:
                    copy.unlink()
                    raise DataError(
                        f"{origin.address}: the shard is not the one that was indexed; if it was written anew, write "
                        f"its index anew too, and delete {copy}.index.jsonl"
                    )
        os.utime(copy)
        yield


@contextmanager
def in_use(copy: Path) -> Iterator[None]:
    """Within, no process removes the copy; it may have to be fetched first."""
    with _locked(copy, ".lock", "LOCK_SH"):
        yield


@contextmanager
def fetching(copy: Path) -> Iterator[None]:
    """Within, no other process fetches or indexes the copy.

    A lock of its own: a rank that reads the copy until the end of an epoch must not keep another one waiting.
    """
    copy.parent.mkdir(parents=True, exist_ok=True)
    with _locked(copy, ".fetching", "LOCK_EX"):
        yield


def fetch(address: str, copy: Path) -> str:
    """Fetch a shard whole and make room for it; returns its SHA-256 in hex. Called within `in_use` and `fetching`.

    Raises:
        DataError: it cannot be fetched, or the disk is full.
    """
    temporary = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
    try:
        for number in range(1, _TRIES + 1):
            digest = hashlib.sha256()
            try:
                with _stream(address) as source, open(temporary, "wb") as file:
                    while block := source.read(_BLOCK):
                        digest.update(block)
                        file.write(block)
                break
            except ConnectionError as error:
                if number == _TRIES:
                    raise DataError(f"{address}: cannot be fetched: {error}") from None
                time.sleep(_PAUSE * number)
        _make_room(copy, temporary.stat().st_size)
        os.replace(temporary, copy)
        return digest.hexdigest()
    except OSError as error:
        raise DataError(
            f"{copy}: the copy of {address} cannot be written: {error.strerror or error}; name another folder (--cache "
            f"DIR), or lower {LIMIT}"
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def fetch_small(address: str, limit: int) -> bytes | None:
    """A small file; None where it is not there, cannot be fetched, or has more than `limit` bytes."""
    parts, length = [], 0
    try:
        with _stream(address, quiet=True) as source:
            while block := source.read(_BLOCK):
                parts.append(block)
                length += len(block)
                if length > limit:
                    return None
    except (ConnectionError, DataError):
        return None
    return b"".join(parts)


def expanded(places: str) -> list[str]:
    """The places of a pattern with braces, such as `s3://bucket/train-{000..099}.tar`."""
    if "{" not in places:
        return [places]
    lists = _webdataset(places, "shardlists")
    try:
        return [str(place) for place in lists.expand_urls(places)]
    except ValueError as error:
        raise DataError(f"{error}; wanted {{000..099}}") from None


def _webdataset(place: str, module: str) -> Any:
    try:
        return importlib.import_module(f"webdataset.{module}")
    except ImportError:
        raise DataError(f"{place}: read by the library webdataset: {how_to_install('webdataset')}") from None


@contextmanager
def _stream(address: str, *, quiet: bool = False) -> Iterator[BinaryIO]:
    """What webdataset reads at an address; ConnectionError saying why it ended too early, if it did."""
    gopen = _webdataset(address, "gopen")
    scheme = address.partition(":")[0]
    # What the program says goes to a file: the last line of it is the reason where it fails.
    with tempfile.TemporaryFile() as said:
        try:
            if scheme == "s3" and "s3" not in gopen.gopen_schemes:  # webdataset leaves S3 to a command of the user's
                command = ["aws", "s3", "cp", "--only-show-errors", address, "-"]
                source = gopen.Pipe(command, mode="rb", stderr=said)
            else:
                source = gopen.gopen(address)
        except FileNotFoundError as error:
            raise DataError(
                f"{address}: {error.filename} is not there; install {_TOOLS.get(scheme, error.filename)}"
            ) from None
        try:
            yield source
            # A pipe that is read to its end may not yet have been asked how its program ended.
            source.close()
        except OSError as error:
            if error.errno is not None:  # the disk's, not the pipe's
                raise
            raise ConnectionError(_reason(scheme, getattr(source, "status", None), said)) from None
        finally:
            with suppress(OSError):
                source.close()


def _reason(scheme: str, status: int | None, said: BinaryIO) -> str:
    said.seek(0)
    lines = said.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
    why = lines[-1].strip() if lines else _REASONS.get(status or 0, f"the program ended with status {status}")
    return f"{why}; it is fetched by {_TOOLS[scheme]}" if scheme in _TOOLS else why


def _make_room(new: Path, size: int) -> None:
    """Remove the copies used longest ago until the others and the new one fit; those in use stay."""
    if fcntl is None:
        return
    text = os.environ.get(LIMIT, "")
    try:
        limit = (float(text) if text else _DEFAULT_LIMIT) * 1e9
    except ValueError:
        raise DataError(f"{LIMIT}={text}: wanted a number of gigabytes") from None
    copies = [path for path in new.parent.glob(f"*{REMOTE}") if path != new and not path.name.startswith(".")]
    states = []
    for path in copies:
        with suppress(OSError):  # another process has removed it
            states.append((path.stat().st_mtime, path.stat().st_size, path))
    total = size + sum(length for _, length, _ in states)
    for _, length, path in sorted(states):
        if total <= limit:
            return
        with suppress(BlockingIOError), _locked(path, ".lock", "LOCK_EX", "LOCK_NB"):
            path.unlink(missing_ok=True)
            total -= length


@contextmanager
def _locked(copy: Path, suffix: str, *kinds: str) -> Iterator[None]:
    """A lock of a copy, by the names of `fcntl`'s kinds; BlockingIOError where it is taken and is not waited for."""
    handle = os.open(copy.with_name(copy.name + suffix), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(handle, sum(getattr(fcntl, kind) for kind in kinds))
        yield
    finally:
        os.close(handle)


def _origin_file(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.json")


@lru_cache(maxsize=4096)
def _origin(copy: Path) -> _Origin:
    try:
        return _Origin(**json.loads(_origin_file(copy).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise DataError(f"{copy}: nobody noted whose copy this is; open its data set anew") from None


def _is_whole(copy: Path, origin: _Origin) -> bool:
    try:
        return copy.stat().st_size == origin.bytes
    except OSError:
        return False
