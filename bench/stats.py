"""RunningMoments over a large float32 array against a plain sum, numpy.var and torch.var, and how many digits it keeps.

    python bench/stats.py [--elements 100000000] [--json]

The sum is the floor that memory sets, and does not compute the same: it is marked so. Peers run on one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from harness import Contender, Row, compare, judged, main, single
from varalign.data.moments import RunningMoments

DIFFERS = "a sum alone, the floor that memory sets"


def moments_of(values: Any, threads: int = 1) -> RunningMoments:
    """All values in one update."""
    moments = RunningMoments()
    moments.update(values, threads=threads)
    return moments


def peers(values: Any) -> list[Contender]:
    """NumPy's and, where it is installed, torch's sum and variance."""
    found = [
        Contender("numpy sum", lambda: float(values.sum()), differs=DIFFERS),
        Contender("numpy var, float64 sums", lambda: float(values.var(dtype=np.float64))),
        Contender("numpy var, float32 sums", lambda: float(values.var())),
    ]
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
        tensor = torch.from_numpy(values)
        found.append(Contender("torch sum", lambda: float(tensor.sum()), differs=DIFFERS))
        found.append(Contender("torch var", lambda: float(tensor.var(correction=0))))
    return found


def agree(a: Any, b: Any) -> bool:
    """Whether two variances are equal to five digits: float32 sums keep no more."""
    return abs(a - b) < 1e-5 * abs(a)


def digits(found: float, truth: float) -> float:
    """Decimal digits that two numbers share; 16 where they are equal."""
    return 16.0 if found == truth else min(16.0, -math.log10(abs(found - truth) / abs(truth)))


def exact_moments(values: Any) -> tuple[float, float]:
    """Mean and variance in two passes of correctly rounded sums (math.fsum)."""
    exact = [float(value) for value in values]
    mean = math.fsum(exact) / len(exact)
    return mean, math.fsum((value - mean) ** 2 for value in exact) / len(exact)


def precision() -> Iterable[Sequence[Row]]:
    """Digits of the mean and the variance, beside what is promised."""
    rng = np.random.default_rng(1)
    far = 1e9 + rng.standard_normal(1_000_000)
    near = rng.random(1_000_000, dtype=np.float32)
    cases: list[tuple[str, Any, float, Callable[[Any], tuple[float, float]]]] = [
        ("float64 of mean 1e9, deviation 1: digits against exact sums", far, 9, exact_moments),
        ("float32, uniform: digits against exact sums", near, 12, exact_moments),
        ("float32, uniform: digits against numpy in float64", near, 12, numpy_moments),
        ("float32 of mean 1,000: digits against exact sums", near + np.float32(1000), 12, exact_moments),
    ]
    for subject, values, wanted, truth in cases:
        mean, variance = truth(values)
        moments = moments_of(values)
        yield [
            single(subject, "varalign, mean", kept := digits(moments.mean, mean), "digits", agrees=kept >= wanted),
            single(
                subject,
                "varalign, variance",
                kept := digits(moments.variance(), variance),
                "digits",
                agrees=kept >= wanted,
            ),
            single(subject, "numpy var", digits(float(values.var()), variance), "digits", packages=["numpy"]),
        ]


def numpy_moments(values: Any) -> tuple[float, float]:
    return float(values.mean(dtype=np.float64)), float(values.var(dtype=np.float64))


def scaling(values: Any, rounds: int) -> Iterable[Sequence[Row]]:
    """Every core against one, beside the same of torch's plain sum on as many threads: what the machine lets through.

    Two cores that share a memory bus, or are two threads of one, are not twice as fast at reading whatever reads.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    contenders = [
        Contender(f"varalign, {cores} threads", lambda: moments_of(values, 0).variance(), ours=True),
        Contender("varalign, 1 thread", lambda: moments_of(values).variance()),
    ]
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
        tensor = torch.from_numpy(values)
        pool, parts = ThreadPoolExecutor(cores), tensor.chunk(cores)
        contenders += [
            Contender(
                f"torch sum, {cores} threads, a part each",
                lambda: sum(pool.map(lambda part: float(part.sum()), parts)),
                differs=DIFFERS,
            ),
            Contender("torch sum, 1 thread", lambda: float(tensor.sum()), differs=DIFFERS),
        ]
    subject = f"moments of {len(values):,} float32, all {cores} cores against one"
    rows = compare(
        subject,
        contenders,
        work=len(values),
        unit="elements/s",
        agree=lambda a, b: a == b,
        rounds=rounds,
        packages=["torch"],
    )
    yield rows
    if len(rows) < 4:
        return
    ours, torch_sum = ([rows[at], rows[at + 1]] for at in (0, 2))
    for clock, times in {
        "wall time": lambda pair: pair[1].ratio / pair[0].ratio,
        "wall time of the quickest rounds": lambda pair: (pair[0].best or 0) / (pair[1].best or 1),
        # What a thread loses while another one reads too; where others use the cores, the only clock to go by.
        "processor time": lambda pair: cores * (pair[0].processor or 0) / (pair[1].processor or 1),
    }.items():
        found, ceiling = times(ours), times(torch_sum)
        where = f"{cores} threads in times of one, by {clock}"
        yield [
            single(where, "moments", found, "times"),
            single(where, "torch sum: what the machine lets through", ceiling, "times", packages=["torch"]),
            judged(where, "moments in times of that", found / ceiling, 0.9),
        ]


def subjects(options: argparse.Namespace) -> Iterable[Sequence[Row]]:
    """One thread against the peers, every core against one thread, then digits."""
    values = np.random.default_rng(0).random(options.elements, dtype=np.float32)
    others = peers(values)
    yield compare(
        f"moments of {len(values):,} float32, one thread",
        [Contender("varalign", lambda: moments_of(values).variance(), ours=True), *others],
        work=len(values),
        unit="elements/s",
        agree=agree,
        rounds=options.rounds,
        packages=["numpy", "torch"],
    )
    yield from scaling(values, max(options.rounds, 15))
    yield from precision()


def arguments(parser: argparse.ArgumentParser) -> None:
    """The script's own options."""
    parser.add_argument("--elements", type=int, default=100_000_000, help="array length (default: 100 million)")


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
