"""Writes an export whole or not at all, over nothing but an earlier export."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from varalign._core import __version__
from varalign.aligner.exports import TARGETS
from varalign.aligner.exports.subject import Subject
from varalign.data.errors import DataError, first_three
from varalign.data.files import remove_folder, sync_folder, write_atomically
from varalign.runs.folder import EXPORT
from varalign.runs.run_errors import RunFailed

CLOSE = 1e-4
"""Largest difference of a unit vector's entry from varalign's own."""


def check_place(out: Path) -> None:
    """Refuse a place that holds anything but an earlier export.

    Raises:
        DataError: a file, or a folder with what no export wrote; it is named.
    """
    if os.path.lexists(out) and not out.is_dir():
        raise DataError(f"{out}: is a file; name a folder")
    if not out.is_dir() or not os.listdir(out):
        return
    try:
        ours = set(json.loads((out / EXPORT).read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{out}: is not empty and no export of varalign; name a new folder") from None
    later = ("search/", "pictures/")  # what `search` keeps and `visualize` draws in a run, which an export is too
    others = sorted(name for name in set(_files(out)) - ours - {EXPORT} if not name.startswith(later))
    if others:
        raise DataError(f"{out}: holds what no export wrote ({first_three(others)}); name a new folder")


def write_export(subject: Subject, out: Path, target: str) -> dict[str, Any]:
    """Write a model in a format into a folder.

    Args:
        subject: the model.
        out: a folder that is absent, empty or an earlier export, which is replaced.
        target: a name of `TARGETS`.

    Returns:
        `folder`, `target`, `bytes`, `files` (their names), `differences` from varalign's own vectors (the largest of an
        entry, by what was compared) and `notes`.

    Raises:
        DataError: the model has no form in that format, which is said with what would have; or see `check_place`.
        RunFailed: the result's vectors are not the model's.
    """
    if target not in TARGETS:
        raise DataError(f"--to {target}: wanted one of {', '.join(TARGETS)}")
    out = out.resolve()  # a link stays, and `.` has a name
    check_place(out)
    write: Callable[[Subject, Path], dict[str, Any]] = importlib.import_module(TARGETS[target]).write
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary, retired = (out.with_name(f".{out.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        found = write(subject, temporary)
        mark(temporary, target, found)
        far = {what: value for what, value in found["differences"].items() if not value <= CLOSE}
        if far:
            said = ", ".join(f"{what} {value:.1e}" for what, value in far.items())
            raise RunFailed(f"--to {target}: its vectors differ from varalign's by more than {CLOSE:g}: {said}")
        for name in _files(temporary):
            with (temporary / name).open("rb+") as file:
                os.fsync(file.fileno())
        if out.exists():
            os.rename(out, retired)
        os.rename(temporary, out)
    except BaseException:
        if retired.exists() and not out.exists():
            os.rename(retired, out)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(out.parent)
    if retired.exists():
        remove_folder(retired)
    files = _files(out)
    size = sum((out / name).stat().st_size for name in files)
    return {"folder": str(out), "target": target, "bytes": size, "files": files, **found}


def mark(folder: Path, target: str, found: dict[str, Any]) -> None:
    """Write the list of files by which the folder is known as an export."""
    about = {"target": target, "version": __version__, "files": _files(folder), **found}
    write_atomically(folder / EXPORT, (json.dumps(about, indent=1) + "\n").encode())


def _files(folder: Path) -> list[str]:
    """The files of a folder and of those in it, by their paths within it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
