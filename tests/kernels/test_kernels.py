"""Runs the kernels' cases in a process of their own, and compiles every kernel for GPUs that need not be there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed here")

CASES = Path(__file__).with_name("cases.py")


def run_cases(**environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    # On a device every new combination of switches and alignments is compiled, for seconds each.
    limit = 900 if environment["TRITON_INTERPRET"] == "1" else 3600
    result = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=limit, cwd=CASES.parents[2])
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


def test_through_the_interpreter() -> None:
    run_cases(TRITON_INTERPRET="1")


@pytest.mark.gpu
def test_on_a_device() -> None:
    run_cases(TRITON_INTERPRET="0")


def compiled(*arguments: str) -> list[dict[str, Any]]:
    """Rows of `bench/compile_kernels.py`, in a process where Triton compiles."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    if not all((tools / name).exists() for name in ("ptxas", "cuobjdump")):
        pytest.skip("this build of triton has no assembler for NVIDIA's GPUs")
    settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = CASES.parents[2] / "bench" / "compile_kernels.py"
    result = subprocess.run(
        [sys.executable, str(script), "--json", *arguments], env=settings, capture_output=True, text=True, timeout=3600
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout)


def test_compiles_for_gpus_that_are_not_here() -> None:
    """To machine code for an H100, every kernel: it fits, and nothing spills in 16 bits."""
    rows = compiled("--quick", "--capabilities", "90")
    assert {row["task"] for row in rows} >= {"similarity", "positive", "gradient", "merge", "quadratic"}
    for row in rows:
        assert 0 <= row["shared"] <= row["shared_limit"] == 227 << 10, row
        assert not (row["dtype"] == "bf16" and row["spilled"]), row


@pytest.mark.long
def test_every_combination_compiles_and_fits() -> None:
    rows = compiled("--capabilities", "80,90,100")
    assert all(row["shared"] <= row["shared_limit"] for row in rows)
