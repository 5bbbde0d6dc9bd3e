"""Choosing ridge, power and dimensions of the closed form on pairs that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varalign.canonical.maps import ClosedForm, Whitening
from varalign.evaluation.retrieval import mean_recall, retrieval
from varalign.losses.pair_loss import least_loss

Metric = Callable[[Tensor, Tensor, Tensor], float]
DEV_IMAGES = 1000  # more dev images than this cost time (their square) and change no choice


@dataclass(frozen=True)
class Grid:
    """The settings tried, in three rounds that each start from the best so far.

    First every ridge with every power, the same ridge on both sides, at the most dimensions. Then other ridges of the
    texts, `text_parts` of the images', with every power. Then fewer dimensions. A `text_ridge` that is given is used
    throughout.
    """

    ridges: Sequence[float] = (0.3, 1.0, 3.0, 10.0, 30.0)
    powers: Sequence[float] = (0.25, 0.5, 0.75, 1.0)
    dimensions: Sequence[int] = (128, 256, 384)
    text_parts: Sequence[float] = (0.1, 0.3, 3.0)
    text_ridge: float | None = None


@dataclass(frozen=True)
class Trial:
    """One setting and its score on held-out pairs; `dimensions` is what was kept, at most what was asked for."""

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


def choose_settings(
    whitening: Whitening,
    image_features: Tensor,
    text_features: Tensor,
    text_image_ids: Tensor,
    *,
    grid: Grid,
    metric: Metric,
) -> tuple[Trial, list[Trial]]:
    """Try the settings of the grid on held-out features; of equal ones the first tried wins.

    Args:
        whitening: of the training pairs.
        image_features: (I, dx) held out.
        text_features: (T, dy).
        text_image_ids: (T,) rows of these image_features.
        grid: settings to try.
        metric: (image_embeddings (I, k), text_embeddings (T, k), text_image_ids (T,)) to a figure that is better when
            larger.

    Returns:
        The best trial, and all trials in the order in which they ran.

    Raises:
        ValueError: for an empty grid.
    """
    if not (grid.ridges and grid.powers and grid.dimensions):
        raise ValueError(f"the grid has no setting to try: {grid}")
    most, *fewer = sorted(set(grid.dimensions), reverse=True)
    trials: list[Trial] = []

    def attempt(ridge: float, text_ridge: float | None, power: float, dimensions: int) -> Trial:
        found = whitening.solve(ridge=ridge, text_ridge=text_ridge, power=power, dimensions=dimensions)
        u, v = found.embed_images(image_features), found.embed_texts(text_features)
        score = float(metric(u, v, text_image_ids.to(u.device)))
        trials.append(Trial(ridge, power, found.dimensions, score, found.text_ridge))
        return trials[-1]

    def best() -> Trial:
        return max(trials, key=lambda trial: trial.score)

    for ridge in grid.ridges:
        for power in grid.powers:
            attempt(ridge, grid.text_ridge, power, most)
    ridge = best().ridge
    for part in grid.text_parts if grid.text_ridge is None else ():
        for power in grid.powers:
            attempt(ridge, ridge * part, power, most)
    for dimensions in fewer:
        chosen = best()
        if dimensions < min(chosen.dimensions, trials[-1].dimensions):  # else the features have no more to give
            attempt(chosen.ridge, chosen.text_ridge, chosen.power, dimensions)
    return best(), trials


def mean_recall_at_1(image_embeddings: Tensor, text_embeddings: Tensor, text_image_ids: Tensor) -> float:
    """Mean of i2t and t2i Recall@1, a fraction; arguments as in `varalign.evaluation.retrieval.retrieval`."""
    return mean_recall(retrieval(image_embeddings, text_embeddings, text_image_ids, ks=(1,)))


def negative_loss(image_embeddings: Tensor, text_embeddings: Tensor, text_image_ids: Tensor) -> float:
    """Minus the symmetric contrastive loss of each image and its first caption, at the logit scale that suits it best.

    A smoother judge of settings than Recall@1: over five draws of 600 images with dev and test drawn beside them from
    Flickr8k's training images (bench/settings.py), what it chose reached a mean R@1 of 11.2 %, what R@1 itself chose
    10.9 %; over five draws of 60 images both reached 3.0 %.

    Args:
        image_embeddings: (I, k) unit vectors.
        text_embeddings: (T, k) unit vectors.
        text_image_ids: (T,) rows of image_embeddings.

    Returns:
        The figure, 0 for fewer than two captioned images.
    """
    ids, order = torch.sort(text_image_ids, stable=True)
    first = order[ids.diff(prepend=ids.new_full((1,), -1)) != 0]
    if len(first) < 2:
        return 0.0
    return -least_loss(image_embeddings[text_image_ids[first]], text_embeddings[first])
