"""Draws of a features file as tensors, and the recall of similarity matrices: what the studies of little data share.

I images, T texts, E pairs of a text and an image, P images with their first texts, k dimensions.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from varalign.canonical.hub_correction import HubCorrection
from varalign.data.features import FeatureSet
from varalign.data.splits import separate_twins
from varalign.evaluation.retrieval import KS, is_hit, matrix_ranks, recalls
from varalign.inputs.pair_features import thinned

UNPAIRED_IMAGES, UNPAIRED_TEXTS = 1700, 5000
Scores = tuple[Tensor, Tensor]
"""(I, T) scores by which texts are ranked for images, and (I, T) by which images are ranked for texts."""


@dataclass(frozen=True)
class Part:
    """Images and their texts.

    Attributes:
        x: (I, dx) image features. y: (T, dy) text features.
        owner: (T,) the first image that each text stands at. pairs: (E, 2) texts and images that belong together.
        first: (P, 2) images and the first text of each.
    """

    x: Tensor
    y: Tensor
    owner: Tensor
    pairs: Tensor
    first: Tensor


@dataclass(frozen=True)
class Draw:
    """Training images drawn by a seed, the splits to choose and to report by, and what is unpaired.

    Attributes:
        pair_x, pair_y: (n, dx), (n, dy) features of every training pair: each caption with its image.
        unpaired_x, unpaired_y: features of training images, and of captions of others, that the draw left over.
    """

    train: Part
    dev: Part
    test: Part
    pair_x: Tensor
    pair_y: Tensor
    unpaired_x: Tensor
    unpaired_y: Tensor
    seed: int


def part_of(data: FeatureSet, rows: NDArray[np.int64]) -> Part:
    """These image rows and their texts."""
    found = data.candidates(rows)
    x, y = torch.from_numpy(data.image_features), torch.from_numpy(data.text_features)
    owner, pairs, first = (torch.from_numpy(values) for values in (found.owner, found.pairs, found.first))
    return Part(x[torch.from_numpy(found.rows)], y[torch.from_numpy(found.captions)], owner, pairs, first)


def drawn(file: FeatureSet, images: int | None, seed: int, *, within_training: bool = False) -> Draw:
    """`images` training images by the seed, None: all; dev and test as the file has them.

    Args:
        within_training: dev and test are drawn from the training images too, up to 1,000 each, so that what is chosen
            by their figures has not seen the file's dev and test.
    """
    generator = np.random.default_rng(seed)
    rest = generator.permutation(file.rows("train"))
    if within_training:
        held = min(1000, (len(rest) - (images or 0)) // 2)
        dev, test, rest = rest[:held], rest[held : 2 * held], rest[2 * held :]
        train, rest = rest[:images], rest[images or len(rest) :]
    else:
        dev, test = thinned(file.rows("dev")), file.rows("test")
        train = file.limited(images, seed).rows("train")
        rest = rest[~np.isin(rest, train)]
    train = np.sort(train)
    captions = file.caption_rows(train)
    x, y = torch.from_numpy(file.image_features), torch.from_numpy(file.text_features)
    loose = generator.permutation(file.caption_rows(np.sort(rest[UNPAIRED_IMAGES:])))[:UNPAIRED_TEXTS]
    return Draw(
        part_of(file, train),
        part_of(file, np.sort(dev)),
        part_of(file, np.sort(test)),
        x[torch.from_numpy(file.text_image_ids[captions])],
        y[torch.from_numpy(captions)],
        x[torch.from_numpy(rest[:UNPAIRED_IMAGES])],
        y[torch.from_numpy(loose)],
        seed,
    )


def redrawn(file: FeatureSet, seed: int) -> FeatureSet:
    """The same with train, dev and test of the sizes that they have, drawn anew from the images of all three."""
    rows = np.flatnonzero(file.split >= 0)
    split = file.split.copy()
    split[np.random.default_rng(7000 + seed).permutation(rows)] = np.sort(file.split[rows])
    separate_twins(split, file.image_ids)
    return dataclasses.replace(file, split=split)


def part_of_set(data: FeatureSet, images: NDArray[np.int64]) -> FeatureSet:
    """The given images with their captions alone."""
    captions = np.sort(data.caption_rows(images))
    place = np.full(len(data.split), -1)
    place[images] = np.arange(len(images))
    return dataclasses.replace(
        data,
        image_features=data.image_features[images],
        text_features=data.text_features[captions],
        text_image_ids=place[data.text_image_ids[captions]],
        split=data.split[images],
        image_ids=data.image_ids[images],
        image_names=None if data.image_names is None else [data.image_names[row] for row in images.tolist()],
        texts=None if data.texts is None else [data.texts[row] for row in captions.tolist()],
    )


def recall(scores: Scores, pairs: Tensor) -> dict[str, float]:
    """Mean of i2t and t2i Recall@1, @5 and @10 in per cent, and `error`, the standard error of the first over images.

    Args:
        scores: they are overwritten.
        pairs: (E, 2).
    """
    same = scores[0] is scores[1]
    i2t, t2i = matrix_ranks(scores[0], pairs)
    t2i = t2i if same else matrix_ranks(scores[1], pairs)[1]
    found = recalls(i2t, t2i)
    figures = {f"mean_recall@{k}": 50 * (found[f"i2t_recall@{k}"] + found[f"t2i_recall@{k}"]) for k in KS}
    text, image = pairs.numpy().T
    texts = np.bincount(image, minlength=len(i2t)).clip(min=1)
    of_texts = np.bincount(image, is_hit(t2i, 1, len(i2t))[text], len(i2t)) / texts
    hits = (is_hit(i2t, 1, len(t2i)) + of_texts)[i2t >= 0] / 2
    return {**figures, "error": 100 * float(hits.std() / math.sqrt(len(hits)))}


def corrected(u: Tensor, v: Tensor, correction: HubCorrection) -> Scores:
    """The scores of embeddings (I, k) and (T, k) with their priors taken off."""
    s = u @ v.T
    return s - correction.text_prior(v), s - correction.image_prior(u)[:, None]
