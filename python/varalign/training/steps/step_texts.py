"""The texts of a step: one or several captions of each image, averaged into one text, or each used as a positive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from varalign.data.index import CaptionIndex
from varalign.data.pair_ids import PairIds, pair_ids
from varalign.data.sampler import draw_captions
from varalign.inputs.sources import Rows
from varalign.losses.distributed import gather_rows, sum_of_own
from varalign.losses.reference import CHUNK_LOGITS
from varalign.losses.relation import positive_pairs
from varalign.schedules.direction_stats import DirectionStats
from varalign.training.pair_weights import weighted_mean

# B images, K captions drawn per image, C captions in all, N texts of the loss: B of them ("mean") or C ("each")


@dataclass(frozen=True)
class StepTexts:
    """The captions of a step and how the loss uses them.

    An encoder trained from random weights learns more if each caption is a positive: one pass of the image tower then
    serves all captions of an image. With frozen features the mean of the captions works better, since it keeps what
    they have in common.

    Attributes:
        captions: (C,) caption rows, in the order of the features that `join` takes.
        owner: (N,) place in the batch of each text's image.
        shape: (B, K) if each text is the mean of K captions; None if each caption is a text.
    """

    captions: Rows
    owner: Rows
    shape: tuple[int, int] | None = None

    @classmethod
    def draw(
        cls, data: CaptionIndex, rows: Rows, *, seed: int, epoch: int, count: int, use: Literal["mean", "each"]
    ) -> StepTexts:
        """The texts of a batch, a pure function of (seed, epoch, row).

        Args:
            data: the data set.
            rows: (B,) image rows of the batch.
            seed, epoch: of the draw.
            count: K, at least 1.
            use: "mean" or "each"; with "each", an image with fewer than K captions gives each of them once.
        """
        drawn = draw_captions(data, rows, seed=seed, epoch=epoch, count=count)
        if use == "mean" and count > 1:
            return cls(drawn.reshape(-1), np.arange(len(drawn), dtype=np.int64), (len(drawn), count))
        there = np.diff(data.drawn_captions[1])[np.asarray(rows)]
        once = np.arange(count) < there[:, None]
        return cls(drawn[once], np.nonzero(once)[0].astype(np.int64))

    def part(self, images: slice) -> tuple[StepTexts, slice, slice]:
        """The texts of some consecutive images, and the places of these texts and their captions in the batch."""
        first, end = np.searchsorted(self.owner, [images.start, images.stop]).tolist()
        texts = captions = slice(first, end)
        shape = None
        if self.shape is not None:
            shape = (images.stop - images.start, self.shape[1])
            captions = slice(images.start * shape[1], images.stop * shape[1])
        return StepTexts(self.captions[captions], self.owner[texts] - images.start, shape), texts, captions

    def pair_ids(self, data: CaptionIndex, rows: Rows) -> PairIds | None:
        """Ids of the images `rows` (B,) and of the texts; None where each text belongs to one of the images only."""
        return pair_ids(data, rows, self.captions if self.shape is None else self.captions.reshape(self.shape))

    def join(self, features: Tensor, pair_weights: Tensor | None) -> Tensor:
        """(N, D) features of the texts, from the captions' (C, D); `pair_weights` (C,) weight the means."""
        if self.shape is None:
            return features
        each = None if pair_weights is None else pair_weights.view(self.shape)
        return weighted_mean(features.unflatten(0, self.shape), each)

    def weights(self, pair_weights: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Weights of the images (B,) and texts (N,) in the loss: the means of their captions' (C,) weights."""
        if pair_weights is None:
            return None, None
        if self.shape is not None:
            means = pair_weights.view(self.shape).mean(1)
            return means, means
        owner = torch.from_numpy(self.owner).to(pair_weights.device)
        sums = pair_weights.new_zeros(int(self.owner.max()) + 1).index_add_(0, owner, pair_weights)
        return sums / torch.bincount(owner), pair_weights

    def pair_values(
        self, images: DirectionStats, texts: DirectionStats, scale: Tensor, relation: Relation | None = None
    ) -> Tensor:
        """(C, 2): positive probability and margin of each caption with its image, each the mean of both directions.

        The probability's denominator excludes the other texts of the same image and the other images of the same text.

        Args:
            images, texts: statistics of the two directions; an image is in the batch at most once.
            scale: the logit scale, without gradient.
            relation: of a batch in which a text belongs to several images; None: each text has one, its owner.
        """
        owner = torch.from_numpy(self.owner).to(scale.device, non_blocking=True)
        if relation is None:
            similarity = texts.positive_mean  # a text has one positive: its image
            by_text = (scale * similarity - texts.lse).exp()
            share = (scale * similarity - images.lse[owner]).exp()
            whole = torch.zeros_like(images.lse).index_add_(0, owner, share)
        else:
            similarity = (relation.images[owner] * relation.texts).sum(1)
            share = (scale * similarity - texts.lse).exp()
            whole, of_texts = relation.shares(images.lse, texts.lse, scale)
            by_text = _alone(share, of_texts)
            share = (scale * similarity - images.lse[owner]).exp()
        by_image = _alone(share, whole[owner])
        margin = similarity - (texts.negative_max + images.negative_max[owner]) / 2
        values = torch.stack([(by_text + by_image) / 2, margin], dim=1)
        return values if self.shape is None else values.repeat_interleave(self.shape[1], dim=0)


def _alone(share: Tensor, whole: Tensor) -> Tensor:
    """A positive's probability when the query's other positives, of `whole` in all, leave the denominator."""
    return (share / (1 - (whole - share)).clamp_min(torch.finfo(share.dtype).tiny)).clamp_max(1)


@dataclass(frozen=True)
class Relation:
    """A batch in which a text belongs to several images.

    Attributes:
        images: (B, D) embeddings, texts: (N, D), both without gradient.
        image_ids: (B,) or (B, K), text_ids: (N,), as of `varalign.data.pair_ids`.
        sizes, group: how many texts every rank has; None: there is one process.
    """

    images: Tensor
    texts: Tensor
    image_ids: Tensor
    text_ids: Tensor
    sizes: list[int] | None = None
    group: Any = None

    def shares(self, image_lse: Tensor, text_lse: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) and (N,) what the probabilities of a query's positives add up to, some rows at a time."""
        texts, text_ids = self.texts, self.text_ids
        if self.sizes is not None:
            texts, text_ids, text_lse = (
                gather_rows(rows, self.sizes, self.group) for rows in (texts, text_ids, text_lse)
            )
        by_image, by_text = torch.empty_like(image_lse), torch.zeros_like(text_lse)
        step = max(1, CHUNK_LOGITS // len(texts))
        for start in range(0, len(self.images), step):
            rows = slice(start, start + step)
            z = scale * self.images[rows] @ texts.T
            positive = positive_pairs(self.image_ids[rows], text_ids)
            by_image[rows] = ((z - image_lse[rows, None]).exp() * positive).sum(1)
            by_text += ((z - text_lse).exp() * positive).sum(0)
        return by_image, by_text if self.sizes is None else sum_of_own(by_text, self.sizes, self.group)
