"""The loss schedules against hand-computed weights, and their state."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from varalign.schedules import SCHEDULES, build_schedule
from varalign.schedules.direction_stats import DirectionStats


def stats(variance: float = 0.1, spread: float = 1.0, entropy: float = 0.5, candidates: int = 8) -> DirectionStats:
    """Three queries whose statistics are the given ones on average."""

    def around(value: float) -> torch.Tensor:
        return torch.tensor([0.5 * value, value, 1.5 * value])

    # entropy = lse - scale * expected, given as a share of log(candidates).
    return DirectionStats(
        lse=around(entropy * math.log(candidates)) + 2.0,
        positive_mean=torch.zeros(3),
        positive_max=torch.full((3,), -0.5),
        negative_max=around(spread) - 0.5,
        minimum=torch.full((3,), -0.5),
        expected=torch.full((3,), 0.2),
        variance=around(variance),
        candidates=candidates,
        logit_scale=torch.tensor(10.0),
    )


@pytest.mark.parametrize("name", ["variance", "spread", "entropy"])
def test_first_step_is_the_statistics_ratio(name: str) -> None:
    """The moving average is bias-corrected: the first weights are those of the first statistics."""
    weights = build_schedule(name, floor=0.1)(stats(**{name: 0.3}), stats(**{name: 0.1}))
    torch.testing.assert_close(weights, torch.tensor([0.1 + 0.8 * 0.75, 0.1 + 0.8 * 0.25]))
    assert weights.dtype == torch.float32


def test_moving_average_by_hand() -> None:
    schedule = build_schedule("variance", floor=0.0, beta=0.9, gamma=2.0)
    schedule(stats(0.2), stats(0.1))
    weights = schedule(stats(0.1), stats(0.3))
    first, second = (0.9 * 0.1 * 0.2 + 0.1 * 0.1) / 0.19, (0.9 * 0.1 * 0.1 + 0.1 * 0.3) / 0.19
    expected = first**2 / (first**2 + second**2)
    torch.testing.assert_close(weights, torch.tensor([expected, 1 - expected]))


@given(
    values=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5),
    floor=st.floats(0, 0.5),
    beta=st.floats(0, 0.999),
    gamma=st.floats(0, 8),
)
@settings(max_examples=50, deadline=None)
def test_weights_are_weights(values: list[tuple[float, float]], floor: float, beta: float, gamma: float) -> None:
    schedule = build_schedule("variance", floor=floor, beta=beta, gamma=gamma)
    for first, second in values:
        weights = schedule(stats(first), stats(second))
        assert abs(float(weights.sum()) - 1) < 1e-5
        assert float(weights.min()) >= floor - 1e-6


def test_degenerate_directions() -> None:
    assert build_schedule("variance")(stats(0.0), stats(0.0)).tolist() == [0.5, 0.5]
    for name in ("variance", "spread", "entropy"):
        weights = build_schedule(name)(stats(), stats(candidates=1))
        torch.testing.assert_close(weights, torch.tensor([0.95, 0.05]))
    # 1e-3 to the 30th is no float32; the ratio is.
    torch.testing.assert_close(build_schedule("variance", gamma=30)(stats(1e-3), stats(1e-3)), torch.tensor([0.5, 0.5]))


def test_a_step_gone_wrong_leaves_no_trace() -> None:
    schedule = build_schedule("variance")
    before = schedule(stats(0.3), stats(0.1))
    during = schedule(stats(math.nan), stats(0.1))
    torch.testing.assert_close(during, before)
    torch.testing.assert_close(schedule(stats(0.3), stats(0.1)), before)
    assert build_schedule("variance")(stats(math.nan), stats(0.1)).tolist() == [0.5, 0.5]


def test_evaluation_keeps_nothing() -> None:
    for name in ("variance", "random"):
        schedule = build_schedule(name)
        schedule(stats(0.3), stats(0.1))
        before = {key: value.clone() for key, value in schedule.state_dict().items()}
        schedule.eval()
        schedule(stats(0.1), stats(0.9))
        for key, value in schedule.state_dict().items():
            assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", SCHEDULES)
def test_resumes_bit_for_bit(name: str) -> None:
    replay = [0.1 * i for i in range(8)]
    whole, first = (build_schedule(name, seed=3, replay=replay, fixed_weight=0.7) for _ in range(2))
    steps = [(stats(0.1 + 0.05 * i), stats(0.3 - 0.02 * i), torch.tensor([2.0 - 0.1 * i, 1.0])) for i in range(6)]
    wanted = [whole(*step) for step in steps]
    for step in steps[:3]:
        first(*step)
    # Another seed and other weights at the start: the state alone must decide.
    resumed = build_schedule(name, seed=4, replay=[0.0] * 8, fixed_weight=0.2)
    resumed.load_state_dict(first.state_dict())
    for step, weights in zip(steps[3:], wanted[3:], strict=True):
        assert torch.equal(resumed(*step), weights)


def test_random_is_uniform_and_seeded() -> None:
    def draws(seed: int, count: int = 2000) -> torch.Tensor:
        schedule = build_schedule("random", floor=0.1, seed=seed)
        return torch.stack([schedule(stats(), stats())[0] for _ in range(count)])

    weights = draws(1)
    assert torch.equal(weights[:50], draws(1, 50))
    assert not torch.equal(weights[:50], draws(2, 50))
    assert 0.1 <= float(weights.min()) < 0.11
    assert 0.89 < float(weights.max()) <= 0.9
    # Kolmogorov-Smirnov at 2,000 draws: 0.036 is the one-percent point.
    ordered = (weights.sort().values - 0.1) / 0.8
    assert float((ordered - torch.linspace(0, 1, 2000)).abs().max()) < 0.036
    # Neighbouring steps are unrelated.
    assert abs(float(torch.corrcoef(torch.stack([weights[:-1], weights[1:]]))[0, 1])) < 0.06


def test_replay_is_the_same_weights_in_another_order() -> None:
    recorded = [i / 20 for i in range(20)]
    schedule = build_schedule("replay", replay=recorded, seed=1)
    drawn = [round(float(schedule(stats(), stats())[0]), 6) for _ in range(25)]
    assert sorted(drawn[:20]) == pytest.approx(recorded)
    assert drawn[:20] != pytest.approx(recorded)
    assert drawn[20:] == drawn[:5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "varience"},
            "unknown loss schedule 'varience'; known ones: dwa, entropy",
        ),
        ({"name": "variance", "floor": 0.6}, "floor must be from 0 to 0.5, not 0.6"),
        ({"name": "variance", "beta": 1.0}, "beta must be from 0 up to, not including, 1, not 1.0"),
        ({"name": "variance", "gamma": -1.0}, "gamma must be 0 or more, not -1.0"),
        ({"name": "fixed", "fixed_weight": 1.5}, "fixed_weight must be from 0 to 1, not 1.5"),
        ({"name": "replay"}, "none were given"),
        ({"name": "replay", "replay": [0.2, 1.5]}, "step 1 has 1.5, 1 of 2 steps are wrong"),
    ],
)
def test_errors(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_schedule(**arguments)


def test_no_gradient_and_shared_state_dict() -> None:
    schedule = build_schedule("variance")
    assert set(schedule.state_dict()) == {"average", "steps"}
    assert not schedule(stats(), stats()).requires_grad
