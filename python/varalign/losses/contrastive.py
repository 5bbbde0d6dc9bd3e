"""The symmetric contrastive loss over images and texts, weighted at every step by a loss schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from varalign.losses.distributed import (
    BatchSizes,
    contrastive_across_ranks,
    gather_stats,
    mean_across_ranks,
    mean_of_members,
)
from varalign.losses.gradient_norms import gradient_norms
from varalign.losses.means import direction_losses
from varalign.losses.operator import choose_backend, contrastive_values
from varalign.losses.relation import checked_ids
from varalign.losses.step_calls import StepCalls
from varalign.schedules import LossSchedule, build_schedule
from varalign.schedules.direction_stats import DirectionStats

DUPLICATES = ("positive", "ignore")


class ContrastiveOutput(NamedTuple):
    """What one step of `ContrastiveLoss` gives.

    Attributes:
        loss: () weights . (loss_i2t, loss_t2i); the one to call backward on.
        loss_i2t: () mean over the images with a positive; loss_t2i: () mean over the texts with one.
        weights: (2,) float32 [w_i2t, w_t2i], no gradient.
        stats_i2t: statistics of the images' scores; stats_t2i: of the texts'.
    """

    loss: Tensor
    loss_i2t: Tensor
    loss_t2i: Tensor
    weights: Tensor
    stats_i2t: DirectionStats
    stats_t2i: DirectionStats


def contrastive(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    image_ids: Tensor | None = None,
    text_image_ids: Tensor | None = None,
    *,
    duplicates: str = "positive",
    cache_bytes: int = 256 << 20,
    group: Any = None,
) -> tuple[Tensor, Tensor, DirectionStats, DirectionStats]:
    """Contrastive loss of every image and every text, with statistics of their scores, in memory linear in the batch.

    For image i with similarities s_ij = u_i . v_j and logits z = logit_scale * s, the value is
    LSE_j z_ij - mean of z_ij over its positives (the texts with an id of its); for texts the same over columns. A query
    without positives has value 0. Where an embedding is NaN, so are the values that it touches.

    Args:
        image_embeddings: (M, D) unit vectors (others are computed as they are), float64, float32, bfloat16 or float16.
        text_embeddings: (N, D) on the same device; M and N may differ.
        logit_scale: () above 0, the inverse temperature.
        image_ids: (M,) integers that name the images; none: image i and text i are the pairs. (M, K) where a text may
            belong to several images: it does to those that have its id. The K ids of an image differ; where it needs
            fewer, the others are numbers that no text has (best none of them twice).
        text_image_ids: (N,) the id of each text, that of the image it describes; none: `image_ids`, where M = N.
        duplicates: several positives of a query share its softmax ("positive"), or each is scored against the negatives
            alone ("ignore").
        cache_bytes: what the forward pass may keep of the logits to spare the backward pass one matrix product.
        group: a torch.distributed process group: the embeddings are this rank's, each is compared with every rank's,
            and values and statistics are this rank's; see `varalign.losses.distributed`.

    Returns:
        nll_i2t (M,), nll_t2i (N,), statistics i2t and t2i. Values and statistics are float32 (float64 for float64).

    Raises:
        ValueError: shapes, dtypes or ids that do not fit; the message says which.
        RuntimeError: from a second derivative.

    Example:
        Two images, three texts, the first image described twice; then with a third text that both images have::

            contrastive(images, texts, 14.3, image_ids=tensor([7, 9]), text_image_ids=tensor([7, 7, 9]))
            contrastive(images, texts, 14.3, tensor([[7, 1], [9, 1]]), tensor([7, 9, 1]))

    Source: van den Oord et al. 2018 (InfoNCE); Radford et al. 2021 (CLIP); Khosla et al. 2020 for several positives.
    """
    problem = _Problem.of(
        image_embeddings, text_embeddings, logit_scale, image_ids, text_image_ids, duplicates, cache_bytes, group
    )
    if group is not None:
        return problem.across_ranks(BatchSizes.gathered(problem.images, problem.texts, group), group)
    values, table = problem.values_and_statistics()
    nll_i2t, nll_t2i = values.split([problem.images.shape[0], problem.texts.shape[0]])
    return nll_i2t, nll_t2i, *problem.statistics(table)


@dataclass(frozen=True)
class _Problem:
    """One call's inputs, checked and of one dtype."""

    images: Tensor
    texts: Tensor
    scale: Tensor
    image_ids: Tensor | None
    text_image_ids: Tensor | None
    ignore: bool
    cache_bytes: int
    backend: str

    @classmethod
    def of(
        cls,
        image_embeddings: Tensor,
        text_embeddings: Tensor,
        logit_scale: Tensor | float,
        image_ids: Tensor | None,
        text_image_ids: Tensor | None,
        duplicates: str,
        cache_bytes: int,
        group: Any,
    ) -> _Problem:
        _check_duplicates(duplicates)
        images, texts, scale = prepared(image_embeddings, text_embeddings, logit_scale)
        ids: tuple[Tensor | None, Tensor | None] = (None, None)
        # Without any, image i and text i are a pair, which the passes know without ids; ranks must tell theirs apart.
        if group is not None or image_ids is not None or text_image_ids is not None:
            ids = prepared_ids(images, texts, image_ids, text_image_ids, group)
        needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (images, texts, scale))
        kept = cache_bytes if needs_gradient else 0
        return cls(images, texts, scale, *ids, duplicates == "ignore", kept, choose_backend(images))

    def values_and_statistics(self) -> tuple[Tensor, Tensor]:
        """Losses (M + N,) and statistics (7, M + N), the images' first."""
        return contrastive_values(
            self.images,
            self.texts,
            self.scale,
            self.image_ids,
            self.text_image_ids,
            self.ignore,
            self.cache_bytes,
            self.backend,
        )

    def apart(self, members: int) -> list[_Problem]:
        """The problems of the spaces that lie side by side in the embeddings, each of unit length again."""
        if members == 1:
            return [self]
        width = self.images.shape[1]
        if width % members:
            raise ValueError(f"embeddings of {width} dimensions do not split into {members} members")
        sides = [(x * math.sqrt(members)).chunk(members, 1) for x in (self.images, self.texts)]
        return [replace(self, images=u, texts=v) for u, v in zip(*sides, strict=True)]

    def statistics(self, table: Tensor, means: Tensor | None = None) -> tuple[DirectionStats, DirectionStats]:
        """Either direction's part of the (7, M + N) table, with means (3, 2) of it where they are known."""
        m, n = self.images.shape[0], self.texts.shape[0]
        scale = self.scale.detach()
        i2t, t2i = (None, None) if means is None else means.unbind(1)
        return (
            DirectionStats.from_stacked(table[:, :m], n, scale, i2t),
            DirectionStats.from_stacked(table[:, m:], m, scale, t2i),
        )

    def across_ranks(self, sizes: BatchSizes, group: Any) -> tuple[Tensor, Tensor, DirectionStats, DirectionStats]:
        assert self.image_ids is not None and self.text_image_ids is not None
        return contrastive_across_ranks(
            self.images,
            self.texts,
            self.scale,
            self.image_ids,
            self.text_image_ids,
            sizes,
            ignore=self.ignore,
            cache_bytes=self.cache_bytes,
            backend=self.backend,
            group=group,
        )


