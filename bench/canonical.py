"""Closed-form alignment: covariance of a stream, choice of the settings and pair scores, on made-up features.

The covariance is compared with NumPy's float64 covariance of the whole.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from harness import Contender, Row, compare, main, single
from varalign.canonical import RunningCovariance, choose_closed_form, pair_scores


class MadeUp:
    """Features of images and captions that share 64 latent directions."""

    def __init__(self, images: int, captions: int, dx: int, dy: int) -> None:
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(images, 64, generator=generator)
        self.text_image_ids = torch.arange(images).repeat_interleave(captions)
        texts = len(self.text_image_ids)
        self.image_features = z @ torch.randn(64, dx, generator=generator)
        self.image_features += 8 * torch.randn(images, dx, generator=generator)
        self.text_features = z[self.text_image_ids] @ torch.randn(64, dy, generator=generator)
        self.text_features += 8 * torch.randn(texts, dy, generator=generator)
        self.split = torch.zeros(images, dtype=torch.int8)
        self.split[-images // 7 :] = 1


def running(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    covariance = RunningCovariance(x.shape[1], y.shape[1], product_dtype=dtype)
    for start in range(0, len(x), 4096):
        covariance.update(x[start : start + 4096], y[start : start + 4096])
    return covariance.cov_xy.numpy()


def plain(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """All three blocks at once, as np.cov does; the cross block is compared."""
    return np.cov(x.numpy().T, y.numpy().T, bias=True, dtype=np.float64)[: x.shape[1], x.shape[1] :]


def subjects(options: argparse.Namespace) -> Iterable[Sequence[Row]]:
    data = MadeUp(options.images, 5, options.dx, options.dy)
    pairs = len(data.text_image_ids)
    x, y = data.image_features[data.text_image_ids], data.text_features
    yield compare(
        f"covariance of {pairs:,} pairs, {options.dx} + {options.dy} features",
        [
            Contender("varalign, float32 products", lambda: running(x, y, torch.float32), ours=True),
            Contender("varalign, float64 products", lambda: running(x, y, torch.float64)),
            Contender("numpy.cov, all at once, float64", lambda: plain(x, y), reference=True),
        ],
        work=pairs,
        unit="pairs/s",
        agree=lambda truth, result: np.allclose(truth, result, rtol=0, atol=1e-5 * np.abs(truth).max()),
        rounds=options.rounds,
        packages=["torch", "numpy"],
    )
    start = time.perf_counter()
    choose_closed_form(data)
    chosen = time.perf_counter() - start
    start = time.perf_counter()
    pair_scores(data.image_features, data.text_features, data.text_image_ids)
    scored = time.perf_counter() - start
    yield [
        single(f"{pairs:,} pairs, one run each", "closed form with choice of the settings", chosen, "s"),
        single(f"{pairs:,} pairs, one run each", "pair scores with interval", scored, "s"),
    ]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=7000, help="images of five captions (default: 7000)")
    parser.add_argument("--dx", type=int, default=768)
    parser.add_argument("--dy", type=int, default=384)


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
