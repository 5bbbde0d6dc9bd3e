"""Where a command may write: to a new place, into what it wrote before, or anywhere with `--overwrite`.

Files that belong together are written by `written_together`. A marker beside them says that they are unfinished; where
the process was killed, it stays, and the same command may write there again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from varalign.data.errors import DataError, first_three
from varalign.data.files import sync_folder, write_atomically

UNFINISHED = "unfinished.txt"
"""The marker in a folder."""
_TEXT = b"varalign was writing the files here and has not finished. Run the command again: it begins anew.\n"


def marker_of(file: Path) -> Path:
    """The marker of a file and of those beside it with the same stem."""
    return file.with_name(f"{file.stem}.{UNFINISHED}")


@contextmanager
def written_together(marker: Path, files: Sequence[Path]) -> Iterator[None]:
    """Within, files that belong together are written; the old ones are gone before the first new one is there.

    Args:
        marker: says that the files are unfinished, until all of them are written.
        files: those that are about to be written.

    Raises:
        OSError: from the system; the marker stays, as it does if the files cannot be written.
    """
    write_atomically(marker, _TEXT)
    for file in files:
        if os.path.lexists(file):
            os.unlink(file)
    sync_folder(marker.parent)
    yield
    os.unlink(marker)
    sync_folder(marker.parent)


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
        ours: patterns of the names that the command writes. A folder with entries is ours if all of them match, and one
            of them the first pattern or the marker.
        overwrite: take every folder.

    Raises:
        DataError: naming what is there; also where the name is that of a file.
    """
    if os.path.lexists(path) and not path.is_dir():
        raise DataError(f"{path}: is a file; name a folder")
    if overwrite or not path.is_dir():
        return
    names = sorted(name for name in os.listdir(path) if not (name.startswith(".") and name.endswith(".tmp")))
    others = [name for name in names if not any(fnmatch(name, pattern) for pattern in (*ours, UNFINISHED))]
    if others or (names and not any(fnmatch(name, ours[0]) or name == UNFINISHED for name in names)):
        raise DataError(
            f"{path}: holds what this command did not write ({first_three(others or names)}); name a new folder, or "
            "pass --overwrite"
        )
