"""Files are written whole or not at all, and every refusal names the file."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from varalign.data.errors import DataError
from varalign.data.files import (
    AppendedFile,
    content_key,
    open_user_file,
    read_bytes,
    read_end,
    remove_folder,
    write_atomically,
)

CALLS = ("open", "write", "fsync", "close", "replace")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("name", CALLS)
def test_a_refused_call_leaves_the_old_file_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    file = tmp_path / "a.json"
    write_atomically(file, b"old")
    plain, refused = getattr(os, name), []

    def refuse(*arguments: Any) -> Any:
        if refused:
            return plain(*arguments)
        refused.append(name)
        if name == "close":
            plain(*arguments)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, name, refuse)
    with pytest.raises(OSError) as error:
        write_atomically(file, b"new")
    assert error.value.errno == code
    assert name == "replace" or str(error.value.filename) == str(file)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_a_part_that_the_system_takes_is_followed_by_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: plain(handle, data[:3]))
    write_atomically(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_appended_lines_and_errors_that_name_the_file(tmp_path: Path) -> None:
    file = AppendedFile(tmp_path / "log")
    file.write(b"one\n")
    AppendedFile(tmp_path / "log").write(b"two\n")
    file.sync()
    file.close()
    file.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    with pytest.raises(OSError, match="log"):
        file.write(b"three")
    with pytest.raises(FileNotFoundError, match="absent"):
        AppendedFile(tmp_path / "absent" / "log")
    with pytest.raises(FileNotFoundError, match="absent"):
        remove_folder(tmp_path / "absent")


@pytest.mark.parametrize("kind", ["folder", "named pipe", "socket", "device"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "folder":
        path.mkdir()
    elif kind == "named pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path = Path(os.devnull)
    link = tmp_path / "link"
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises((DataError, OSError)) as error:  # opening a socket is the system's error
            open_user_file(name)
        assert str(name) in str(error.value) and (kind == "socket" or kind in str(error.value))
        with pytest.raises(DataError, match="not a file but a|cannot be read: No such device"):
            read_bytes(name)
        with pytest.raises((DataError, OSError), match=str(name)):
            read_end(name, 0, 1)


def test_the_end_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    assert [read_end(path, 10, count) for count in (3, 10, 20)] == [b"789", b"0123456789", b"0123456789"]


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "x" * 5000, "no/such/file"])
def test_a_name_of_no_file_is_bad_input(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no name of a file|cannot be read"):
        read_bytes(tmp_path / name)


def test_a_content_key_follows_bytes_and_not_names_sizes_or_times(tmp_path: Path) -> None:
    def folder(name: str, parts: list[bytes]) -> list[Path]:
        paths = [tmp_path / name / f"{i}.jpg" for i in range(len(parts))]
        (tmp_path / name).mkdir()
        for path, part in zip(paths, parts, strict=True):
            path.write_bytes(part)
            os.utime(path, ns=(0, 0))
        return paths

    bytes_of = [bytes([i, 1]) * i for i in range(200)]
    first, same, other = (folder(name, bytes_of) for name in "abc")
    other[150].write_bytes(b"\0" * 300)
    os.utime(other[150], ns=(0, 0))
    assert content_key(first) == content_key(same) != content_key(other)
    assert content_key(first) != content_key(first[::-1])
    whole = content_key(first)
    first[3].write_bytes(bytes([3, 2]) * 3)  # in place, within a tick of the clock
    os.utime(first[3], ns=(0, 0))
    assert content_key(first) != whole
    first[3].unlink()
    absent = content_key(first)
    os.mkfifo(first[3])
    assert len({whole, absent, content_key(first)}) == 3


def test_a_key_is_not_made_while_the_system_has_no_file_handles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    (tmp_path / "a").write_bytes(b"1")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="open files"):
        content_key([tmp_path / "a"])
