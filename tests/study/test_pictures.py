"""Pictures of a study: what is a line of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from varalign.study.inference import METRICS
from varalign.study.pictures import draw_study


def test_every_setting_of_a_further_axis_has_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, out, **_: drawn.append(figure))
    numbers = {name: 0.1 for metric in METRICS for name in (metric, f"{metric}_half_width")}
    summary = [
        {"fraction": fraction, "noise": "none", "loss": loss, "schedule": "fixed", "seeds": 2, **numbers}
        for fraction in (1.0, 10.0)
        for loss in ("clip", "dcl")
    ]
    axes = {"fraction": 1.0, "noise": "none", "loss": "clip", "schedule": "fixed", "seed": 0}
    files = draw_study(tmp_path, summary, [(axes, {"w_i2t": [0.5]})])
    assert [file.name for file in files] == ["weights.png", "recall_by_fraction.png"]
    (panel,) = drawn[1].axes
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["fixed clip", "fixed dcl"]
    assert [len(container.lines[0].get_xdata()) for container in panel.containers] == [2, 2]


def test_lines_go_from_left_to_right_and_a_kind_of_noise_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, out, **_: drawn.append(figure))
    noises = ("none", "swap-images=0.4", "swap-images=0.2", "occlude=0.2")
    numbers = {name: 0.1 for metric in METRICS for name in (metric, f"{metric}_half_width")}
    summary = [
        {"fraction": fraction, "noise": noise, "schedule": "fixed", "seeds": 2, **numbers}
        for fraction in (10.0, 1.0)
        for noise in noises
    ]
    runs = [
        ({"fraction": fraction, "noise": "none", "start": start, "schedule": "fixed", "seed": seed}, {"w_i2t": [0.5]})
        for fraction, seed in ((10.0, 0), (1.0, 5))
        for start in ("random", "closed-form")
    ]
    draw_study(tmp_path, summary, runs)
    weights, by_fraction, by_noise = drawn
    assert all(len(panel.lines) == 3 for panel in weights.axes)  # the two starts and the middle, at each its own seed
    for panel in by_fraction.axes:
        assert all(np.all(np.diff(container.lines[0].get_xdata()) > 0) for container in panel.containers)
    lines = {c.get_label(): np.round(c.lines[0].get_xdata(), 1).tolist() for c in by_noise.axes[0].containers}
    assert lines == {"fixed swap-images": [0.0, 0.2, 0.4], "fixed occlude": [0.0, 0.2]}
