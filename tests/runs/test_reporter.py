"""What `--tensorboard` writes, and the error where its package is missing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import varalign
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.runs.reporter import check_tensorboard


def test_tensorboard_shows_the_lines_of_the_metrics(features_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'varalign[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {"features": str(features_file), "epochs": 2, "batch_size": 32, "start": "random", "device": "cpu"}
    varalign.train(TrainConfig(out=str(tmp_path / "run"), tensorboard=True, **options))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for kind, prefix, names in (
        ("step", "train", ("loss", "loss_i2t", "loss_t2i", "w_i2t", "w_t2i", "logit_scale", "lr")),
        ("eval", "dev", ("loss", "i2t_recall@1", "t2i_recall@10", "cosine_similarity")),
    ):
        wanted = [line for line in lines if line["kind"] == kind and line.get("split", "dev") == "dev"]
        assert len(wanted) >= 2
        for name in names:
            shown = events.Scalars(f"{prefix}/{name}")
            assert [event.step for event in shown] == [line["step"] for line in wanted]
            np.testing.assert_array_equal([event.value for event in shown], np.float32([line[name] for line in wanted]))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_tensorboard(TrainConfig())
    with pytest.raises(ConfigError, match=r"pip install 'varalign\[tensorboard\]'"):
        check_tensorboard(TrainConfig(tensorboard=True))