def _check_duplicates(duplicates: str) -> None:
    if duplicates not in DUPLICATES:
        raise ValueError(f"duplicates must be one of {', '.join(DUPLICATES)}, not {duplicates!r}")


class ContrastiveLoss(nn.Module):
    """The contrastive loss, its two directions weighted by a loss schedule: w_i2t L_i2t + w_t2i L_t2i.

    Works in any training loop: `loss(image_embeddings, text_embeddings, logit_scale).loss.backward()`. The schedule's
    state is in `state_dict`.

    On a GPU a small batch's time is that of its kernel launches (26 for both passes, `bench/launches.py`) and Python.
    The host never waits for the device, so a step can be captured as a CUDA graph, which avoids both; all batches must
    then have one size::

        fast = torch.compile(lambda *batch: loss(*batch).loss, mode="reduce-overhead")

    With a process group every rank's `loss` has the same value, the loss over all ranks' queries. Its gradient is
    this rank's share times the number of ranks, so that averaging the parameters' gradients over ranks, as
    DistributedDataParallel does, gives the gradient of one process with all the data; the logit scale's too, if it is
    averaged with them.

    Args:
        schedule: a `LossSchedule` or the name of one.
        duplicates: "positive" or "ignore", see `contrastive`.
        cache_bytes: see `contrastive`.
        group: see `contrastive`.
    """

    def __init__(
        self,
        schedule: LossSchedule | str = "variance",
        duplicates: str = "positive",
        *,
        cache_bytes: int = 256 << 20,
        group: Any = None,
    ) -> None:
        super().__init__()
        _check_duplicates(duplicates)
        self.schedule = build_schedule(schedule) if isinstance(schedule, str) else schedule
        self.duplicates = duplicates
        self.cache_bytes = cache_bytes
        self.group = group
        self._calls = StepCalls()

    def extra_repr(self) -> str:
        return f"duplicates={self.duplicates!r}"

    def forward(
        self,
        image_embeddings: Tensor,
        text_embeddings: Tensor,
        logit_scale: Tensor | float,
        image_ids: Tensor | None = None,
        text_image_ids: Tensor | None = None,
        *,
        image_weights: Tensor | None = None,
        text_weights: Tensor | None = None,
        members: int = 1,
        step: int | None = None,
    ) -> ContrastiveOutput:
        """The step's loss; arguments as in `contrastive`.

        Args:
            image_weights: (M,) at least 0, how much each image counts in the mean of its direction; None: all alike.
                A weight of 0 takes its query out; it stays a candidate of the others, and the statistics that the
                schedule sees are of all queries.
            text_weights: (N,) the same for the texts.
            members: how many spaces of their own lie side by side in the embeddings (an ensemble's): (B, K * D), of
                length 1 together. Each is aligned by itself; values and statistics are means over them.
            step: the number of the optimiser step that the call is part of, under gradient accumulation: the schedule
                then advances once a step, from the statistics of all its calls. None: every call is a step.
        """
        if self.training:
            self._calls.begin(step)
        problem = _Problem.of(
            image_embeddings,
            text_embeddings,
            logit_scale,
            image_ids,
            text_image_ids,
            self.duplicates,
            self.cache_bytes,
            self.group,
        )
        if self.group is None:
            each = [one.values_and_statistics() for one in problem.apart(members)]
            values, table = (
                each[0] if members == 1 else (torch.stack(parts).mean(0) for parts in zip(*each, strict=True))
            )
            losses, means = direction_losses(
                values, table, problem.scale, problem.images.shape[0], image_weights, text_weights, problem.backend
            )
            stats_i2t, stats_t2i = all_i2t, all_t2i = problem.statistics(table, means)
        else:
            sizes = BatchSizes.gathered(image_embeddings, text_embeddings, self.group)
            apart = [one.across_ranks(sizes, self.group) for one in problem.apart(members)]
            nll_i2t, nll_t2i, stats_i2t, stats_t2i = apart[0] if members == 1 else mean_of_members(apart)
            all_i2t = gather_stats(stats_i2t, sizes.images, self.group)
            all_t2i = gather_stats(stats_t2i, sizes.texts, self.group)
            loss_i2t = mean_across_ranks(nll_i2t, stats_i2t, self.group, image_weights)
            loss_t2i = mean_across_ranks(nll_t2i, stats_t2i, self.group, text_weights)
            losses = torch.stack([loss_i2t, loss_t2i])
        seen = losses
        if self.schedule.by_gradients:
            seen = gradient_norms(losses, (image_embeddings, text_embeddings), group=self.group)
        weights = self._calls.weights(self.schedule, all_i2t, all_t2i, seen)
        loss_i2t, loss_t2i = losses.unbind(0)
        return ContrastiveOutput((weights * losses).sum(), loss_i2t, loss_t2i, weights, stats_i2t, stats_t2i)


