"""Mixup of features against a plain loop, and as an option."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.training.steps.feature_mixup import FeatureMixup

ROWS = np.array([7, 3, 11, 5, 2])


def test_every_pair_keeps_the_larger_part_and_meets_another() -> None:
    mixup = FeatureMixup.draw(ROWS, 0.7, seed=3, epoch=1)
    values = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    expected = [
        s * values[i] + (1 - s) * values[j] for i, (j, s) in enumerate(zip(mixup.partner, mixup.share, strict=False))
    ]
    torch.testing.assert_close(mixup(values), torch.stack(expected))
    torch.testing.assert_close(mixup(values[:, 0]), torch.stack(expected)[:, 0])
    assert sorted(mixup.partner.tolist()) == list(range(5))
    assert (mixup.partner != np.arange(5)).all() and (mixup.share >= 0.5).all() and (mixup.share <= 1).all()


def test_a_pure_function_of_seed_epoch_and_rows() -> None:
    one, same = (FeatureMixup.draw(ROWS, 1.0, seed=3, epoch=1) for _ in range(2))
    assert one.partner.tolist() == same.partner.tolist() and one.share.tolist() == same.share.tolist()
    for other in (
        FeatureMixup.draw(ROWS, 1.0, seed=4, epoch=1),
        FeatureMixup.draw(ROWS, 1.0, seed=3, epoch=2),
        FeatureMixup.draw(ROWS[::-1], 1.0, seed=3, epoch=1),
    ):
        assert one.share.tolist() != other.share.tolist()


def test_a_small_parameter_hardly_mixes() -> None:
    shares = [FeatureMixup.draw(np.arange(200), alpha, seed=0, epoch=0).share.mean() for alpha in (0.05, 1.0, 50.0)]
    assert shares[0] > 0.95 and shares[1] == pytest.approx(0.75, abs=0.05) and shares[2] < 0.6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"feature_mixup": 1.0}, "--feature-mixup mixes the features of frozen encoders"),
        (
            {"feature_mixup": 1.0, "features": "f", "captions_as": "each", "captions_per_step": 3},
            "--feature-mixup needs one text for each image",
        ),
    ],
)
def test_where_it_does_not_fit(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainConfig(**options).validate()  # type: ignore[arg-type]
