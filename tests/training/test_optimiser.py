"""The learning rate as a function of the step; the optimiser is torch's."""

from __future__ import annotations

import itertools

import pytest
import torch
from varalign.training.optimiser import AdamW, rate_factor


def test_warm_up_rises_linearly_and_cosine_ends_near_zero() -> None:
    factors = [rate_factor(step, 100, warmup=0.1, schedule="cosine") for step in range(100)]
    assert factors[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert 0 < factors[-1] < 1e-3


def test_step_falls_twice_and_constant_never() -> None:
    step = {rate_factor(i, 100, warmup=0.0, schedule="step") for i in range(100)}
    assert step == {1.0, 0.1, 0.01}
    assert {rate_factor(i, 100, warmup=0.0, schedule="constant") for i in range(100)} == {1.0}


def test_a_run_of_one_step_trains() -> None:
    assert rate_factor(0, 1, warmup=0.05, schedule="cosine") == 1.0


@pytest.mark.parametrize("fused", [None, True])
def test_steps_and_state_are_torchs_bit_for_bit(fused: bool | None) -> None:
    made = []
    for kind in (torch.optim.AdamW, AdamW):
        torch.manual_seed(0)
        weights = [torch.randn(5, 7, requires_grad=True), torch.randn(7, requires_grad=True)]
        groups = [{"params": weights[:1], "lr": 0.1}, {"params": weights[1:], "weight_decay": 0.0}]
        optimiser = kind(groups, fused=fused)
        other = torch.randn(3, requires_grad=True)
        optimiser.add_param_group({"params": [other]})
        for _ in range(4):
            optimiser.zero_grad()
            sum(w.pow(4).sum() for w in (*weights, other)).backward()
            optimiser.step()
        again = kind([{"params": weights[:1]}, {"params": weights[1:]}, {"params": [other]}], fused=fused)
        again.load_state_dict(optimiser.state_dict())
        sum(w.pow(4).sum() for w in (*weights, other)).backward()
        again.step()
        assert not any(w.grad is None for w in weights)
        made.append(([*weights, other], again.state_dict()))
    (ours, state), (theirs, other_state) = made
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert state["param_groups"] == other_state["param_groups"]
    for index, values in state["state"].items():
        assert all(torch.equal(value, other_state["state"][index][name]) for name, value in values.items())
