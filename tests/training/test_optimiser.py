"""The learning rate as a function of the step."""

from __future__ import annotations

import itertools

import pytest
from varalign.training.optimiser import rate_factor


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
