"""Several calls of a loss in one optimiser step: gradient accumulation and activation checkpointing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from varalign.losses.comparison import ComparisonLoss
from varalign.losses.contrastive import ContrastiveLoss
from varalign.losses.others import build_objective
from varalign.schedules import SCHEDULES, build_schedule
from varalign.schedules.direction_stats import DirectionStats

BATCH, PARTS = 8, 4
SCALE = 10.0


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.image, self.text = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return normalize(self.image(x), dim=1), normalize(self.text(y), dim=1)


def steps(count: int = 5) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    pairs = []
    for _ in range(count):
        x = torch.randn(BATCH * PARTS, 6, generator=g)
        # Texts vary less than images, so that the two directions' statistics differ.
        pairs.append((x, x + torch.randn(6, generator=g) + 0.3 * torch.randn(x.shape, generator=g)))
    return pairs


def new_loss(name: str) -> ContrastiveLoss | ComparisonLoss:
    if name in ("sogclr", "isogclr"):
        return ComparisonLoss(build_objective(name, images=32, captions=32), build_schedule("variance"))
    return ContrastiveLoss(build_schedule(name, replay=[0.2, 0.4, 0.7], seed=1))


def call(loss: Any, u: Tensor, v: Tensor, **options: Any) -> Any:
    if isinstance(loss, ComparisonLoss):
        loss.see(image_rows=torch.arange(len(u)), caption_rows=torch.arange(len(v)))
    return loss(u, v, SCALE, **options)


def whole(name: str) -> tuple[list[Tensor], Towers, Any]:
    """Training with the whole batch in one call: a step's weights, what was trained, the loss."""
    towers, loss = Towers(), new_loss(name)
    optimiser, weights = torch.optim.SGD(towers.parameters(), 0.5), []
    for x, y in steps():
        optimiser.zero_grad()
        out = call(loss, *towers(x, y))
        out.loss.backward()
        optimiser.step()
        weights.append(out.weights)
    return weights, towers, loss


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    for key, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", [*SCHEDULES, "sogclr", "isogclr"])
def test_open_clips_accumulation_equals_one_large_batch(name: str) -> None:
    """Features are cached without gradient; each part is computed again with one, among the cached ones of the rest."""
    wanted, trained, known = whole(name)
    towers, loss = Towers(), new_loss(name)
    optimiser = torch.optim.SGD(towers.parameters(), 0.5)
    for step, (x, y) in enumerate(steps()):
        parts = list(zip(x.chunk(PARTS), y.chunk(PARTS), strict=True))
        with torch.no_grad():
            cached = [towers(*part) for part in parts]
        optimiser.zero_grad()
        for j, part in enumerate(parts):
            u, v = (
                torch.cat([*(one[side] for one in cached[:j]), found, *(one[side] for one in cached[j + 1 :])])
                for side, found in enumerate(towers(*part))
            )
            out = call(loss, u, v, step=step)
            out.loss.backward()
            # The gradients of one direction's norm are those of a part: IMTL-G's weights are others within a step.
            if name != "imtl-g":
                torch.testing.assert_close(out.weights, wanted[step], rtol=1e-4, atol=1e-5)
        optimiser.step()
    if name != "imtl-g":
        assert_same_state(trained, towers)
        assert_same_state(known, loss)


def test_micro_batches_of_a_step_advance_the_schedule_once_by_all_their_queries() -> None:
    (x, y), *_ = steps()
    towers = Towers()
    parts = [towers(*part) for part in zip(x.split([8, 24]), y.split([8, 24]), strict=True)]
    loss, apart = ContrastiveLoss(), ContrastiveLoss()
    outs = [loss(*part, SCALE, step=7) for part in parts]
    i2t, t2i = (DirectionStats.joined([getattr(out, f"stats_{way}") for out in outs]) for way in ("i2t", "t2i"))
    assert torch.equal(outs[0].weights, apart(*parts[0], SCALE).weights)
    assert torch.equal(outs[1].weights, ContrastiveLoss().schedule(i2t, t2i))
    assert i2t.candidates == 20 and float(i2t.mean_variance) == pytest.approx(float(i2t.variance.mean()))
    assert int(loss.schedule.steps) == 1
    loss(*parts[0], SCALE, step=8)
    assert int(loss.schedule.steps) == 2
    for _ in range(2):  # without a number every call is a step
        loss(*parts[0], SCALE)
    assert int(loss.schedule.steps) == 4


def test_a_loaded_state_begins_a_step_anew() -> None:
    (x, y), *_ = steps()
    u, v = Towers()(x, y)
    loss = ContrastiveLoss()
    loss(u, v, SCALE, step=0)
    state = copy.deepcopy(loss.state_dict())
    assert set(state) == {"schedule.average", "schedule.steps"}
    loss(u, v, SCALE, step=1)
    loss.load_state_dict(state)
    loss(u, v, SCALE, step=1)
    assert int(loss.schedule.steps) == 2
    twin = copy.deepcopy(loss)
    twin(u, v, SCALE, step=1)
    assert int(twin.schedule.steps) == 2


def test_evaluation_between_the_calls_of_a_step_is_no_part_of_it() -> None:
    (x, y), *_ = steps()
    u, v = Towers()(x, y)
    loss = ContrastiveLoss()
    first = loss(u, v, SCALE, step=0).weights
    loss.eval()(v.flip(0), u, SCALE)
    assert torch.allclose(loss.train()(u, v, SCALE, step=0).weights, first)
    assert int(loss.schedule.steps) == 1


@pytest.mark.parametrize("name", [*SCHEDULES, "sogclr", "isogclr"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(name: str, reentrant: bool) -> None:
    if name == "imtl-g" and reentrant:
        pytest.skip("a reentrant checkpoint runs forward without gradients, by which this schedule weighs")
    wanted, trained, known = whole(name)
    towers, loss = Towers(), new_loss(name)
    optimiser, weights = torch.optim.SGD(towers.parameters(), 0.5), []

    def forward(x: Tensor, y: Tensor) -> Tensor:
        out = call(loss, *towers(x, y))
        weights[-1].append(out.weights)
        return out.loss

    with set_checkpoint_early_stop(False):
        for x, y in steps():
            optimiser.zero_grad()
            weights.append([])
            checkpoint(forward, x.requires_grad_(), y, use_reentrant=reentrant).backward()
            optimiser.step()
    for found, one in zip(weights, wanted, strict=True):
        assert len(found) >= 2 and all(torch.equal(each, one) for each in found)
    assert_same_state(trained, towers)
    assert_same_state(known, loss)


def test_a_recomputed_call_gets_the_weights_of_its_own_call() -> None:
    """Two checkpointed calls of a step before one backward pass: they are computed again in the reverse order."""
    (x, y), *_ = steps()
    towers, loss = Towers(), ContrastiveLoss()
    weights = []

    def forward(x: Tensor, y: Tensor) -> Tensor:
        out = loss(*towers(x, y), SCALE, step=0)
        weights.append(out.weights)
        return out.loss

    parts = zip(x.chunk(2), y.chunk(2), strict=True)
    with set_checkpoint_early_stop(False):
        sum(checkpoint(forward, *part, use_reentrant=False) for part in parts).backward()
    first, second, *again = weights
    assert not torch.equal(first, second)
    assert torch.equal(again[0], second) and torch.equal(again[1], first)
    assert int(loss.schedule.steps) == 1
