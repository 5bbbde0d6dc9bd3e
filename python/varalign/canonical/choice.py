"""Choosing ridge, power, dimensions and logit scale of the closed form on pairs that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from varalign.canonical.covariance import RunningCovariance
from varalign.canonical.start import ClosedForm, Whitening

Metric = Callable[[Tensor, Tensor, Tensor], float]
DEV_IMAGES = 1000  # more dev images than this cost time (their square) and change no choice
PAIRS_AT_ONCE = 65536  # bounds the copy of the features of repeated images


class Features(Protocol):
    """What is read of a data set of features (a FeatureSet fits): NumPy arrays or tensors."""

    @property
    def image_features(self) -> Any: ...  # (I, dx)
    @property
    def text_features(self) -> Any: ...  # (T, dy)
    @property
    def text_image_ids(self) -> Any: ...  # (T,) rows of image_features
    @property
    def split(self) -> Any: ...  # (I,) 0 train, 1 dev, 2 test, -1 none


@dataclass(frozen=True)
class Grid:
    """The settings tried: every ridge and power, the ridge on both sides; the texts' ridge as parts of the best, with
    every power; so far at the most dimensions, and fewer at the best of all these. A `text_ridge` is kept to."""

    ridges: Sequence[float] = (0.3, 1.0, 3.0, 10.0, 30.0)
    powers: Sequence[float] = (0.25, 0.5, 0.75, 1.0)
    dimensions: Sequence[int] = (128, 256, 384)
    text_parts: Sequence[float] = (0.1, 0.3, 3.0)
    text_ridge: float | None = None


@dataclass(frozen=True)
class Trial:
    """One setting and what it reached on dev; `dimensions` is what was kept, at most what was asked for."""

    ridge: float
    power: float
    dimensions: int
    score: float
    text_ridge: float

    def solved(self, whitening: Whitening) -> ClosedForm:
        """The closed form of this setting."""
        return whitening.solve(
            ridge=self.ridge, text_ridge=self.text_ridge, power=self.power, dimensions=max(1, self.dimensions)
        )


@dataclass(frozen=True)
class ClosedFormChoice:
    """The best closed form, its trial, all trials in the order in which they ran, and the covariance fitted on."""

    closed_form: ClosedForm
    best: Trial
    trials: list[Trial] = field(repr=False)
    covariance: RunningCovariance = field(repr=False)


def choose_closed_form(
    features: Features,
    covariance: RunningCovariance | None = None,
    *,
    weights: Tensor | None = None,
    grid: Grid | None = None,
    metric: Metric | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, Trial], None] | None = None,
) -> ClosedFormChoice:
    """Fit the closed form on the train split and choose its settings on dev, in seconds.

    One eigen-decomposition a side serves the whole grid, one singular value decomposition each pair of ridges. Without
    a dev split a fifth of the training images, drawn by seed, stands in for it, and the chosen settings are fitted
    again on all of them.

    Args:
        features: features with their split; every caption of a train image is a pair.
        covariance: of the training pairs, when it is there already (a stream, other processes). None: it is made.
        weights: (T,) a weight for each caption's pair, at least 0, for the covariance made here. None: all 1.
        grid: settings to try.
        metric: (image_embeddings (I, k), text_embeddings (T, k), text_image_ids (T,)) to a figure that is better when
            larger. None: mean of i2t and t2i Recall@1.
        seed: draws the stand-in for a missing dev split, and dev images beyond 1,000.
        device: where it runs.
        progress: called after each trial with trials done, trials in all, and the trial.

    Raises:
        ValueError: for a train split without captions, a missing dev split when a covariance is given, or NaN
            features (which rows is said).
    """
    x, y = torch.as_tensor(features.image_features), torch.as_tensor(features.text_features)
    ids, split = torch.as_tensor(features.text_image_ids).long(), torch.as_tensor(features.split)
    if weights is not None and covariance is not None:
        raise ValueError("weights belong in the covariance: give them to its update, or leave the covariance out")
    generator = torch.Generator().manual_seed(seed)
    train, dev = (split == 0).nonzero()[:, 0], (split == 1).nonzero()[:, 0]
    has_dev = bool(torch.isin(ids, dev).any())
    fitted = train
    if not has_dev:
        if covariance is not None:
            raise ValueError("there is no dev split to choose the settings on, and the covariance has seen every pair")
        if len(train) < 2:
            raise ValueError(f"the train split has {len(train)} images; fitting and choosing need at least 2")
        order = train[torch.randperm(len(train), generator=generator)]
        held = max(1, len(train) // 5)
        dev, fitted = order[:held], order[held:]
    if len(dev) > DEV_IMAGES:
        dev = dev[torch.randperm(len(dev), generator=generator)[:DEV_IMAGES]]
    if covariance is None:
        covariance = pair_covariance(x, y, ids, fitted, weights=weights, device=device)
    dev_texts = torch.isin(ids, dev).nonzero()[:, 0]
    local = local_rows(dev, len(x))[ids[dev_texts]]
    best, trials = choose_settings(
        Whitening(covariance), x[dev], y[dev_texts], local, grid=grid, metric=metric, progress=progress
    )
    if not has_dev:
        covariance = pair_covariance(x, y, ids, train, weights=weights, device=device)
    chosen = best.solved(Whitening(covariance))
    return ClosedFormChoice(chosen, best, trials, covariance)


def pair_covariance(
    image_features: Tensor,
    text_features: Tensor,
    text_image_ids: Tensor,
    rows: Tensor,
    *,
    weights: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> RunningCovariance:
    """The covariance of all pairs of some images: every caption of an image is a pair.

    Args:
        image_features: (I, dx).
        text_features: (T, dy).
        text_image_ids: (T,) rows of image_features.
        rows: (n,) the images that count.
        weights: (T,) one a caption, or None.

    Raises:
        ValueError: when these images have no caption.
    """
    texts = torch.isin(text_image_ids, rows).nonzero()[:, 0]
    if len(texts) == 0:
        raise ValueError(f"none of the {len(rows)} training images has a caption: there is no pair to fit on")
    running = RunningCovariance(image_features.shape[1], text_features.shape[1], device)
    for start in range(0, len(texts), PAIRS_AT_ONCE):
        part = texts[start : start + PAIRS_AT_ONCE]
        part_weights = None if weights is None else weights[part]
        running.update(image_features[text_image_ids[part]], text_features[part], part_weights)
    return running


def choose_settings(
    whitening: Whitening,
    image_features: Tensor,
    text_features: Tensor,
    text_image_ids: Tensor,
    *,
    grid: Grid | None = None,
    metric: Metric | None = None,
    progress: Callable[[int, int, Trial], None] | None = None,
) -> tuple[Trial, list[Trial]]:
    """Try every setting of the grid on held-out features; of equal ones the first tried wins.

    Args:
        whitening: of the training pairs.
        image_features: (I, dx) held out.
        text_features: (T, dy).
        text_image_ids: (T,) rows of these image_features.

    Raises:
        ValueError: for an empty grid.
    """
    grid, score_of = grid or Grid(), metric or mean_recall_at_1
    if not (grid.ridges and grid.powers and grid.dimensions):
        raise ValueError(f"the grid has no setting to try: {grid}")
    first, *fewer = sorted(set(grid.dimensions), reverse=True)
    parts = grid.text_parts if grid.text_ridge is None else ()
    total = (len(grid.ridges) + len(parts)) * len(grid.powers) + len(fewer)
    trials: list[Trial] = []

    def attempt(ridge: float, text_ridge: float | None, power: float, dimensions: int) -> Trial:
        found = whitening.solve(ridge=ridge, text_ridge=text_ridge, power=power, dimensions=dimensions)
        u, v = found.embed_images(image_features), found.embed_texts(text_features)
        score = float(score_of(u, v, text_image_ids.to(u.device)))
        trial = Trial(ridge, power, found.dimensions, score, found.text_ridge)
        trials.append(trial)
        if progress is not None:
            progress(len(trials), total, trial)
        return trial

    both = [attempt(ridge, grid.text_ridge, power, first) for ridge in grid.ridges for power in grid.powers]
    best = max(both, key=_score)
    texts = [best.ridge * part for part in parts]
    apart = [attempt(best.ridge, ridge, power, first) for ridge in texts for power in grid.powers]
    best = max([best, *apart], key=_score)
    for dimensions in fewer:
        if dimensions < min(best.dimensions, trials[-1].dimensions):  # else the features have no more to give
            best = max(best, attempt(best.ridge, best.text_ridge, best.power, dimensions), key=_score)
    return best, trials


def _score(trial: Trial) -> float:
    return trial.score


def mean_recall_at_1(image_embeddings: Tensor, text_embeddings: Tensor, text_image_ids: Tensor) -> float:
    """Mean of i2t and t2i Recall@1, a fraction; ties count against the model, images without a caption not at all.

    Args:
        image_embeddings: (I, k).
        text_embeddings: (T, k).
        text_image_ids: (T,) rows of image_embeddings.
    """
    s = image_embeddings @ text_embeddings.T
    own = s.gather(0, text_image_ids[None])[0]
    # A caption is hit when no image, its own aside, comes up to its own image.
    t2i = ((s >= own).sum(0) == 1).double().mean()
    best = torch.full((len(s),), -math.inf, device=s.device).scatter_reduce(0, text_image_ids, own, "amax")
    s[text_image_ids, torch.arange(len(own), device=s.device)] = -math.inf
    captioned = best > -math.inf
    i2t = (s.amax(1) < best)[captioned].double().mean()
    return float(i2t + t2i) / 2


def negative_loss(
    image_embeddings: Tensor, text_embeddings: Tensor, text_image_ids: Tensor, *, batch_size: int = 256
) -> float:
    """Minus the symmetric contrastive loss of each image and its first caption, at the logit scale that suits it best.

    A smoother judge of settings than Recall@1: over five draws of 600 images with dev and test drawn beside them from
    Flickr8k's training images (bench/settings.py), what it chose reached a mean R@1 of 11.2 %, what R@1 itself chose
    10.9 %; over five draws of 60 images both reached 3.0 %.

    Args:
        image_embeddings: (I, k) unit vectors.
        text_embeddings: (T, k) unit vectors.
        text_image_ids: (T,) rows of image_embeddings.
        batch_size: images scored against each other.
    """
    ids, order = torch.sort(text_image_ids, stable=True)
    first = order[torch.cat([ids.new_ones(1, dtype=torch.bool), ids[1:] != ids[:-1]])]
    u, v = image_embeddings[text_image_ids[first]], text_embeddings[first]
    if len(u) < 2:
        return 0.0
    scale = best_logit_scale(u, v, batch_size=batch_size, tolerance=1e-2)
    total, count = 0.0, 0
    for start in range(0, len(u) - 1, batch_size):
        z = scale * u[start : start + batch_size] @ v[start : start + batch_size].T
        pair = z.diagonal()
        total += float((z.logsumexp(1) - pair).sum() + (z.logsumexp(0) - pair).sum()) / 2
        count += len(z)
    return -total / count


def best_logit_scale(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    *,
    batch_size: int = 256,
    low: float = 1.0,
    high: float = 100.0,
    tolerance: float = 1e-6,
) -> float:
    """The logit scale at which the symmetric contrastive loss of held-out pairs is least.

    Each row is one pair (one caption an image). The loss is convex in the scale, so a bisection on the sign of its
    derivative finds the minimum; it is the mean over batches of `batch_size` in the given order, because more
    candidates want a larger scale.

    Args:
        image_embeddings: (n, k) unit vectors.
        text_embeddings: (n, k) unit vectors.
        batch_size: pairs a batch, as in training; the last incomplete batch counts unless it is a single pair.
        low, high: bounds of the scale.
        tolerance: relative; a coarse one is computed in the embeddings' own precision.

    Raises:
        ValueError: for fewer than two pairs, shapes that differ, or a NaN.
    """
    n = len(image_embeddings)
    if image_embeddings.shape != text_embeddings.shape or n < 2 or batch_size < 2:
        raise ValueError(
            "wanted two or more pairs, row by row, in batches of two or more, got "
            f"{tuple(image_embeddings.shape)} and {tuple(text_embeddings.shape)} in batches of {batch_size}"
        )
    parts = [slice(start, start + batch_size) for start in range(0, n - 1, batch_size)]
    wide = torch.float64 if tolerance < 1e-4 else torch.float32
    blocks = [image_embeddings[part].to(wide) @ text_embeddings[part].to(wide).T for part in parts]
    if any(bool(s.isnan().any()) for s in blocks):
        raise ValueError("the embeddings hold NaN: no logit scale fits them")

    def slope(scale: float) -> float:
        # dL/dα is the expected similarity under the softmax less the similarity of the pair, both directions.
        total = 0.0
        for s in blocks:
            z = scale * s
            expected = (z.softmax(1) * s).sum() + (z.softmax(0) * s).sum()
            total += float(expected - 2 * s.diagonal().sum())
        return total

    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
        if high / low < 1 + tolerance:
            break
    return math.sqrt(low * high)


def local_rows(rows: Tensor, count: int) -> Tensor:
    """Position in `rows` of each of `count` images, −1 for those not among them."""
    table = torch.full((count,), -1, dtype=torch.long)
    table[rows] = torch.arange(len(rows))
    return table
