"""Statistics of a study: intervals over seeds, paired differences by a clustered bootstrap, Holm's correction.

S seeds, I test images. The queries of an image are the image itself (i2t) and its captions (t2i).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varalign.evaluation.retrieval import RECALL_KEYS

Array = NDArray[np.float64]
METRICS = ("mean_recall@1", *RECALL_KEYS)
DRAWS, MOST, ENOUGH = 10_000, 100_000, 10  # numbers of bootstrap samples, see `paired_differences`


def hits(result: Mapping[str, Any], metric: str) -> tuple[Array, Array]:
    """A cell's hits for each image.

    Args:
        result: of a cell: `ranks_i2t`, `ranks_t2i` (one character a query), `captions` (of each image; a text that
            stands at several images is counted with the first).
        metric: one of `METRICS`.

    Returns:
        (I,) each image's hits divided by the number of all queries, so that their sum is the metric; and (I,) each
        image's share of the queries.
    """
    if metric == "mean_recall@1":
        parts = [hits(result, "i2t_recall@1"), hits(result, "t2i_recall@1")]
        return (parts[0][0] + parts[1][0]) / 2, (parts[0][1] + parts[1][1]) / 2
    direction, _, k = metric.partition("_recall@")
    found = np.frombuffer(result[f"ranks_{direction}"].encode(), np.uint8)
    hit = ((found >= ord("0")) & (found < ord("0") + int(k))).astype(np.float64)
    captions = np.asarray(result["captions"], dtype=np.int64)
    if direction == "t2i":
        image = np.repeat(np.arange(len(captions)), captions)
        return np.bincount(image, hit, len(captions)) / len(hit), captions / len(hit)
    queries = found != ord("-")
    return hit * queries / queries.sum(), queries / queries.sum()


def recalls(result: Mapping[str, Any]) -> dict[str, float]:
    """Every metric of a cell, a fraction."""
    return {metric: float(hits(result, metric)[0].sum()) for metric in METRICS}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval by Student's t; the half-width of fewer than two values is NaN."""
    from scipy.stats import t

    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < 2:
        return float(sample.mean()), float("nan")
    return float(sample.mean()), float(t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample)))


def paired_differences(
    pairs: Sequence[tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]], metric: str
) -> list[dict[str, float]]:
    """Mean differences of paired runs, with a bootstrap over test images and, if there are several, seeds.

    The bootstrap draws all queries of an image (itself and its captions) together, because their hits are correlated,
    and keeps the two runs of a seed as a pair. Since it draws both images and seeds, the interval covers other images
    and other seeds; it is rather too wide than too narrow (Owen 2007, "The pigeonhole bootstrap"). Intervals use the
    first `DRAWS` samples. For the p-value, samples are added until `ENOUGH` of them lie on the rarer side of 0, up to
    `MOST` (Besag & Clifford 1991), because a correction for many comparisons needs exact small p-values.

    Args:
        pairs: (ours, theirs): the results of cells, one for each seed, with the same seeds in the same order.
        metric: one of `METRICS`.

    Returns:
        For each pair `difference` (ours − theirs, a fraction), `low`, `high` (95 %, percentiles), `p` (two-sided, at
        least 2 / (MOST + 1)).

    Raises:
        ValueError: runs that are not paired, or were measured on different queries.
    """
    comparisons = [_Comparison.of(ours, theirs, metric) for ours, theirs in pairs]
    for part in range(MOST // DRAWS):
        undecided = [one for one in comparisons if one.draws == 0 or min(one.below, one.above) < ENOUGH]
        for images in dict.fromkeys(one.table.shape[1] for one in undecided):
            image_draws = _draws(images, DRAWS, 0, part).astype(np.float64)
            for one in undecided:
                if one.table.shape[1] == images:
                    one.add(image_draws, part)
    return [one.summary() for one in comparisons]


@dataclass
class _Comparison:
    """One paired difference, and the counts of the samples drawn so far."""

    table: Array  # (seeds, images)
    share: Array  # (images,)
    low: float = 0.0
    high: float = 0.0
    below: int = 0
    above: int = 0
    draws: int = 0

    @staticmethod
    def of(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], metric: str) -> _Comparison:
        if len(ours) != len(theirs) or not ours:
            raise ValueError(f"wanted as many runs of both, got {len(ours)} and {len(theirs)}")
        if any(list(run["captions"]) != list(ours[0]["captions"]) for run in (*ours, *theirs)):
            raise ValueError("the runs were measured on different test queries and cannot be paired")
        table = np.stack([hits(a, metric)[0] - hits(b, metric)[0] for a, b in zip(ours, theirs, strict=True)])
        return _Comparison(table, hits(ours[0], metric)[1])

    def add(self, image_draws: Array, part: int) -> None:
        """Count one more part of the draws, (draws, images)."""
        seeds = len(self.table)
        seed_draws = _draws(seeds, len(image_draws), 1, part) / seeds
        # Images have different numbers of captions: divide by the number of queries in the sample.
        found = ((image_draws @ self.table.T) * seed_draws).sum(1) / (image_draws @ self.share)
        if part == 0:
            self.low, self.high = (float(value) for value in np.quantile(found, [0.025, 0.975]))
        self.below += int((found <= 0).sum())
        self.above += int((found >= 0).sum())
        self.draws += len(found)

    def summary(self) -> dict[str, float]:
        beyond = min(self.below, self.above)
        return {
            "difference": float(self.table.mean(0).sum()),
            "low": self.low,
            "high": self.high,
            "p": float(min(1.0, 2 * (beyond + 1) / (self.draws + 1))),
        }


@functools.lru_cache(maxsize=32)
def _draws(population: int, draws: int, stream: int, part: int) -> NDArray[np.uint8]:
    """(draws, population) how often each is drawn; the same for every comparison of a study, and made once.

    A byte holds any count that occurs: there are fewer than 255 seeds, and one image of many is not drawn 255 times.
    """
    generator = np.random.default_rng([stream, population, part] if part else [stream, population])
    counts = generator.multinomial(population, np.full(population, 1 / population), size=draws)
    return np.minimum(counts, 255).astype(np.uint8)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in the order given (Holm 1979): the k-th smallest of m by m − k + 1.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - place)))
        corrected[index] = highest
    return corrected
