"""Measure tile sizes of the contrastive kernels on the device at hand, and print lines for `kernels/launch_table.py`.

Every pass is timed with every candidate at N = `--queries`; one that does not compile or does not fit is left out.
Compiling is most of the work: 20 to 30 candidates a pass and dtype, once for all dimensions. `--out FILE` keeps the
lines for `contrastive.py --launches FILE`, after every pass anew. Nothing at a user's site runs it. On a CPU,
`--dry-run` walks the same path through Triton's interpreter (TRITON_INTERPRET=1); its times mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from varalign.kernels import host
from varalign.kernels import passes as kernel
from varalign.kernels import query_fields as f
from varalign.kernels.launch_table import Launch

TASKS = ("similarity", "gradient")


def candidates(precision: str, *, dry_run: bool = False) -> Iterator[Launch]:
    """Tiles of up to 128 x 256; as many warps as keep 64 to 128 accumulators a thread (more spill, fewer starve)."""
    if dry_run:
        yield from (Launch(16, 16, 16, 1, 1), Launch(32, 16, 16, 1, 1))
        return
    if precision == "ieee":
        sizes, depths, stages = ((32, 64), (64, 32), (64, 64), (128, 64)), (16, 32), (2, 3)
    else:
        sizes, depths, stages = (
            ((64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128)),
            (32, 64),
            (2, 3, 4),
        )
    for (block_m, block_n), depth, stage in itertools.product(sizes, depths, stages):
        for warps in (4, 8):
            accumulators = block_m * block_n // (32 * warps)
            if 16 <= accumulators <= 128 and not (stage == 4 and depth == 64 and block_m * block_n > 1 << 14):
                yield Launch(block_m, block_n, depth, warps, stage)


def seconds(run: Callable[[], object], rounds: int = 5) -> float:
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    run()
    times = []
    for _ in range(rounds):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def precision_of(dtype: torch.dtype) -> str:
    return "16" if dtype.itemsize == 2 else "tf32" if host.tf32() else "ieee"


def tune(task: str, n: int, d: int, dtype: torch.dtype, *, dry_run: bool) -> tuple[Launch, float, float]:
    """The fastest candidate for one pass, its time and that of the launch in use."""
    device = "cpu" if dry_run else "cuda"
    u, v = (F.normalize(torch.randn(n, d, device=device), dim=1).to(dtype) for _ in range(2))
    scale = torch.tensor(20.0, device=device)
    # As after a forward pass over such embeddings: exponentials near one another, none out of range.
    terms = torch.full((4, 2 * n), 25.0, device=device)
    terms[f.SHARE], terms[f.INVERSE_COUNT] = 1.0, 1.0
    upstream = torch.full((2 * n,), 1 / n, device=device)
    table, norms, empty = kernel.match(u, v, None, None), *kernel.kept_like(u, v, None, 0)[1:]

    def run() -> object:
        if task == "similarity":
            return kernel.tile_sums(u, v, scale, None, None)
        return kernel.tile_gradients(u, v, scale, (table, norms, empty), terms, upstream, ignore=False)

    plain = kernel._launch
    before = seconds(run)
    best = (plain(task, u, n), before)
    for candidate in candidates(precision_of(dtype), dry_run=dry_run):
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
    parser.add_argument("--out", type=Path, help="write what contrastive.py --launches reads")
    parser.add_argument(
        "--dry-run", action="store_true", help="two candidates through the interpreter, without a device"
    )
    options = parser.parse_args()
    if options.dry_run and not host.INTERPRETED:
        parser.error("--dry-run needs TRITON_INTERPRET=1")
    if not options.dry_run and (host.INTERPRETED or not torch.cuda.is_available()):
        parser.error("no CUDA device (or TRITON_INTERPRET=1 is set): there is nothing to measure here")
    capability = (0, 0) if options.dry_run else torch.cuda.get_device_capability()
    name = "interpreter" if options.dry_run else torch.cuda.get_device_name()
    lines = []
    print(f"# {name}, torch {torch.__version__}, N = {options.queries}")
    for dtype, task, d in itertools.product((torch.bfloat16, torch.float32), TASKS, options.dimensions):
        best, taken, before = tune(task, options.queries, d, dtype, dry_run=options.dry_run)
        values = dataclasses.astuple(best)
        print(
            f"({task!r}, {capability}, {precision_of(dtype)!r}, {d}): Launch({', '.join(map(str, values))}),  "
            f"# {taken * 1e3:.2f} ms, was {before * 1e3:.2f}",
            flush=True,
        )
        lines.append(
            {
                "task": task,
                "capability": capability,
                "precision": precision_of(dtype),
                "dimensions": d,
                "launch": values,
            }
        )
        if options.out:
            options.out.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
