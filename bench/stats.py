"""RunningMoments over a large float32 array against a plain sum, numpy.var and torch.var.

The sum is the floor that memory sets, and does not compute the same: it is marked so.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from harness import Contender, Row, compare, main
from varalign.data.statistics import RunningMoments


def subjects(options: argparse.Namespace) -> Iterable[Sequence[Row]]:
    """One thread, then every core."""
    values = np.random.default_rng(0).random(options.elements, dtype=np.float32)

    def ours(threads: int) -> float:
        moments = RunningMoments()
        moments.update(values, threads=threads)
        return float(moments.variance())

    differs = "a sum alone, the floor that memory sets"
    peers = [
        Contender("numpy sum", lambda: float(values.sum()), differs=differs),
        Contender("numpy var, float64 sums", lambda: float(values.var(dtype=np.float64))),
    ]
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
        tensor = torch.from_numpy(values)
        peers.append(Contender("torch sum", lambda: float(tensor.sum()), differs=differs))
        peers.append(Contender("torch var", lambda: float(tensor.var(correction=0))))

    def agree(a: Any, b: Any) -> bool:
        return abs(a - b) < 1e-5 * abs(a)

    for threads in sorted({1, os.cpu_count() or 1}):
        yield compare(
            f"moments of {len(values):,} float32, {threads} thread{'s' * (threads > 1)} (peers: one)",
            [Contender("varalign", lambda threads=threads: ours(threads), ours=True), *peers],
            work=len(values),
            unit="elements/s",
            agree=agree,
            rounds=options.rounds,
            packages=["numpy", "torch"],
        )


def arguments(parser: argparse.ArgumentParser) -> None:
    """The script's own options."""
    parser.add_argument("--elements", type=int, default=100_000_000, help="array length (default: 100 million)")


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
