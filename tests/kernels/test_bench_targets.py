"""The benchmark's verdicts on cells written by hand, and `make bench-gpu` when one of its parts fails."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("contrastive_targets")


def cell_of(bench: ModuleType, n: int, dtype: str, times: dict[str, float]) -> object:
    """A cell whose contenders took these milliseconds; the unit takes 10 ms."""
    single = importlib.import_module("harness").single
    rows = {name: single("", name, time, "ms", ratio=times["varalign"] / time) for name, time in times.items()}
    return bench.Cell(n, 512, dtype, rows, unit_seconds=0.01)


def test_verdicts_of_a_gpu(bench: ModuleType) -> None:
    times = {"varalign": 60.0, "varalign, statistics on": 60.0, "varalign, statistics off": 58.0}
    peers = {"row chunks, checkpointed": 120.0, "shared logits, compiled": 50.0, "varalign, backward fused": 20.0}
    middle = cell_of(bench, 32768, "bfloat16", times | peers)
    middle.errors = {"varalign": 1e-3, bench.EAGER: 2e-3}
    large = cell_of(bench, 262144, "bfloat16", times)
    large.memory = {"varalign": large.returned + (600 << 20)}
    verdicts = bench.targets([middle, large], True)
    values = [target.value for target in verdicts]
    assert values == pytest.approx([2.0, 40 / 60, 600.0, 100 * (60 / 58 - 1), 1.2, 0.5])
    assert [target.verdict.split(",")[0] for target in verdicts] == ["NOT PROVEN"] + ["PASS"] * 3 + ["MISS", "PASS"]
    assert all(target.verdict.startswith("NOT MEASURED") for target in bench.targets([], True))


@pytest.mark.parametrize(
    ("peers", "verdict", "against"),
    [
        ({}, "NOT PROVEN", "row chunks, checkpointed; public kernels measured: none, pass --peers DIR"),
        ({"row chunks, checkpointed": 80.0}, "MISS", "row chunks, checkpointed; public kernels measured: none, pass"),
        ({"inf_cl": 100.0}, "PASS", "inf_cl; public kernels measured: inf_cl"),
        ({"inf_cl": 70.0}, "MISS", "inf_cl; public kernels measured: inf_cl"),
        ({"inf_cl": 150.0}, "PASS", "row chunks, checkpointed; public kernels measured: inf_cl"),
    ],
)
def test_the_speed_up_names_its_peer(bench: ModuleType, peers: dict[str, float], verdict: str, against: str) -> None:
    times = {"varalign": 60.0, "row chunks, checkpointed": 120.0, "shared logits": 50.0}
    cell = cell_of(bench, 32768, "bfloat16", times | peers)
    start = f"{verdict}, target at least 1.5; against {against}"
    assert bench.targets([cell], True)[0].verdict.startswith(start)
    cell.missing["other"] = "left out: not imported"
    assert bench.targets([cell], True)[0].verdict.endswith(" (other: left out: not imported)")


def test_verdicts_of_a_cpu(bench: ModuleType) -> None:
    cell = cell_of(bench, 8192, "float32", {"varalign": 8.0, bench.EAGER: 10.0})
    cell.memory = {"varalign": 20.0, bench.EAGER: 100.0}
    memory, time, error = bench.targets([cell], False)
    assert (memory.value, memory.verdict[:4], time.value, time.verdict[:4]) == (0.2, "MISS", 0.8, "PASS")
    assert error.verdict.startswith("NOT MEASURED")


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed here")


def calls_of(folder: Path, *arguments: str, failing: str = "nothing") -> tuple[int, list[str], str]:
    """Exit code, the interpreter's calls and standard error of make with an interpreter that runs nothing."""
    shutil.copy(ROOT / "Makefile", folder)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\necho "$VARALIGN_GPU_GRID $*" >> calls\ncase "$*" in *{failing}*) exit 1;; esac\n')
    python.chmod(0o755)
    command = ["make", *arguments, f"PYTHON={python}"]
    settings = {name: value for name, value in os.environ.items() if name not in ("PEERS", "VARALIGN_GPU_GRID")}
    result = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)
    return result.returncode, (folder / "calls").read_text().splitlines(), result.stderr


@needs_make
@pytest.mark.parametrize("failing", ["pytest", "contrastive.py", "nothing"])
def test_bench_gpu_goes_on_after_a_failure(tmp_path: Path, failing: str) -> None:
    code, calls, errors = calls_of(tmp_path, "bench-gpu", failing=failing)
    assert (code == 0) == (failing == "nothing"), errors
    scripts = ("torch.cuda", "pytest", "contrastive.py", "pipeline.py", "data_wait.py")
    assert all(script in call for script, call in zip(scripts, calls, strict=True))
    assert "--peers" not in "".join(calls)
    if failing != "nothing":
        assert "bench-gpu: failed: " in errors


@needs_make
@pytest.mark.parametrize("failing", ["pytest", "contrastive.py", "nothing"])
def test_the_quick_form_measures_the_cells_of_the_targets(bench: ModuleType, tmp_path: Path, failing: str) -> None:
    code, calls, errors = calls_of(tmp_path, "bench-gpu-quick", failing=failing)
    assert (code == 0) == (failing == "nothing"), errors
    assert failing == "nothing" or "bench-gpu-quick: failed: " in errors
    _, tests, benchmark = calls
    assert tests == "pairs -m pytest -m gpu"
    assert "--out bench/results/contrastive-cuda.json" in benchmark
    words = benchmark.split()
    sizes = [int(size) for size in words[words.index("--sizes") + 1].split(",")]
    times = {"varalign": 1.0, "varalign, statistics on": 1.0, "varalign, statistics off": 1.0, bench.EAGER: 2.0}
    cells = [cell_of(bench, n, words[words.index("--dtypes") + 1], times | {"inf_cl": 2.0}) for n in sizes]
    for cell in cells:
        cell.memory, cell.errors = {"varalign": 0.0}, {"varalign": 1.0, bench.EAGER: 1.0}
    assert not [target for target in bench.targets(cells, True) if target.verdict.startswith("NOT")]


def test_the_usual_sizes_hold_the_cells_of_the_targets(bench: ModuleType) -> None:
    assert bench.usual_sizes("bfloat16", True)[:2] == [32768, 262144]
    assert max(bench.usual_sizes("float32", True)) == 65536
    assert bench.usual_sizes("float32", False)[0] == 8192


@needs_make
@pytest.mark.parametrize("goal", ["bench-gpu", "bench-gpu-quick"])
def test_bench_gpu_passes_public_kernels_on(tmp_path: Path, goal: str) -> None:
    _, calls, _ = calls_of(tmp_path, goal, "PEERS=/public kernels")
    given = [call for call in calls if "--peers" in call]
    assert len(given) == 1 and "bench/contrastive.py --peers /public kernels --out" in given[0]