def prepared(
    image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of one dtype and the logit scale as a () tensor of the losses' dtype; an error says what is wrong."""
    for name, tensor in (("image_embeddings", image_embeddings), ("text_embeddings", text_embeddings)):
        if tensor.ndim != 2 or 0 in tensor.shape:
            raise ValueError(
                f"{name} must be (queries, dimensions) with at least one of each, not {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, not {tensor.dtype}")
    if image_embeddings.shape[1] != text_embeddings.shape[1]:
        raise ValueError(
            "image and text embeddings must have the same dimension, "
            f"not {image_embeddings.shape[1]} and {text_embeddings.shape[1]}"
        )
    if image_embeddings.device != text_embeddings.device:
        raise ValueError(
            f"the embeddings are on {image_embeddings.device} and {text_embeddings.device}: move one of them"
        )
    dtype = torch.promote_types(image_embeddings.dtype, text_embeddings.dtype)
    if image_embeddings.is_cuda and dtype == torch.float32 and torch.is_autocast_enabled("cuda"):
        # As a matrix product would be: normalising inside autocast has left them in float32.
        dtype = torch.get_autocast_dtype("cuda")
    wide = torch.promote_types(dtype, torch.float32)
    if isinstance(logit_scale, Tensor):
        if logit_scale.numel() != 1:
            raise ValueError(f"logit_scale must be one number, not of shape {tuple(logit_scale.shape)}")
        scale = logit_scale.reshape(()).to(image_embeddings.device, wide)
    else:
        if not 0 < logit_scale < math.inf:
            raise ValueError(f"logit_scale must be above 0 and finite, not {logit_scale}")
        scale = torch.full((), float(logit_scale), dtype=wide, device=image_embeddings.device)
    return image_embeddings.to(dtype), text_embeddings.to(dtype), scale


def prepared_ids(
    images: Tensor, texts: Tensor, image_ids: Tensor | None, text_image_ids: Tensor | None, group: Any
) -> tuple[Tensor, Tensor]:
    """Ids as (M,) or (M, K), and (N,) int64 on the embeddings' device; without any, pair i is image i, text i."""
    if image_ids is None and text_image_ids is None:
        count = max(images.shape[0], texts.shape[0])
        ids = torch.arange(count, device=images.device)
        if group is not None:
            ids = ids + (torch.distributed.get_rank(group) << 40)
        return ids[: images.shape[0]], ids[: texts.shape[0]]
    if images.shape[0] == texts.shape[0]:
        image_ids = text_image_ids if image_ids is None else image_ids
        if text_image_ids is None and image_ids is not None and image_ids.ndim == 1:
            text_image_ids = image_ids
    if image_ids is None or text_image_ids is None:
        raise ValueError(
            f"{images.shape[0]} images and {texts.shape[0]} texts need both image_ids and text_image_ids; one was given"
        )
    image_ids = checked_ids("image_ids", image_ids, images.shape[0], several=True)
    text_image_ids = checked_ids("text_image_ids", text_image_ids, texts.shape[0], several=False)
    return image_ids.to(images.device), text_image_ids.to(images.device)
