"""Weights of the training pairs: their probability of being right, by closed-form scores or by the run's margins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.canonical.pair_scores import pair_scores
from varalign.canonical.voices.voice_pairs import Pairs
from varalign.evaluation.pair_moments import PairMoments
from varalign.inputs.pair_features import all_pairs
from varalign.inputs.parts import Inputs, Parts
from varalign.options.declaration import ConfigError

SEPARATION = 2.0
"""Smallest Ashman's D at which two normals count as two groups; below it their mixture has one mode."""


@dataclass(frozen=True)
class PairVerdict:
    """Scores of the training pairs and the weights derived from them.

    Attributes:
        weights: (T,) float32, one for each caption of the data; 1 outside the training split.
        scores: (T,) float64; NaN outside the training split.
        by: whether an image's captions were judged together ("image") or separately ("pair").
        wrong_share, low, high: estimated share of wrong pairs and its 95 % interval.
        ridge: of the closed form that scored them.
        abstains: why all weights are 1; empty if the scores can judge the pairs.
    """

    weights: Tensor
    scores: Tensor
    by: str
    wrong_share: float
    low: float
    high: float
    ridge: float
    abstains: str = ""

    def line(self) -> str:
        """One line for people."""
        if self.abstains:
            return f"pair weights: every pair weighs 1: {self.abstains}"
        each = "image" if self.by == "image" else "caption"
        return (
            f"pair weights: {100 * self.wrong_share:.1f} % of the training pairs look wrong (95 % interval "
            f"{100 * self.low:.1f} to {100 * self.high:.1f}), judged {each} by {each}; "
            f"{int((self.weights < 0.5).sum()):,} weigh less than ½"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in ("by", "wrong_share", "low", "high", "ridge", "abstains")}


def score_pairs(inputs: Inputs, *, seed: int) -> PairVerdict:
    """Score every training pair in closed form.

    Args:
        inputs: with frozen towers.
        seed: of the folds.

    Raises:
        ConfigError: too few images to score them.
        DataError: a feature is not finite.
    """
    found = all_pairs(inputs, inputs.train_rows, training=True)
    captions = torch.from_numpy(found.captions)
    features = found.image_features, found.text_features, found.owner.cpu()
    options: dict[str, Any] = {
        "image_ids": torch.from_numpy(inputs.data.image_ids[found.rows]),
        "text_ids": torch.from_numpy(inputs.data.text_ids[found.captions]),
        "seed": seed,
        "device": inputs.device,
    }
    try:
        result = pair_scores(*features, by="auto", **options)
    except ValueError as error:
        raise ConfigError(f"--pair-weighting closed-form: {error}") from None
    count = len(inputs.data.caption_owner)
    weights = torch.ones(count)
    if not result.abstains:
        weights[captions] = result.probability_right.float()
    scores = torch.full((count,), torch.nan, dtype=torch.float64)
    scores[captions] = result.scores
    shares = result.wrong_share, result.low, result.high
    return PairVerdict(weights, scores, result.by, *shares, result.ridge, result.abstains)


def closed_form_weights(pairs: Pairs, *, seed: int) -> Tensor:
    """(T,) weights of some pairs alone, scored without any others; as `score_pairs` gives them.

    Raises:
        ConfigError: too few images to score them.
    """
    ids: dict[str, Any] = {"image_ids": pairs.image_ids, "text_ids": pairs.text_ids}
    features = pairs.images, pairs.texts, pairs.owner.cpu()
    try:
        found = pair_scores(*features, by="auto", **ids, seed=seed, device=pairs.images.device)
    except ValueError as error:
        raise ConfigError(f"--pair-weighting closed-form: {error}") from None
    weights = torch.ones(len(pairs.texts)) if found.abstains else found.probability_right.float()
    return weights.to(pairs.texts.device)


def moment_weights(moments: PairMoments, parts: Parts) -> Tensor:
    """Each caption's probability of being right, from its mean margin over the epochs so far.

    Two normals are fitted to the margins of the training pairs by EM, as Arazo et al. 2019 and DivideMix (Li et al.
    2020) do with losses. Clean data have one group of margins: unless the two normals are clearly separate, and if
    fewer than ten pairs were seen, all weights are 1.

    Args:
        moments: statistics of the run so far, by caption.
        parts: the data.

    Returns:
        (T,) float32.
    """
    from sklearn.mixture import GaussianMixture

    weights = torch.ones(moments.n)
    captions = parts.data.caption_rows(parts.train_rows)
    margins = moments.margin_mean[captions]
    seen = np.isfinite(margins)
    if seen.sum() < 10:
        return weights
    values: NDArray[np.float64] = margins[seen, None]
    fitted = GaussianMixture(2, random_state=0).fit(values)
    (low, high), variances = np.sort(fitted.means_[:, 0]), fitted.covariances_[:, 0, 0]
    if high - low < SEPARATION * np.sqrt(variances.mean()):
        return weights
    upper = int(np.argmax(fitted.means_[:, 0]))
    probability = fitted.predict_proba(values)[:, upper]
    # Normals of different widths cross twice, so the posterior is set to 1 above the upper and 0 below the lower mean.
    probability = np.where(values[:, 0] >= high, 1.0, np.where(values[:, 0] <= low, 0.0, probability))
    weights[torch.from_numpy(captions[seen])] = torch.from_numpy(probability).float()
    return weights


def weighted_mean(features: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of the text features of several captions of each image.

    Args:
        features: (B, K, D).
        weights: (B, K) at least 0; None, or a row of zeros: equal weights.

    Returns:
        (B, D).
    """
    if weights is None:
        return features.mean(1)
    total = weights.sum(1, keepdim=True)
    share = torch.where(total > 0, weights / total.clamp_min(1e-12), torch.full_like(weights, 1 / weights.shape[1]))
    return torch.einsum("bk,bkd->bd", share.to(features.dtype), features)
