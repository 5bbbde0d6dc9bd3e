"""Tile sizes of the kernels: a table of measured configurations, and a heuristic for the rest.

`bench/tune_contrastive.py` measures on the device at hand and prints lines for `MEASURED`. Nothing is tuned at a user's
first step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any


@dataclass(frozen=True)
class Launch:
    """Tile of `block_m` queries x `block_n` candidates, `block_k` dimensions at a time, and how a GPU runs it."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


# (pass, compute capability, precision, largest D that it holds for) -> Launch, ordered by D. Empty: no device has been
# measured yet, every launch is the heuristic's.
MEASURED: dict[tuple[str, tuple[int, int], str, int], Launch] = {}


def install(lines: list[dict[str, Any]]) -> None:
    """Take measured launches as `bench/tune_contrastive.py --out` writes them, for this process.

    Args:
        lines: dictionaries with "task", "capability" (two numbers), "precision", "dimensions" and "launch" (five).
    """
    measured = {
        (line["task"], tuple(line["capability"]), line["precision"], line["dimensions"]): Launch(*line["launch"])
        for line in lines
    }
    MEASURED.update(dict(sorted(measured.items(), key=lambda pair: pair[0][3])))
    launch.cache_clear()


PASSES = ("similarity", "positive", "gradient")


@lru_cache(maxsize=256)
def launch(task: str, capability: tuple[int, int], precision: str, queries: int, dimensions: int) -> Launch:
    """The configuration of one pass.

    Args:
        task: one of `PASSES`.
        capability: of the CUDA device; (0, 0) is the interpreter.
        precision: "16" (bfloat16, float16), "tf32", "ieee" (float32 at full precision) or "64".
        queries: rows of the tile's longer side: few queries take small tiles, so that every multiprocessor has one.
        dimensions: D.
    """
    depth = max(16, min(64, 1 << (dimensions - 1).bit_length()))
    if capability == (0, 0):
        # Interpreted, a launch costs per instruction, not per element: few, middling tiles.
        return Launch(32, 32, depth, 1, 1)
    for (known, device, kind, largest), choice in MEASURED.items():
        if (known, device, kind) == (task, capability, precision) and dimensions <= largest and queries > 2048:
            return choice
    if task == "positive":
        # A block's positives are about as many as its queries: a wider tile would be mostly not positives.
        return Launch(32, 32, min(depth, 32), 4, 2)
    if precision == "64":
        return Launch(32, 32, 16, 4, 1)
    if precision == "ieee":
        # No tensor cores: over 4 warps the accumulators and what the products need beside them spill.
        return Launch(64, 64, min(depth, 32), 8, 2)
    # Data-centre Blackwell has its accumulators elsewhere, and the derivatives' terms take twice the registers.
    doubled = 2 if task == "gradient" and (10, 0) <= capability < (12, 0) else 1
    if queries <= 2048 or capability < (8, 0):
        return Launch(64, 64, min(depth, 32), 4 * doubled, 3 if capability >= (8, 0) else 2)
    # 128 x 128 over 8 warps spills up to 500 bytes a thread (`bench/compile_kernels.py`), over 16 warps too.
    return Launch(128, 64, depth if precision == "16" else min(depth, 32), 8 * doubled, 3)
