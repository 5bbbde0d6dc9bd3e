"""Closed-form alignment: covariance of a stream, choice of the settings and pair scores, on made-up features.

The covariance is compared with NumPy's float64 covariance of the whole; the canonical correlations with scikit-learn's
CCA and, where it is installed, cca-zoo’s, where those finish. `--only stream --stream 1000000` sends a million
pairs of 768 + 768 features through the closed form, a block at a time.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from harness import Contender, Row, compare, main, single
from varalign.canonical import RunningCovariance, Whitening, pair_scores
from varalign.data.features import FeatureSet, save_features
from varalign.options.config import TrainConfig
from varalign.runs.folder import RunFolder
from varalign.training.run import train


def made_up(images: int, captions: int, dx: int, dy: int) -> FeatureSet:
    """Features of images and captions that share 64 latent directions; a seventh of the images is dev, one is test."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(images, 64, generator=generator)
    owner = torch.arange(images).repeat_interleave(captions)
    x = z @ torch.randn(64, dx, generator=generator) + 8 * torch.randn(images, dx, generator=generator)
    y = z[owner] @ torch.randn(64, dy, generator=generator) + 8 * torch.randn(len(owner), dy, generator=generator)
    split = np.zeros(images, np.int8)
    split[-images // 7 :], split[-1] = 1, 2
    return FeatureSet(x.numpy(), y.numpy(), owner.numpy(), split, np.arange(images))


def start_seconds(features: FeatureSet) -> float:
    """What `varalign train` says that its closed-form start took: pass, choice of the settings, logit scale."""
    with tempfile.TemporaryDirectory() as folder:
        save_features(f"{folder}/features.safetensors", features, dtype="float32")
        options = TrainConfig(
            features=f"{folder}/features.safetensors", out=f"{folder}/run", voices="none", members=0, epochs=1
        )
        train(options, say=lambda _: None, progress=False)
        seconds: float = RunFolder.open(Path(folder, "run")).config()["start"]["closed_form"]["seconds"]
    return seconds


def running(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    covariance = RunningCovariance(x.shape[1], y.shape[1])
    for start in range(0, len(x), 4096):
        covariance.update(x[start : start + 4096], y[start : start + 4096])
    return covariance.cov_xy.numpy()


def plain(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """All three blocks at once, as np.cov does; the cross block is compared."""
    return np.cov(x.numpy().T, y.numpy().T, bias=True, dtype=np.float64)[: x.shape[1], x.shape[1] :]


class Stream:
    """Blocks of pairs that share 64 latent directions, made as they are asked for: the whole is never in memory."""

    def __init__(self, dx: int, dy: int, latent: int = 64) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self.to_x, self.to_y = (torch.randn(latent, d, generator=self.generator) for d in (dx, dy))

    def block(self, pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
        z = torch.randn(pairs, len(self.to_x), generator=self.generator)
        x = (z @ self.to_x).add_(torch.randn(pairs, self.to_x.shape[1], generator=self.generator), alpha=8)
        y = (z @ self.to_y).add_(torch.randn(pairs, self.to_y.shape[1], generator=self.generator), alpha=8)
        return x, y


def peak_mebibytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


def streamed(pairs: int, dx: int, dy: int, block: int = 8192) -> Iterable[Row]:
    """One pass over made-up pairs and the closed form at its end; the making of the blocks is not timed."""
    stream, running = Stream(dx, dy), RunningCovariance(dx, dy)
    running.update(*stream.block(block))
    before, seconds, processor = peak_mebibytes(), 0.0, 0.0
    running = RunningCovariance(dx, dy)
    for start in range(0, pairs, block):
        x, y = stream.block(min(block, pairs - start))
        wall, cpu = time.perf_counter(), time.process_time()
        running.update(x, y)
        seconds, processor = seconds + time.perf_counter() - wall, processor + time.process_time() - cpu
    wall, cpu = time.perf_counter(), time.process_time()
    found = Whitening(running).solve(ridge=1.0, power=0.5, dimensions=256)
    solve, solve_cpu = time.perf_counter() - wall, time.process_time() - cpu
    # 64 shared directions: their correlations stand out of the rest
    agrees = found.dimensions == 256 and bool(found.singular_values[63] > 3 * found.singular_values[64])
    subject = f"{pairs:,} pairs of {dx} + {dy} features, streamed in blocks of {block:,}"
    whole = 4 * pairs * (dx + dy) / (1 << 20)
    yield single(subject, "one pass, wall", seconds, "s", agrees=agrees)
    yield single(subject, "one pass, processor", processor, "s", agrees=agrees)
    yield single(subject, "closed form at its end, wall", solve, "s", agrees=agrees)
    yield single(subject, "closed form at its end, processor", solve_cpu, "s", agrees=agrees)
    yield single(subject, "peak memory of the process", peak_mebibytes(), "MiB", note=f"{before:.0f} after one block")
    yield single(subject, "the pairs alone, had they been kept", whole, "MiB")


def correlations(pairs: int, dimensions: int, components: int, rounds: int) -> Sequence[Row]:
    """The first canonical correlations, without ridge, against iterative and direct peers."""
    x, y = Stream(dimensions, dimensions, components).block(pairs)
    a, b = x.double().numpy(), y.double().numpy()

    def ours() -> np.ndarray:
        covariance = RunningCovariance(dimensions, dimensions)
        covariance.update(x, y)
        return Whitening(covariance).solve(ridge=0.0, power=0.0, dimensions=components).singular_values.numpy()

    def of(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        u, v = u - u.mean(0), v - v.mean(0)
        found = np.abs((u * v).sum(0)) / np.sqrt((u**2).sum(0) * (v**2).sum(0))
        return np.sort(found)[::-1]

    def scikit_learn() -> np.ndarray:
        from sklearn.cross_decomposition import CCA

        return of(*CCA(n_components=components, max_iter=2000, tol=1e-8).fit_transform(a, b))

    def cca_zoo() -> np.ndarray:
        from cca_zoo.linear import CCA

        return of(*CCA(n_components=components).fit_transform([a, b]))

    contenders = [Contender("varalign", ours, ours=True), Contender("scikit-learn CCA", scikit_learn)]
    if importlib.util.find_spec("cca_zoo") is not None:
        contenders.append(Contender("cca-zoo CCA", cca_zoo))
    return compare(
        f"the first {components} canonical correlations of {pairs:,} pairs, {dimensions} + {dimensions} features",
        contenders,
        work=1,
        unit="s",
        agree=lambda truth, result: np.allclose(truth, result, rtol=0, atol=1e-3),
        rounds=rounds,
        warm_up=0,
        packages=["torch", "numpy", "scikit-learn", "cca-zoo"],
    )


def subjects(options: argparse.Namespace) -> Iterable[Sequence[Row]]:
    if options.only in ("all", "stream"):  # first: the peak of the process is then its own
        yield list(streamed(options.stream, options.stream_dx, options.stream_dy))
    if options.only in ("all", "peers"):
        for pairs, dimensions in ((2_000, 64), (10_000, 64)):
            yield correlations(pairs, dimensions, 8, min(3, options.rounds))
    if options.only in ("all", "pairs"):
        yield from of_pairs(options)


def of_pairs(options: argparse.Namespace) -> Iterable[Sequence[Row]]:
    """The covariance of kept pairs, the choice of the settings and the pair scores."""
    data = made_up(options.images, 5, options.dx, options.dy)
    pairs = len(data.text_image_ids)
    images, texts, owner = (torch.from_numpy(a) for a in (data.image_features, data.text_features, data.text_image_ids))
    x, y = images[owner], texts
    yield compare(
        f"covariance of {pairs:,} pairs, {options.dx} + {options.dy} features",
        [
            Contender("varalign, float32 products", lambda: running(x, y), ours=True),
            Contender("varalign, float64 products", lambda: running(x.double(), y.double())),
            Contender("numpy.cov, all at once, float64", lambda: plain(x, y), reference=True),
        ],
        work=pairs,
        unit="pairs/s",
        agree=lambda truth, result: np.allclose(truth, result, rtol=0, atol=1e-5 * np.abs(truth).max()),
        rounds=options.rounds,
        packages=["torch", "numpy"],
    )
    start = time.perf_counter()
    pair_scores(images, texts, owner)
    scored = time.perf_counter() - start
    yield [
        single(f"{pairs:,} pairs, one run each", "closed-form start of `varalign train`", start_seconds(data), "s"),
        single(f"{pairs:,} pairs, one run each", "pair scores with interval", scored, "s"),
    ]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=7000, help="images of five captions (default: 7000)")
    parser.add_argument("--dx", type=int, default=768)
    parser.add_argument("--dy", type=int, default=384)
    parser.add_argument("--only", choices=["all", "pairs", "stream", "peers"], default="all")
    parser.add_argument("--stream", type=int, default=100_000, help="pairs that are streamed (default: 100,000)")
    parser.add_argument("--stream-dx", type=int, default=768)
    parser.add_argument("--stream-dy", type=int, default=768)


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
