"""Training plots: whatever a run wrote is drawn, NaN and gaps too."""

from __future__ import annotations

import math

import numpy as np
import pytest
from varalign.pictures.plots import _smoothed, draw_training


def lines(steps: int = 150) -> list[dict[str, object]]:
    found: list[dict[str, object]] = [
        {"kind": "step", "step": i, "epoch": i // 50, "loss_i2t": 3 / (i + 1), "loss_t2i": 4 / (i + 1)}
        | {"w_i2t": 0.49, "w_t2i": 0.51, "logit_scale": 14.3 + 0.01 * i, "lr": 1e-3}
        for i in range(steps)
    ]
    for epoch in range(3):
        recall = {f"{d}_recall@{k}": 0.1 * (epoch + 1) for d in ("i2t", "t2i") for k in (1, 5, 10)}
        found.append({"kind": "eval", "split": "dev", "epoch": epoch, "images": 1000, "texts": 5000} | recall)
    return found


@pytest.mark.parametrize("steps", [0, 1, 150])
def test_draws_the_same_file_again(tmp_path, steps):
    from PIL import Image

    one = draw_training(lines(steps), tmp_path / "pictures" / "training.png")
    two = draw_training(lines(steps), tmp_path / "again.png")
    with Image.open(one) as a, Image.open(two) as b:
        assert a.size[0] > 1000 and np.array_equal(np.asarray(a), np.asarray(b))


def test_nan_null_and_nothing_at_all(tmp_path):
    some = lines(5)
    some[0]["loss_i2t"] = math.nan
    some[1]["w_i2t"] = None
    some[2].pop("logit_scale")
    some[3]["loss_t2i"] = math.inf
    some[-1]["i2t_recall@1"] = math.nan
    assert draw_training(some, tmp_path / "some.png").is_file()
    assert draw_training(
        [line | {"loss_i2t": math.nan, "loss_t2i": math.nan} for line in some], tmp_path / "x.png"
    ).is_file()
    assert draw_training([], tmp_path / "empty.png").is_file()


def test_smoothing_is_a_mean_that_skips_nan():
    values = np.random.default_rng(0).standard_normal(200)
    values[7] = math.nan
    expected = [np.nanmean(values[max(0, i - 2) : i + 3]) for i in range(200)]
    assert _smoothed(values) == pytest.approx(expected, abs=1e-12)
