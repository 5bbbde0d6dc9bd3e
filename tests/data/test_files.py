"""Files are written whole or not at all, and every refusal names the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from varalign.data.files import AppendedFile, remove_folder, write_atomically

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
