"""Training steps of several runs at once, over features.

The heads of R runs are stacked: each parameter is one tensor with a leading run axis, each layer one batched product.
Each run gets what `ContrastiveLoss`, its own schedule and its own optimiser would have given it alone.

R runs, K members of a run (1 but for ensembles), M images and N texts of a batch, D embedding of a member.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.ensemble import trained_in
from varalign.kernels.query_fields import STATISTICS
from varalign.losses.gradient_norms import gradient_norms
from varalign.losses.relation import positive_pairs
from varalign.options.config import TrainConfig
from varalign.options.device import members_products
from varalign.schedules import LossSchedule
from varalign.schedules.direction_stats import DirectionStats
from varalign.training.optimiser import AdamW, build_optimiser, set_learning_rate


class BatchedLosses(NamedTuple):
    """Result of `batched_contrastive`.

    Attributes:
        losses: (R, 2) mean over the queries with a positive, [i2t, t2i], with gradient.
        stats_i2t, stats_t2i: one per run.
    """

    losses: Tensor
    stats_i2t: list[DirectionStats]
    stats_t2i: list[DirectionStats]


def batched_contrastive(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor,
    image_ids: Tensor,
    text_image_ids: Tensor,
    query_weights: tuple[Tensor, Tensor] | None = None,
    *,
    members: int = 1,
) -> BatchedLosses:
    """The losses and statistics of `ContrastiveLoss(..., duplicates="positive")`, run by run.

    All R · K · M · N similarities are held at once: for the small batches of a study, not for large ones.

    Args:
        image_embeddings: (R, M, K · D) unit vectors. text_embeddings: (R, N, K · D).
        logit_scale: (R,) above 0.
        image_ids: (R, M) integers that name the images, or (R, M, K). text_image_ids: (R, N).
        query_weights: (R, M) and (R, N), at least 0, how much each image and each text counts in the mean of its
            direction; None: all alike.
        members: K spaces side by side in the embeddings; each is aligned by itself, and values and statistics are means
            over them.
    """
    u, v = (_apart(x, members) for x in (image_embeddings, text_embeddings))
    s = u @ v.transpose(2, 3)
    z = s * logit_scale[:, None, None, None]
    positive = positive_pairs(image_ids, text_image_ids)[:, None]
    losses, stats = [], []
    for place, dim in enumerate((3, 2)):
        lse = z.logsumexp(dim)
        count = positive.sum(dim)
        values = (lse - (z * positive).sum(dim) / count.clamp_min(1)).mean(1)
        stats.append(_statistics(s.detach(), z.detach(), lse.detach(), positive, count, dim))
        count = count[:, 0]
        counts_in = (count > 0).to(values.dtype)
        if query_weights is not None:
            counts_in = counts_in * query_weights[place].detach()
        total = counts_in.sum(1)
        values = torch.where(count > 0, values, torch.zeros_like(values))
        losses.append((values * counts_in).sum(1) / torch.where(total > 0, total, torch.ones_like(total)))
    scales = logit_scale.detach()
    return BatchedLosses(
        torch.stack(losses, dim=1),
        [DirectionStats.from_stacked(table, s.shape[3], scale) for table, scale in zip(stats[0], scales, strict=True)],
        [DirectionStats.from_stacked(table, s.shape[2], scale) for table, scale in zip(stats[1], scales, strict=True)],
    )


def _apart(embeddings: Tensor, members: int) -> Tensor:
    """(R, B, K · D), of length 1 as a whole, to (R, K, B, D), each member of length 1."""
    each = embeddings.unflatten(2, (members, -1)).transpose(1, 2)
    return each if members == 1 else each * math.sqrt(members)


@torch.no_grad()
def _statistics(s: Tensor, z: Tensor, lse: Tensor, positive: Tensor, count: Tensor, dim: int) -> Tensor:
    """(R, 7, queries) in the order of `STATISTICS`, means over the members."""
    none = torch.full_like(lse, -torch.inf)
    low = torch.full_like(s, -torch.inf)
    found = {
        "lse": lse,
        "positive_mean": torch.where(count > 0, (s * positive).sum(dim) / count.clamp_min(1), none),
        "positive_max": torch.where(positive, s, low).amax(dim),
        "negative_max": torch.where(positive, low, s).amax(dim),
        "minimum": s.amin(dim),
        "expected": ((z - lse.unsqueeze(dim)).exp() * s).sum(dim),
        "variance": s.var(dim, unbiased=False),
    }
    return torch.stack([found[name].mean(1) for name in STATISTICS], dim=1)


class BatchedRuns:
    """Trains R dual encoders over features side by side.

    The parameters of the given models become slices of the stacked ones, so that a model can be evaluated, or its state
    read, at any time.

    Args:
        models: equal in shape, without towers, on one device.
        configs: one per run; learning rates and decays may differ.
        schedules: one per run.

    Raises:
        ValueError: models of different shapes.
    """

    def __init__(
        self, models: Sequence[DualEncoder], configs: Sequence[TrainConfig], schedules: Sequence[LossSchedule]
    ) -> None:
        self.models, self.schedules = list(models), [schedule.train() for schedule in schedules]
        self.clip_grad = [config.clip_grad for config in configs]
        for model, config in zip(models, configs, strict=True):
            trained_in(model, members_products(config.precision, model.log_logit_scale.device))
        self._base = copy.deepcopy(self.models[0]).train()
        self._parameters = self._stacked([dict(model.named_parameters()) for model in models])
        self._buffers = self._stacked([dict(model.named_buffers()) for model in models])
        groups = []
        for run, (model, config) in enumerate(zip(models, configs, strict=True)):
            for name, parameter in model.named_parameters():
                parameter.data = self._parameters[name].detach()[run]
            groups += build_optimiser(model, config).param_groups
        # The fused kernel: one pass over the weights instead of ten, eight times as fast for eight runs of 1M weights.
        self.optimiser = AdamW(groups, fused=True)
        for group in self.optimiser.param_groups:
            group["fused"], group["foreach"] = True, None

    @staticmethod
    def _stacked(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        shapes = [{name: tensor.shape for name, tensor in part.items()} for part in parts]
        if any(other != shapes[0] for other in shapes):
            raise ValueError("runs trained as one batch need models of the same shape")
        return {
            name: torch.stack([part[name].detach() for part in parts]).requires_grad_(first.requires_grad)
            for name, first in parts[0].items()
        }

    def step(
        self,
        image_features: Tensor,
        text_features: Tensor,
        image_ids: Tensor,
        rate_factor: float,
        pair_weights: Tensor | None = None,
        text_image_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One optimiser step of every run.

        Args:
            image_features: (R, B, Dx). text_features: (R, B, Dy), pairs by row.
            image_ids: (R, B), or (R, B, K) with `text_image_ids` (R, B), as in `batched_contrastive`.
            rate_factor: by which every learning rate is multiplied.
            pair_weights: (R, B) how much each pair counts in the loss; None: all alike.

        Returns:
            losses (R,) and weights (R, 2), detached.
        """

        def embed(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor
        ) -> tuple[Tensor, Tensor]:
            found: tuple[Tensor, Tensor] = functional_call(self._base, (parameters, buffers), (x, y))
            return found

        u, v = torch.vmap(embed, randomness="different")(self._parameters, self._buffers, image_features, text_features)
        scale = self._parameters["log_logit_scale"].exp()
        losses, stats_i2t, stats_t2i = batched_contrastive(
            u,
            v,
            scale,
            image_ids,
            image_ids if text_image_ids is None else text_image_ids,
            None if pair_weights is None else (pair_weights, pair_weights),
            members=max(1, self._base.shape.members),
        )
        norms = losses
        if any(schedule.by_gradients for schedule in self.schedules):
            norms = gradient_norms(losses, (u, v), runs=True)
        weights = torch.stack(
            [
                schedule(i2t, t2i, losses=norm if schedule.by_gradients else loss)
                for schedule, i2t, t2i, loss, norm in zip(
                    self.schedules, stats_i2t, stats_t2i, losses, norms, strict=True
                )
            ]
        )
        run_losses = (weights * losses).sum(1)
        for parameter in self._parameters.values():
            parameter.grad = None
        run_losses.sum().backward()
        self._clip()
        for run, model in enumerate(self.models):
            for name, parameter in model.named_parameters():
                gradient = self._parameters[name].grad
                parameter.grad = None if gradient is None else gradient[run]
        set_learning_rate(self.optimiser, rate_factor)
        self.optimiser.step()
        for model in self.models:
            model.clamp_logit_scale_()
        return run_losses.detach(), weights

    @torch.no_grad()
    def _clip(self) -> None:
        """Each run's gradient to its own largest norm, as `clip_grad_norm_` does."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        norms = torch.stack(
            [torch.linalg.vector_norm(g.flatten(1) if g.ndim > 1 else g[:, None], dim=1) for g in gradients]
        )
        norm = torch.linalg.vector_norm(norms, dim=0)
        limit = norm.new_tensor([clip or torch.inf for clip in self.clip_grad])
        factor = torch.where(limit.isinf(), 1.0, (limit / (norm + 1e-6)).clamp(max=1.0))
        if bool((factor == 1).all()):  # the host waits for the device here
            return
        for gradient in gradients:
            gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))
