"""Compile the contrastive kernels for GPUs that need not be here: registers, spilled bytes and shared memory of each.

Every kernel in every dtype and combination of switches that is used, as Triton's just-in-time compiler would specialise
it, by the assembler in Triton's wheel. Exit code 1 where one does not compile or needs more shared memory than the
architecture has; spills are shown, not refused: they cost time, not correctness. `--quick` takes one combination of
each kernel. Needs no device, and measures no speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

if os.environ.get("TRITON_INTERPRET") == "1":
    sys.exit("compile_kernels.py: TRITON_INTERPRET=1 makes kernels that cannot be compiled; unset it")

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from varalign.kernels import matching, passes, queries, tiles, variances, weighting

# KiB of shared memory that one program may have, by compute capability.
SHARED_KIB = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
PRECISIONS = {"bf16": ("16",), "fp16": ("16",), "fp32": ("ieee", "tf32")}
KERNELS = {
    "similarity": tiles.similarity_block,
    "positive": tiles.positive_pass,
    "gradient": tiles.gradient_block,
    "merge": queries.merge_parts,
    "merge ids": queries.merge_ids,
    "settle": queries.settle_queries,
    "finish": queries.finish_gradients,
    "match compared": matching.match_by_comparing,
    "match sorted": matching.match_sorted,
    "match pairs": matching.match_pairs,
    "sums": variances.embedding_sums,
    "centre": variances.centre,
    "quadratic": variances.quadratic_form,
    "means": weighting.direction_means,
    "upstream": weighting.query_gradients,
    "schedule": weighting.schedule_step,
}
# Those whose code depends on the embeddings' dtype; the others are compiled once.
TYPED = ("similarity", "gradient", "positive", "finish", "sums", "centre", "quadratic")
PRODUCTS = ("positive", "quadratic")
# Arguments that are numbers; the rest are constants or point to float32 unless `signature` says otherwise.
NUMBERS = {
    *("M", "N", "Q", "D", "begin", "top", "left", "height", "width", "tiles", "stride"),
    *("count", "queries", "pairs", "P", "column_count", "row_count", "column_programs"),
    *("stride_um", "stride_vn", "stride_row"),
}
FRACTIONS = {"keep", "fresh", "floor", "rest", "gamma"}


@dataclasses.dataclass(frozen=True)
class Launch:
    """Tile of a kernel that multiplies (else 0), and how a GPU runs it."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


@dataclasses.dataclass(frozen=True)
class Build:
    """One kernel, specialised: `switches` are its other constants; aligned: sizes and strides are multiples of 16."""

    task: str
    capability: int
    dtype: str
    precision: str
    launch: Launch
    switches: tuple[tuple[str, int], ...]
    aligned: bool = True


@dataclasses.dataclass(frozen=True)
class Resources:
    """What one thread (registers, spilled bytes) and one program (bytes of shared memory) of a kernel take."""

    registers: int
    spilled: int
    shared: int


def signature(build: Build) -> tuple[dict[str, str], dict[str, Any]]:
    """Types of the kernel's arguments, and the values of the constant ones."""
    function = KERNELS[build.task].jit
    constants: dict[str, Any] = {
        "WIDE": tl.float32, "PRECISION": "tf32" if build.precision == "tf32" else "ieee", "UPCAST": False,
        "BM": build.launch.block_m, "BN": build.launch.block_n, "BK": build.launch.block_k, "PARTS": variances.PARTS,
        "GAIN": build.dtype == "fp16", "NARROW": build.dtype != "fp32",
        "stride_ud": 1, "stride_vd": 1, "stride_dim": 1, **dict(build.switches),
    }  # fmt: skip
    pointers = dict.fromkeys(("codes", "table"), "*i32")
    pointers |= dict.fromkeys(("row_ids", "column_ids", "sorted_ids", "order"), "*i64")
    pointers |= dict.fromkeys(("U", "V", "X"), f"*{build.dtype}")
    kept = "*i16" if build.dtype != "fp32" else "*fp32"
    pointers |= {"cache": kept, "logits": kept if constants.get("CACHE") else "*fp32"}
    if build.task in ("gradient", "finish"):
        pointers["out"] = f"*{build.dtype}"
    elif build.task == "centre" and build.dtype != "fp32":
        pointers["out"] = "*bf16"
    types = {}
    for name in function.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name == "steps":
            types[name] = "*i64" if build.task == "schedule" else "i32"
        else:
            types[name] = "i32" if name in NUMBERS else "fp32" if name in FRACTIONS else pointers.get(name, "*fp32")
    return types, {name: value for name, value in constants.items() if name in function.arg_names}


