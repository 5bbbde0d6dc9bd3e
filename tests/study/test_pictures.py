"""Pictures of a study: what is a line of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from varalign.study.inference import METRICS
from varalign.study.pictures import draw_study


def test_every_setting_of_a_further_axis_has_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, out: drawn.append(figure))
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
