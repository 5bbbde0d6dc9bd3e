"""Measure tile sizes of the contrastive kernels on the device at hand, and print lines for `kernels/launch_table.py`.

Every pass is timed with every candidate at N = `--queries`; one that does not compile or does not fit is left out.
Takes some minutes; nothing at a user's site runs it.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from varalign.kernels import contrastive as kernel
from varalign.kernels.launch_table import Launch, launch

TASKS = ("similarity", "gradient", "fused")


def candidates(precision: str) -> Iterator[Launch]:
    if precision == "ieee":
        sizes, depths, warps, stages = ((32, 32), (32, 64), (64, 32), (64, 64), (128, 64)), (16, 32), (4, 8), (2, 3)
    else:
        sizes = ((64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
        depths, warps, stages = (32, 64), (4, 8, 16), (2, 3, 4)
    for (block_m, block_n), *rest in itertools.product(sizes, depths, warps, stages):
        yield Launch(block_m, block_n, *rest)


def seconds(run: Callable[[], object], rounds: int = 5) -> float:
    run()
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def tune(task: str, n: int, d: int, dtype: torch.dtype) -> tuple[Launch, float, float]:
    """The fastest candidate for one pass, its time and the heuristic's."""
    u, v = (F.normalize(torch.randn(n, d, device="cuda"), dim=1).to(dtype) for _ in range(2))
    ids, scale = torch.arange(n, device="cuda"), torch.tensor(20.0, device="cuda")
    terms = torch.ones(4, n, device="cuda")
    upstream = torch.full((n,), 1 / n, device="cuda")
    empty = kernel.empty_cache(u, v, 0)

    def run() -> object:
        if task == "similarity":
            return kernel.tile_sums(u, v, scale, ids, ids)
        backward = "fused" if task == "fused" else "blocks"
        return kernel.tile_gradients(
            u, v, scale, ids, ids, terms, terms, upstream, upstream, empty, ignore=False, backward=backward
        )

    plain = kernel._launch
    before = seconds(run)
    best = (plain(task, u, n), before)
    precision = "16" if u.dtype.itemsize == 2 else "tf32" if kernel._tf32() else "ieee"
    for candidate in candidates(precision):
        kernel._launch = lambda name, x, q, c=candidate: c if name == task else plain(name, x, q)
        try:
            taken = seconds(run)
        except Exception as error:
            print(f"{task} {candidate}: {type(error).__name__}", file=sys.stderr)
            continue
        finally:
            kernel._launch = plain
        if taken < best[1]:
            best = candidate, taken
    return *best, before


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--queries", type=int, default=16384)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[128, 256, 512, 768, 1024])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device: there is nothing to measure here")
    capability = torch.cuda.get_device_capability()
    launch.cache_clear()
    print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, N = {options.queries}")
    for dtype, precision in ((torch.bfloat16, "16"), (torch.float32, "tf32" if kernel._tf32() else "ieee")):
        for task, d in itertools.product(TASKS, options.dimensions):
            best, taken, before = tune(task, options.queries, d, dtype)
            values = ", ".join(str(value) for value in dataclasses.astuple(best))
            print(
                f"({task!r}, {capability}, {precision!r}, {d}): Launch({values}),  "
                f"# {taken * 1e3:.2f} ms, was {before * 1e3:.2f}"
            )


if __name__ == "__main__":
    main()