def compile_one(build: Build) -> Resources | str:
    """The kernel's resources, or why it does not compile."""
    function = KERNELS[build.task].jit
    types, constants = signature(build)
    places = {name: place for place, name in enumerate(function.arg_names)}
    aligned = [name for name, kind in types.items() if kind[0] == "*" or (kind == "i32" and build.aligned)]
    # These are counts, which the just-in-time compiler seldom finds divisible.
    aligned = [name for name in aligned if name not in ("tiles", "steps")]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = triton.compile(
                ASTSource(
                    function,
                    types,
                    {(places[name],): value for name, value in constants.items()},
                    {(places[name],): [["tt.divisibility", 16]] for name in aligned},
                ),
                target=GPUTarget("cuda", build.capability, 32),
                options={"num_warps": build.launch.warps, "num_stages": build.launch.stages},
            )
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"
    if build.dtype != "fp32" and build.task in PRODUCTS and "mma" not in compiled.asm["ptx"]:
        return "the matrix product does not run on tensor cores"
    registers, spilled = machine_resources(compiled.asm["cubin"])
    return Resources(registers, spilled, int(compiled.metadata.shared))


def machine_resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes a thread, as the machine code states them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+)", text)
    return max(int(r) for r, _ in found), max(int(s) for _, s in found)


def switches_of(task: str, dtype: str) -> list[tuple[tuple[str, int], ...]]:
    """All combinations of a kernel's own constants that the launches use."""
    kept = 2 if dtype != "fp32" else 1
    weights = {"IMAGE_WEIGHTS": [False, True], "TEXT_WEIGHTS": [False, True]}
    axes: dict[str, dict[str, list[Any]]] = {
        "similarity": {"CACHE": [0, kept], "STATISTICS": [True, False], "IDS": [1, 2]},
        "positive": {"TERMS": [False, True], "IDS": [1, 2]},
        "gradient": {"CACHE": [0, kept], "IGNORE": [False, True], "IDS": [1, 2]},
        "merge ids": {"TERMS": [False, True], "IDS": [2, 8], "BQ": [128]},
        "merge": {"STATISTICS": [True, False], "BP": [1, 64], "BQ": [64]},
        "settle": {"VARIANCE": [True, False], "IGNORE": [False, True], "BQ": [128]},
        "finish": {"SLOPE": [True, False], "BR": [16], "BD": [128, 16]},
        "match compared": {"BQ": [16], "BC": [256]},
        "match sorted": {"BQ": [256]},
        "match pairs": {"BQ": [256]},
        "sums": {"BR": [16, 2], "BD": [512, 4096]},
        "centre": {"BR": [64], "BD": [64]},
        "quadratic": {},
        "means": {**weights, "BQ": [1024]},
        "upstream": {**weights, "BQ": [256]},
        "schedule": {"LEARN": [True, False]},
    }
    made = [tuple(zip(axes[task], values, strict=True)) for values in itertools.product(*axes[task].values())]
    # Wide rows are taken few at a time.
    return [switches for switches in made if dict(switches).get("BD") != 4096 or dict(switches)["BR"] == 2]


