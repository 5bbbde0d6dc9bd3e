"""95 % intervals of recall: a bootstrap over images.

A sample draws as many images as there are, with replacement; an image's weight is how often it was drawn. The sample's
i2t recall is the weighted share of image queries that are hits. A text query has the weight of its image, a text of
several images the mean of their weights. Ranks stay those among all candidates. The interval goes from the 2.5th to
the 97.5th percentile of `SAMPLES` samples. It covers the choice of images, not that of the seed. Where every query is
hit, or none, all samples are alike: the bound is then that of Clopper & Pearson 1934 for as many images.

Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, §13.3; all queries of an image are drawn together.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from varalign.evaluation.retrieval import KS, is_hit

# I images, T texts, E pairs of a text and its image, C figures

SAMPLES = 1000
LEVELS = (0.025, 0.975)
_WEIGHTS_AT_ONCE = 1 << 24


def recall_intervals(
    i2t: NDArray[np.int64], t2i: NDArray[np.int64], pairs: NDArray[np.int64], ks: Sequence[int] = KS
) -> dict[str, list[float]]:
    """[low, high] of each recall.

    Args:
        i2t, t2i: (I,) and (T,) ranks, as `retrieval.ranks` gives them.
        pairs: (E, 2) each text with its image, or with each of its images: rows of texts and of images.
        ks: the K's.

    Returns:
        The keys of `retrieval.recalls`, fractions.
    """
    text, image = np.asarray(pairs).T
    share = 1.0 / np.bincount(text, minlength=len(t2i))[text]  # of a text's weight, from each of its images
    images = len(i2t)
    hits: list[NDArray[np.float64]] = [is_hit(i2t, k, len(t2i)).astype(np.float64) for k in ks]
    hits += [np.bincount(image, share * is_hit(t2i, k, images)[text], images).astype(np.float64) for k in ks]
    queries = [(i2t >= 0).astype(np.float64)] * len(ks) + [np.bincount(image, share, images)] * len(ks)
    found = np.stack(hits, axis=1)
    asked: NDArray[np.float64] = np.stack(queries, axis=1).astype(np.float64)
    low, high = bootstrap(found, asked)
    shares = found.sum(axis=0) / np.maximum(asked.sum(axis=0), np.finfo(np.float64).tiny)
    alike = LEVELS[0] ** (1 / np.maximum((asked > 0).sum(axis=0), 1))
    low = np.where(np.isclose(shares, 1), np.minimum(low, alike), low)
    high = np.where(np.isclose(shares, 0), np.maximum(high, 1 - alike), high)
    keys = [f"{direction}_recall@{k}" for direction in ("i2t", "t2i") for k in ks]
    return {key: [float(a), float(b)] for key, a, b in zip(keys, low, high, strict=True)}


def bootstrap(hits: NDArray[np.float64], queries: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, C) lower and upper bounds of C shares of queries that are hits.

    Args:
        hits, queries: (I, C) what each image adds to a share's numerator and to its denominator.
    """
    images, figures = hits.shape
    both = np.concatenate([hits, queries], axis=1)
    if images * SAMPLES <= _WEIGHTS_AT_ONCE:
        sums = _weights(images) @ both
    else:  # too large to be kept: drawn and used sample by sample
        sums = np.stack([weights @ both for weights in _draw(images)])
    shares = sums[:, :figures] / np.maximum(sums[:, figures:], np.finfo(np.float64).tiny)
    return np.asarray(np.quantile(shares, LEVELS, axis=0))


def _draw(images: int) -> map[NDArray[np.int64]]:
    """The weights of each sample in turn: (I,) how often each image was drawn."""
    generator = np.random.default_rng([images, SAMPLES])
    drawn = (generator.integers(0, images, images) for _ in range(SAMPLES))
    return map(functools.partial(np.bincount, minlength=images), drawn)


@functools.lru_cache(maxsize=2)
def _weights(images: int) -> NDArray[np.float64]:
    """(samples, I) as float64, whose products take BLAS; kept for the next evaluation of the same split."""
    return np.stack(list(_draw(images))).astype(np.float64)
