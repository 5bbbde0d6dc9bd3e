"""The faults of `run.py` in their short form: one process, some of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked from a process with torch imported")


def figures_of(words: str, timeout: int) -> dict[str, Any]:
    """What `run.py WORDS --json` prints; it must find no failure."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a process that forks may have no threads
    command = [sys.executable, str(HERE / "run.py"), *words.split(), "--json"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_the_short_form_of_every_fault() -> None:
    words = "--kills 4 --signals 2 --damage 24 --images 40 --captions --caption-noise 300 --path frozen"
    figures = figures_of(words, 300)
    assert figures["kills, frozen"]["identical"] == 4 and figures["kills, frozen"]["inside a save"] == 1
    assert figures["signals, frozen"]["valid checkpoints"] == figures["signals, frozen"]["resumed identical"] == 2
    assert figures["damage"]["refused, the one before taken"] == 24
    assert figures["captions"]["forms"] >= 30
    assert not any(figure["failures"] for figure in figures.values())


@pytest.mark.long
def test_every_command_under_limits_of_file_sizes() -> None:
    assert figures_of("--sizes", 1800)["file sizes"]["commands"] >= 10


@pytest.mark.long
def test_commands_that_write_several_files_are_killed_and_run_again() -> None:
    assert figures_of("--reruns 12", 3600)["reruns"]["kills"] >= 60


@pytest.mark.long
def test_every_pair_of_options_is_killed_and_resumed() -> None:
    found = figures_of("--combinations 1000", 7200)["combinations"]
    assert found["identical"] == found["killed and resumed"] == found["combinations"] > 100
