"""t-SNE of more than 10,000 points: ours, which is openTSNE's, beside scikit-learn's, which lays out fewer.

    OMP_NUM_THREADS=1 python bench/tsne.py [--pairs 6000] [--json] [--out FILE]

Each lays out the same made pairs of 256 numbers once, on one thread: 200 clusters, each text near its image. Beside the
time stands the share of the 10 nearest points that a layout keeps, of 1,000 points; layouts agree where it is no lower
than 0.05 below the other's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

import numpy as np
from harness import Row, main, single
from numpy.typing import NDArray
from varalign.pictures import tsne

PACKAGES = ["openTSNE", "scikit-learn", "numpy"]


def made(pairs: int) -> NDArray[np.float32]:
    """(2 · pairs, 256) unit vectors: images, then their texts."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((200, 256), np.float32)
    images = centres[rng.integers(0, 200, pairs)] + rng.standard_normal((pairs, 256), np.float32) / 2
    texts = images + rng.standard_normal((pairs, 256), np.float32) / 2
    points = np.concatenate([images, texts])
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def kept(points: NDArray[np.float32], layout: NDArray[np.float32]) -> float:
    """Share of the 10 nearest points of 1,000 points that are among their 10 nearest in the layout."""
    from sklearn.neighbors import NearestNeighbors

    chosen = np.random.default_rng(1).permutation(len(points))[:1000]
    near = [
        NearestNeighbors(n_neighbors=11).fit(places).kneighbors(places[chosen], return_distance=False)
        for places in (points, layout)
    ]
    return float(np.mean([len(set(a) & set(b)) - 1 for a, b in zip(*near, strict=True)])) / 10


def subjects(options: argparse.Namespace) -> Iterator[Sequence[Row]]:
    """Seconds of processor time and neighbours kept."""
    points, most = made(options.pairs), tsne.MOST_POINTS
    found = {}
    for name, limit in (("varalign, by openTSNE", most), ("scikit-learn", 2 * options.pairs)):
        tsne.MOST_POINTS = limit
        began = time.process_time()
        layout = tsne.layouts(points, [30], jobs=1)[0]
        found[name] = time.process_time() - began, kept(points, layout)
    (ours, _), (_, theirs_kept) = found.values()
    yield [
        single(
            f"t-SNE of {len(points):,} points, perplexity 30", name, seconds, "s", ratio=ours / seconds,
            agrees=share > theirs_kept - 0.05, note=f"{share:.3f} of the 10 nearest points are kept", packages=PACKAGES,
        )
        for name, (seconds, share) in found.items()
    ]  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """How many pairs."""
    parser.add_argument("--pairs", type=int, default=6000, help="pairs, two points each (default: 6,000)")


if __name__ == "__main__":
    main(__doc__, subjects, add_options)
