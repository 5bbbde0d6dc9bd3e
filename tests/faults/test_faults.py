"""The faults of `run.py` in their short form: one process, some of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked from a process that has imported torch")
def test_the_short_form_of_every_fault() -> None:
    words = "--kills 4 --signals 2 --damage 60 --images 40 --captions --caption-noise 300 --path frozen --json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a process that forks may have no threads
    found = subprocess.run(
        [sys.executable, str(HERE / "run.py"), *words.split()],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert found.returncode == 0, found.stderr
    figures = json.loads(found.stdout)
    assert figures["kills, frozen"]["identical"] == 4 and figures["kills, frozen"]["inside a save"] == 1
    assert figures["signals, frozen"]["valid checkpoints"] == figures["signals, frozen"]["resumed identical"] == 2
    assert figures["damage"]["refused, the one before taken"] == 60
    assert figures["captions"]["forms"] >= 30
    assert not any(figure["failures"] for figure in figures.values())
