"""Inputs and outputs of the comparison losses.

M images, N texts, D dimensions. These losses hold the (M, N) similarities as a matrix: they are for the batches of
little data, not for tens of thousands of pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """One step's pairs.

    Attributes:
        images: (M, D) unit vectors. texts: (N, D) unit vectors. logit_scale: ().
        positive: (M, N) bool, whether the text describes the image.
        image_rows: (M,) rows of the data set; caption_rows: (N,); None if the caller did not give them.
        image_features: (M, dx) of the towers; text_features: (N, dy); None if the caller did not give them.
        inputs: inputs of the image side, pixels (M, 3, S, S) or features; `embed` turns them into unit vectors.
    """

    images: Tensor
    texts: Tensor
    logit_scale: Tensor
    positive: Tensor
    image_rows: Tensor | None = None
    caption_rows: Tensor | None = None
    image_features: Tensor | None = None
    text_features: Tensor | None = None
    inputs: Tensor | None = None
    embed: Callable[[Tensor], Tensor] | None = None

    @cached_property
    def logits(self) -> Tensor:
        """(M, N) logit_scale times the similarities."""
        return self.logit_scale * (self.images @ self.texts.T)

    @cached_property
    def share(self) -> Tensor:
        """(M, N): 1 over the number of an image's texts at each of them, else 0: `share @ texts` is their mean."""
        counts = self.positive.sum(1, keepdim=True).clamp_min(1)
        return self.positive.to(self.images.dtype) / counts

    @cached_property
    def text_share(self) -> Tensor:
        """(M, N): 1 over the number of a text's images at each of them; a text without any is counted to the first."""
        given = self.positive.clone()
        given[0] |= ~given.any(0)
        return given.to(self.images.dtype) / given.sum(0)


Values = tuple[Tensor, Tensor, Tensor | None]
"""Values (M,) of the images and (N,) of the texts, 0 for a query without a positive; () to add, or None."""


class Objective(nn.Module):
    """A loss: one value for each query of each direction, and a term that is added to their weighted sum.

    Its parameters are trained and its buffers hold its state between steps; both are in checkpoints.

    Attributes:
        strength_range: lowest and highest value of the loss's own number, its argument `strength`; None: it has none.
        lowest_excluded: whether the number must be above the lowest.
        directed: whether it has two directions, which a schedule can weight.
        reads_inputs: whether it needs `Batch.inputs` and `Batch.embed`.
    """

    strength_range: tuple[float, float] | None = None
    lowest_excluded = False
    directed = True
    reads_inputs = False

    def forward(self, batch: Batch) -> Values:
        """The loss of every query of one step."""
        raise NotImplementedError


def positive_mean(logits: Tensor, positive: Tensor) -> Tensor:
    """(Q,) mean logit of each row's positives, 0 where it has none."""
    return (logits * positive).sum(1) / positive.sum(1).clamp_min(1)


def masked_lse(logits: Tensor, mask: Tensor) -> Tensor:
    """(Q,) log-sum-exp over the entries in the mask; -1e30, without gradient, where a row has none."""
    return torch.logsumexp(logits.masked_fill(~mask, -1e30), 1)


def counted(values: Tensor, positive: Tensor) -> Tensor:
    """(Q,) the values, 0 at rows without a positive."""
    return torch.where(positive.any(1), values, torch.zeros_like(values))


def both(one: Callable[[Tensor, Tensor], Tensor], batch: Batch) -> Values:
    """A loss of logits (Q, C) and positives (Q, C) taken in both directions, without anything to add."""
    i2t = counted(one(batch.logits, batch.positive), batch.positive)
    t2i = counted(one(batch.logits.T, batch.positive.T), batch.positive.T)
    return i2t, t2i, None


def infonce(logits: Tensor, positive: Tensor) -> Tensor:
    """(Q,) the plain loss: log-sum-exp of all minus the mean of the positives."""
    return torch.logsumexp(logits, 1) - positive_mean(logits, positive)
