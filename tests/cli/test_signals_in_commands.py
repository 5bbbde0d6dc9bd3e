"""SIGINT and SIGTERM during every command: a named message, exit code 130 or 143, and nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = "runs/20260101-120000"
JOBS = [
    f"out.npz embed {RUN} --out out.npz",
    f"out.safetensors embed {RUN} --features --out out.safetensors",
    f"drawn visualize {RUN} --perplexities 5 --pairs 20 --out drawn",
    "judged diagnose --features features.safetensors --out judged",
    "converted.safetensors convert weights.pt converted.safetensors",
    "studied study --features features.safetensors --out studied --axis schedule fixed --seeds 1 --tune-seeds 1 "
    "--axis start random --tune fixed_weight 0.4 0.6 --option epochs 1 --workers 1",
    f"nothing eval {RUN}",
    f"nothing search {RUN} dogs",
    "nothing data check data/flickr8k",
]


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="commands are forked from a process that has imported torch")
def test_a_signal_at_any_file_call_of_any_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve().parent.parent / "commands" / "run.py"), str(tmp_path)],
        input=json.dumps([["signals", *line.split()] for line in JOBS]),
        capture_output=True,
        text=True,
        timeout=1800,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for line, outcomes in zip(JOBS, json.loads(done.stdout), strict=True):
        assert len(outcomes) >= 2, line
        for number, code, error, left in outcomes:
            name = {2: "SIGINT", 15: "SIGTERM"}[number]
            assert code == 128 + number and left == [], (line, name, code, left, error[-1000:])
            assert f"varalign: {name}: stopped before the command was done\n" in error, (line, error[-1000:])
            assert "Traceback" not in error, error
