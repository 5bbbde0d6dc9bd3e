"""The best-fitting caption of the data set for given images, by a closed form fitted on the likely right pairs.

I images, T captions, n images asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from varalign.canonical.covariance import RunningCovariance
from varalign.canonical.maps import Whitening
from varalign.canonical.pair_scores import DIMENSIONS, POWER, PairScores
from varalign.evaluation.products import exact_products

MOST_TEXTS = 1 << 13  # captions in the fit, and compared with the sample, at a time: a matrix below 32 MiB
SAMPLE = 1000  # images, and captions, whose similarities give the mean and deviation that scores are relative to


def best_captions(
    image_features: Tensor,
    text_features: Tensor,
    text_image_ids: Tensor,
    found: PairScores,
    images: Tensor,
    *,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """The best-fitting caption of each given image, and its score.

    A closed form is fitted on all diagnosed pairs, weighted by their probability of being right. The score is computed
    as in `pair_scores`: the similarity minus the mean of a random sample, in standard deviations of that sample,
    averaged over both directions.

    Args:
        image_features: (I, dx). text_features: (T, dy). text_image_ids: (T,) rows of image_features.
        found: result of `pair_scores` on the same arrays; its ridge and probabilities are used, and the captions that
            it scored are searched.
        images: (n,) rows of image_features.
        seed: of the random sample.

    Returns:
        (n,) int64 rows of text_features, and (n,) float32 scores.
    """
    texts = found.probability_right.isfinite().nonzero()[:, 0]
    owner = text_image_ids[texts]
    running = RunningCovariance(image_features.shape[1], text_features.shape[1])
    weights = found.probability_right[texts]
    # Where no pair is likely right, the fit uses all pairs with equal weight.
    weights = weights if float(weights.sum()) > 1 else torch.ones_like(weights)
    for part in torch.arange(len(texts)).split(MOST_TEXTS):  # in memory: an image's features for each of its texts
        running.update(image_features[owner[part]], text_features[texts[part]], weights[part])
    maps = Whitening(running).solve(ridge=found.ridge, power=POWER, dimensions=DIMENSIONS)
    u = maps.embed_images(image_features[images])
    generator = torch.Generator().manual_seed(seed)
    rows = torch.unique(owner)
    rows = rows[torch.randperm(len(rows), generator=generator)[:SAMPLE]]
    usual_texts = texts[torch.randperm(len(texts), generator=generator)[:SAMPLE]]
    usual_u, usual_v = maps.embed_images(image_features[rows]), maps.embed_texts(text_features[usual_texts])
    parts = []
    with exact_products():
        by_image = u @ usual_v.T
        for part in texts.split(MOST_TEXTS):
            v = maps.embed_texts(text_features[part])
            s, by_caption = u @ v.T, usual_u @ v.T
            z = (s - by_caption.mean(0)) / by_caption.std(0).clamp_min(1e-6)
            z += (s - by_image.mean(1, keepdim=True)) / by_image.std(1, keepdim=True).clamp_min(1e-6)
            parts.append(z / 2)
    best = torch.cat(parts, 1).max(1)
    return texts[best.indices], best.values
