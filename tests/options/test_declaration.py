"""Declarations of options, and checks of one value."""

from __future__ import annotations

import pytest
from varalign.losses import LOSSES
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError, checkpoint_interval
from varalign.options.fields import OPTIONS
from varalign.options.layers import resolve
from varalign.schedules import SCHEDULES


def test_every_option_has_a_help_and_a_group() -> None:
    assert all(option.help and option.group for option in OPTIONS.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": -3}, "--epochs is -3, but must be at least 0"),
        ({"epochs": "many"}, "--epochs takes a whole number, not 'many'"),
        ({"lr": float("nan")}, "--lr takes a finite number"),
        ({"batch_size": True}, "--batch-size takes a whole number, not True"),
        ({"schedule": "varience"}, "did you mean 'variance'?"),
        ({"dropout": 1.5}, "--dropout is 1.5, but must be at most 0.95"),
        ({"seed": None}, "--seed needs a value"),
    ],
)
def test_a_wrong_value_names_the_option(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve([options])
    assert words in str(caught.value)


def test_schedule_names_are_those_of_the_schedules() -> None:
    assert set(OPTIONS["schedule"].choices) == set(SCHEDULES)
    assert set(OPTIONS["loss"].choices) == set(LOSSES)


def test_checkpoints_come_every_so_many_steps_or_minutes() -> None:
    assert [checkpoint_interval(text) for text in (0, 200, "200", "10m", "0.5M")] == [
        (0, 0.0),
        (200, 0.0),
        (200, 0.0),
        (0, 600.0),
        (0, 30.0),
    ]
    for wrong in ("10s", "-1", "m", "nanm", "infm", "1e3", ""):
        with pytest.raises(ConfigError, match="--checkpoint-every"):
            TrainConfig(checkpoint_every=wrong).validate()
