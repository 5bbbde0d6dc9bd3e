"""A folder is held by one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from varalign.runs.lock import locked
from varalign.runs.run_errors import RunError

HOLDER = """
import sys, time
from pathlib import Path
from varalign.runs.run_errors import RunError
from varalign.runs.lock import locked

folder, holds, log = Path(sys.argv[1]), int(sys.argv[2]), open(sys.argv[3], "a", buffering=1)
inside, done, refused, overlaps = folder / "inside", 0, 0, 0
print("ready", flush=True)
sys.stdin.readline()
while done < holds:
    try:
        with locked(folder):
            try:
                inside.mkdir()  # fails where another process is in here too
            except FileExistsError:
                overlaps += 1
            time.sleep(0)
            inside.rmdir()
            done += 1
    except RunError:
        refused += 1
    except FileNotFoundError:
        overlaps += 1
print(done, refused, overlaps, file=log)
"""


def stress(folder: Path, processes: int, holds: int) -> list[tuple[int, int, int]]:
    """Holds, refusals and overlaps of each process."""
    log = folder / "log"
    words = [sys.executable, "-c", HOLDER, str(folder), str(holds), str(log)]
    running = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait(timeout=300) for process in running] == [0] * processes
    for process in running:
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()
    return [tuple(map(int, line.split())) for line in log.read_text().splitlines()]  # type: ignore[misc]


@pytest.mark.parametrize("holds", [100, pytest.param(1000, marks=pytest.mark.long)])
def test_four_processes_never_hold_a_folder_together(tmp_path: Path, holds: int) -> None:
    found = stress(tmp_path, 4, holds)
    assert [row[0] for row in found] == [holds] * 4 and sum(row[2] for row in found) == 0
    assert sum(row[1] for row in found) > 0, "they met"


def test_the_lock_file_stays_and_names_its_holder(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
        with pytest.raises(RunError, match=f"in use by process {os.getpid()}; wait"), locked(tmp_path):
            pass
    assert (tmp_path / ".lock").read_text() == ""
