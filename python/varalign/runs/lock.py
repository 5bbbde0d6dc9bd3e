"""A lock that holds a folder for one process. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from varalign.data.files import naming
from varalign.runs.run_errors import RunError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the system frees the lock of a process that died.

    The lock file stays when the lock is released. If it were deleted, a process that has opened it but not locked it
    yet would lock a file without a name, and the next process a new one beside it.

    Raises:
        RunError: another process holds the folder; the message gives its number.
    """
    try:
        import fcntl
    except ImportError:  # no advisory locks on this system
        yield
        return
    path = folder / LOCK
    with open(path, "a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "unknown"
            raise RunError(f"{folder}: in use by process {holder}; wait for it, or name another folder") from None
        with naming(path):
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        for temporary in folder.glob(".*.tmp"):  # left by a process that died while it wrote
            temporary.unlink(missing_ok=True)
        try:
            yield
        finally:
            file.truncate(0)  # so that nobody reads this number before the next holder has written its own
