"""Runs trained as one batched product against the same runs trained one by one with the project's own loss."""

from __future__ import annotations

import copy

import pytest
import torch
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.head_shape import HeadShape
from varalign.encoders.towers import Towers
from varalign.kernels.query_fields import STATISTICS
from varalign.losses.contrastive import ContrastiveLoss, contrastive
from varalign.options.config import TrainConfig
from varalign.schedules import LossSchedule, build_schedule
from varalign.training.batched import BatchedRuns, batched_contrastive
from varalign.training.optimiser import build_optimiser, set_learning_rate


def unit(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize(("images", "texts", "several"), [(1, 1, 1), (2, 3, 1), (9, 7, 1), (9, 7, 2)])
def test_losses_statistics_and_gradients_equal_the_unbatched_loss(images: int, texts: int, several: int) -> None:
    u, v = unit(3, images, 5, seed=0).requires_grad_(), unit(3, texts, 5, seed=1).requires_grad_()
    scale = torch.tensor([3.0, 14.0, 100.0], dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 6, (3, images), generator=generator)
    if several > 1:
        ids = torch.stack([ids, ids + 2], 2)
    text_ids = torch.randint(0, 6, (3, texts), generator=generator)
    losses, stats_i2t, stats_t2i = batched_contrastive(u, v, scale, ids, text_ids)
    weights = torch.tensor([[0.3, 0.7], [0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    batched = torch.autograd.grad((weights * losses).sum(), [u, v, scale])
    for run in range(3):
        nll_i2t, nll_t2i, i2t, t2i = contrastive(u[run], v[run], scale[run], ids[run], text_ids[run])
        alone = torch.stack(
            [nll_i2t.sum() / i2t.has_positive.sum().clamp_min(1), nll_t2i.sum() / t2i.has_positive.sum().clamp_min(1)]
        )
        torch.testing.assert_close(losses[run], alone, rtol=1e-10, atol=1e-10)
        for ours, theirs in ((stats_i2t[run], i2t), (stats_t2i[run], t2i)):
            assert ours.candidates == theirs.candidates
            for name in STATISTICS:
                torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-9, atol=1e-10)
        if not alone.requires_grad:
            continue
        gradients = torch.autograd.grad((weights[run] * alone).sum(), [u, v, scale])
        for ours, theirs in zip(batched, gradients, strict=True):
            torch.testing.assert_close(ours[run], theirs[run], rtol=1e-8, atol=1e-9)


def model(kind: str, seed: int) -> DualEncoder:
    torch.manual_seed(seed)
    shape = {
        "mlp": HeadShape(6, "mlp", 12),
        "residual": HeadShape(6, "residual", 12, train_map=seed != 1),
        "ensemble": HeadShape(5 + 2 * 4, "ensemble", 12, members=2, member_dim=4),
    }[kind]
    made = DualEncoder(Towers(None, None, image_feature_dim=10, text_feature_dim=8), shape)
    if kind == "residual":
        for head, width in ((made.image_head, 10), (made.text_head, 8)):
            head.fill(torch.randn(width, 6), torch.randn(width), torch.eye(width))
    return made


def schedules() -> list[LossSchedule]:
    return [
        build_schedule("variance"),
        build_schedule("random", seed=3),
        build_schedule("replay", replay=[0.2, 0.6, 0.7], seed=1),
    ]


CONFIGS = [
    TrainConfig(features="f", precision="fp32", lr=1e-2, weight_decay=0.1, clip_grad=0.05),
    TrainConfig(features="f", precision="fp32", lr=3e-3, weight_decay=0.0, clip_grad=1.0),
    TrainConfig(features="f", precision="fp32", lr=1e-3, weight_decay=0.5, clip_grad=0.0),
]


def test_members_are_aligned_one_by_one() -> None:
    """K spaces side by side: losses, statistics and gradients are those of `ContrastiveLoss(members=K)`."""
    u, v = unit(2, 6, 3, 5, seed=0), unit(2, 6, 3, 5, seed=1)
    u, v = ((x / 3**0.5).flatten(2).requires_grad_() for x in (u, v))
    scale = torch.tensor([3.0, 50.0], dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 1, 2, 2, 4, 5], [3, 1, 3, 0, 2, 5]])
    pair_weights = torch.rand(2, 6, dtype=torch.float64)
    losses, *stats = batched_contrastive(u, v, scale, ids, ids, (pair_weights, pair_weights), members=3)
    batched = torch.autograd.grad(losses.sum(), [u, v, scale])
    for run in range(2):
        given = {"image_weights": pair_weights[run], "text_weights": pair_weights[run], "members": 3}
        alone = ContrastiveLoss(build_schedule("fixed"))(u[run], v[run], scale[run], ids[run], ids[run], **given)
        torch.testing.assert_close(losses[run], torch.stack([alone.loss_i2t, alone.loss_t2i]), rtol=1e-10, atol=1e-10)
        for ours, theirs in zip(stats, (alone.stats_i2t, alone.stats_t2i), strict=True):
            for name in STATISTICS:
                torch.testing.assert_close(getattr(ours[run], name), getattr(theirs, name), rtol=1e-9, atol=1e-10)
        gradients = torch.autograd.grad(alone.loss_i2t + alone.loss_t2i, [u, v, scale])
        for ours, theirs in zip(batched, gradients, strict=True):
            torch.testing.assert_close(ours[run], theirs[run], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", ["mlp", "residual", "ensemble"])
def test_three_runs_in_one_batch_equal_three_runs_alone(kind: str) -> None:
    """To 2e-5 after ten steps in float32: products of other shapes round otherwise, and Adam divides by little."""
    seeds = (0, 2, 3)
    models = [model(kind, seed) for seed in seeds]
    alone = [copy.deepcopy(one) for one in models]
    optimisers = [build_optimiser(one, config) for one, config in zip(alone, CONFIGS, strict=True)]
    losses = [ContrastiveLoss(schedule) for schedule in schedules()]
    batched = BatchedRuns(models, CONFIGS, schedules())
    generator = torch.Generator().manual_seed(5)
    for step in range(10):
        x, y = torch.randn(3, 7, 10, generator=generator), torch.randn(3, 7, 8, generator=generator)
        ids = torch.stack([torch.randperm(50, generator=generator)[:7] for _ in range(3)])
        found, weights = batched.step(x, y, ids, 0.1 * (step + 1))
        for run, (one, optimiser, loss, config) in enumerate(zip(alone, optimisers, losses, CONFIGS, strict=True)):
            set_learning_rate(optimiser, 0.1 * (step + 1))
            output = loss(*one(x[run], y[run]), one.logit_scale, ids[run], ids[run], members=max(1, one.shape.members))
            optimiser.zero_grad()
            output.loss.backward()
            if config.clip_grad:
                torch.nn.utils.clip_grad_norm_(one.parameters(), config.clip_grad)
            optimiser.step()
            one.clamp_logit_scale_()
            torch.testing.assert_close(found[run], output.loss.detach(), rtol=2e-5, atol=2e-5)
            torch.testing.assert_close(weights[run], output.weights, rtol=2e-5, atol=2e-5)
    for ours, theirs in zip(models, alone, strict=True):
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=2e-5, atol=2e-5)


def test_a_run_whose_numbers_are_lost_leaves_the_others_alone() -> None:
    sound, lost = [model("mlp", 0), model("mlp", 1)], [model("mlp", 0), model("mlp", 1)]
    config = TrainConfig(features="f", precision="fp32", lr=1e-2, weight_decay=0.0, clip_grad=1.0)
    with torch.no_grad():
        lost[1].image_head.skip.weight.fill_(torch.nan)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 7, 10, generator=generator), torch.randn(2, 7, 8, generator=generator)
    ids = torch.arange(7).repeat(2, 1)
    for models in (sound, lost):
        batched = BatchedRuns(models, [config] * 2, [build_schedule("variance") for _ in models])
        for _ in range(3):
            batched.step(x, y, ids, 1.0)
    for name, value in sound[0].state_dict().items():
        assert torch.equal(value, lost[0].state_dict()[name])


def test_models_of_different_shapes_are_refused() -> None:
    other = DualEncoder(Towers(None, None, image_feature_dim=10, text_feature_dim=8), HeadShape(5))
    with pytest.raises(ValueError, match="same shape"):
        BatchedRuns([model("mlp", 0), other], CONFIGS[:2], schedules()[:2])
