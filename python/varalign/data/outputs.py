"""Where a command may write: to a new place, into what it wrote before, or anywhere with `--overwrite`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from varalign.data.errors import DataError, first_three


def check_output_file(path: Path, *, overwrite: bool = False) -> None:
    """Refuse a file that is there already.

    Raises:
        DataError: the name is that of a file, without `overwrite`, or of a folder.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name a file")
    if os.path.lexists(path) and not overwrite:
        raise DataError(f"{path}: is there already; name another file, or pass --overwrite")


def check_output_folder(path: Path, ours: Sequence[str], *, overwrite: bool = False) -> None:
    """Refuse a folder that holds anything which the command did not write.

    Args:
        path: a folder that is absent, empty, or was written by the same command.
        ours: patterns of the names that the command writes. A folder with entries is ours if one of them matches the
            first pattern and the others match any.
        overwrite: take every folder.

    Raises:
        DataError: naming what is there; also where the name is that of a file.
    """
    if os.path.lexists(path) and not path.is_dir():
        raise DataError(f"{path}: is a file; name a folder")
    if overwrite or not path.is_dir():
        return
    names = sorted(name for name in os.listdir(path) if not (name.startswith(".") and name.endswith(".tmp")))
    others = [name for name in names if not any(fnmatch(name, pattern) for pattern in ours)]
    if others or (names and not any(fnmatch(name, ours[0]) for name in names)):
        raise DataError(
            f"{path}: holds what this command did not write ({first_three(others or names)}); name a new folder, or "
            "pass --overwrite"
        )