def launch_of(task: str, dtype: str) -> Launch:
    if task == "quadratic":
        return Launch(64, 64 if dtype == "fp32" else 256, 32, 8, 2)
    if task == "positive":
        return Launch(32, 32, 32, 4, 2)
    if task == "similarity":
        return Launch(*passes.SUMS_TILE, 0, passes.SUMS_WARPS, 3)
    if task == "gradient":
        return Launch(*passes.GRADIENT_TILE, 0, passes.GRADIENT_WARPS, 3)
    return Launch(0, 0, 0, 1 if task == "schedule" else 4, 3)


def builds(capabilities: list[int]) -> Iterator[Build]:
    for capability, (dtype, precisions), task in itertools.product(capabilities, PRECISIONS.items(), KERNELS):
        if (capability < 80 and dtype == "bf16") or (task not in TYPED and dtype != "fp32"):
            continue
        for precision in precisions if task in PRODUCTS else precisions[:1]:
            if capability < 80 and precision == "tf32":
                continue
            config = launch_of(task, dtype)
            for switches in switches_of(task, dtype):
                yield Build(task, capability, dtype, precision, config, switches)
            yield Build(task, capability, dtype, precision, config, switches_of(task, dtype)[0], aligned=False)


def quick(capabilities: list[int]) -> Iterator[Build]:
    """One combination of every kernel, in bfloat16 where the dtype matters."""
    for capability, task in itertools.product(capabilities, KERNELS):
        dtype = "bf16" if task in TYPED else "fp32"
        yield Build(task, capability, dtype, "16", launch_of(task, dtype), switches_of(task, dtype)[0])


def row_of(build: Build, result: Resources | str) -> dict[str, Any]:
    limit = SHARED_KIB[build.capability] << 10
    row = {**dataclasses.asdict(build), "switches": dict(build.switches), "shared_limit": limit}
    if isinstance(result, str):
        return {**row, "fault": result}
    fault = f"needs {result.shared} bytes of shared memory, of {limit}" if result.shared > limit else ""
    return {**row, **dataclasses.asdict(result), "fault": fault}


def line_of(row: dict[str, Any]) -> str:
    config = row["launch"]
    name = f"sm_{row['capability']} {row['task']} {row['dtype']} {row['precision']}"
    tile = f"{config['block_m']}x{config['block_n']}x{config['block_k']} " if config["block_m"] else ""
    sizes = f"{tile}warps {config['warps']} stages {config['stages']}"
    switches = " ".join(f"{key}={value}" for key, value in row["switches"].items()) + (
        "" if row["aligned"] else " unaligned"
    )
    if "registers" not in row:
        return f"{name}  {sizes}  {switches}  FAULT {row['fault']}"
    spills = f", {row['spilled']} bytes spilled" if row["spilled"] else ""
    fault = f"  FAULT {row['fault']}" if row["fault"] else ""
    return f"{name}  {sizes}  {switches}  {row['registers']} registers{spills}, {row['shared'] >> 10} KiB shared{fault}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--capabilities", type=lambda text: [int(part) for part in text.split(",")],
                        help=f"of {', '.join(map(str, SHARED_KIB))} (default: 80,90,100)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one combination of each kernel")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON list")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    options = parser.parse_args()
    chosen = options.capabilities or [80, 90, 100]
    if unknown := set(chosen) - set(SHARED_KIB):
        parser.error(f"unknown compute capability {min(unknown)}; known: {', '.join(map(str, SHARED_KIB))}")
    work = list(quick(chosen) if options.quick else builds(chosen))
    rows = []
    with ProcessPoolExecutor(options.workers) as pool:
        for build, result in zip(work, pool.map(compile_one, work), strict=True):
            rows.append(row_of(build, result))
            print(line_of(rows[-1]), file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))
    faults = sum(bool(row["fault"]) for row in rows)
    spills = sum(bool(row.get("spilled")) for row in rows)
    print(f"{len(rows)} kernels compiled, {faults} with faults, {spills} that spill", file=sys.stderr)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
