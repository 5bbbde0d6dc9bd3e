"""Runs the kernels' cases in a process of their own, and compiles every kernel for GPUs that need not be there."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed here")

CASES = Path(__file__).with_name("cases.py")


def run_cases(**environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", str(CASES)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=900, cwd=CASES.parents[2])
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


def test_through_the_interpreter() -> None:
    run_cases(TRITON_INTERPRET="1")


@pytest.mark.gpu
def test_on_a_device() -> None:
    run_cases(TRITON_INTERPRET="0")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels cannot be compiled")
@pytest.mark.parametrize(
    ("name", "capability", "dtype"),
    [
        ("similarity_pass", 80, "bf16"),
        ("similarity_pass", 90, "bf16"),
        ("similarity_pass", 90, "fp32"),
        ("merge_parts", 90, "fp32"),
        ("positive_pass", 90, "bf16"),
        ("gradient_block", 90, "bf16"),
        ("fused_rows", 90, "bf16"),
    ],
)
def test_compiles_for_a_gpu(name: str, capability: int, dtype: str) -> None:
    """To machine code, by the compiler that Triton ships; a matrix product on tensor cores where there are 16 bits."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from varalign.kernels import tiles

    function = getattr(tiles, name)
    cached = name == "similarity_pass" and dtype == "bf16"
    constants = {"BM": 32, "BN": 32, "BK": 32, "BD": 64, "BP": 64, "BQ": 64, "WIDE": tl.float32, "PRECISION": "ieee"}
    constants |= {"UPCAST": False, "IGNORE": False, "TERMS": False, "CACHE": 2 if cached else 0}
    constants |= {"stride_ud": 1, "stride_vd": 1}
    pointers = dict.fromkeys(("row_codes", "column_codes"), "*i32")
    pointers |= dict.fromkeys(("row_order", "column_order", "firsts", "lasts"), "*i64")
    pointers |= {"U": f"*{dtype}", "V": f"*{dtype}", "cache": "*i16" if cached else "*fp32"}
    if name == "gradient_block":
        pointers["out"] = f"*{dtype}"
    numbers = {
        "M",
        "N",
        "D",
        "P",
        "Q",
        "begin",
        "end",
        "tiles_per_split",
        "row_begin",
        "column_begin",
        "height",
        "width",
    }
    numbers |= {"stride_um", "stride_vn", "stride_sums"}
    kinds = {"i32": numbers, "constexpr": set(constants)}
    signature = {
        argument: next((kind for kind, names in kinds.items() if argument in names), pointers.get(argument, "*fp32"))
        for argument in function.arg_names
    }
    fixed = {(i,): constants[a] for i, a in enumerate(function.arg_names) if a in constants}
    aligned = {(i,): [["tt.divisibility", 16]] for i, a in enumerate(function.arg_names) if signature[a][0] == "*"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = triton.compile(
            ASTSource(function, signature, fixed, aligned),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": 4, "num_stages": 2},
        )
    assert len(compiled.asm["cubin"]) > 0
    if dtype == "bf16":
        assert "mma" in compiled.asm["ptx"]
