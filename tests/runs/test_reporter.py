"""What the trackers of `--report-to` are told, and the error where a package is missing."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import varalign
from varalign.options.config import TrainConfig
from varalign.options.declaration import REPORTERS, ConfigError
from varalign.runs.reporter import _OPEN, ProgressReporter, check_reporters


def test_tensorboard_shows_the_lines_of_the_metrics(features_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install '.[tensorboard]'")
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


def test_each_tracker_is_told_what_the_metrics_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stand-ins record the calls; the real libraries take the same ones."""
    told: list[tuple[object, ...]] = []

    def note(*what: object) -> Callable[..., object]:
        def call(*given: object, **named: object) -> object:
            told.append((*what, *given, named))
            print("a banner")
            return run

        return call

    run = SimpleNamespace(
        define_metric=note("wandb", "define"),
        log=note("log"),
        finish=note("finish"),
        info=SimpleNamespace(run_id="r1"),
    )
    calls = ("set_experiment", "start_run", "log_params", "log_metrics", "flush_async_logging", "end_run")
    for name, names in (("wandb", ("init",)), ("trackio", ("init", "finish")), ("mlflow", calls)):
        stand_in = ModuleType(name)
        for call in names:
            setattr(stand_in, call, note(name, call))
        monkeypatch.setitem(sys.modules, name, stand_in)
    config = TrainConfig(report_to="wandb, trackio,mlflow", epochs=1)
    reporter = ProgressReporter(config, steps_per_epoch=1, first_step=0, run=tmp_path / "night", say=lambda _: None)
    names = ("loss", "loss_i2t", "loss_t2i", "w_i2t", "w_t2i", "logit_scale", "lr")
    reporter.evaluation(
        {"kind": "eval", "split": "dev", "step": 3, "epoch": 1, "loss": 0.5, "i2t_recall@1": 0.25, "images": 7}
    )
    reporter.step({**dict.fromkeys(names, 2.0), "step": 3, "seconds": 1.0, "data_wait": 0.0}, 16)
    reporter.close()
    assert capsys.readouterr().out == "", "standard output is for results"
    dev, step = {"dev/loss": 0.5, "dev/i2t_recall@1": 0.25}, {f"train/{name}": 2.0 for name in names}
    options = config.as_dict()
    at = {"step": 3, "run_id": "r1", "synchronous": False}
    assert told == [
        ("wandb", "init", {"project": "varalign", "name": "night", "dir": str(tmp_path / "night"), "config": options}),
        ("wandb", "define", "*", {"step_metric": "step"}),
        ("trackio", "init", {"project": "varalign", "name": "night", "config": options, "embed": False}),
        ("mlflow", "set_experiment", "varalign", {}),
        ("mlflow", "start_run", {"run_name": "night"}),
        ("mlflow", "log_params", options, {}),
        ("log", {**dev, "step": 3}, {}),
        ("log", dev, {"step": 3}),
        ("mlflow", "log_metrics", {"dev/loss": 0.5, "dev/i2t_recall_at_1": 0.25}, at),
        ("log", {**step, "step": 3}, {}),
        ("log", step, {"step": 3}),
        ("mlflow", "log_metrics", step, at),
        ("finish", {}),
        ("trackio", "finish", {}),
        ("mlflow", "flush_async_logging", {}),
        ("mlflow", "end_run", {}),
    ]


def test_a_tracker_that_cannot_be_opened_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("\x1b[31mno API key\x1b[0m")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(ConfigError, match="--report-to wandb could not be opened: no API key"):
        ProgressReporter(TrainConfig(report_to="wandb"), steps_per_epoch=1, first_step=0, run=tmp_path)


def test_every_reporter_has_an_entry_and_an_extra() -> None:
    pyproject = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert tuple(_OPEN) == REPORTERS
    assert all(re.search(rf'^{name} = \["{name}>=', pyproject, re.M) for name in REPORTERS)


def test_tensorboard_is_the_short_form() -> None:
    assert TrainConfig(tensorboard=True, report_to="wandb").reporters == ("tensorboard", "wandb")
    assert TrainConfig(tensorboard=True, report_to="tensorboard").reporters == ("tensorboard",)
    with pytest.raises(ConfigError, match="'wandbb' is not known: it takes tensorboard, .*; did you mean 'wandb'"):
        TrainConfig(report_to="tensorboard,wandbb").validate()


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_reporters(TrainConfig())
    with pytest.raises(ConfigError, match=r"--report-to tensorboard needs .* pip install '\.\[tensorboard\]'"):
        check_reporters(TrainConfig(tensorboard=True))
    with pytest.raises(ConfigError, match=r"pip install '\.\[mlflow\]'"):
        check_reporters(TrainConfig(report_to="mlflow"))
