"""Averaged weights: their values, step by step, and what a run stores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import varalign
from torch import nn
from varalign.options.config import TrainConfig
from varalign.runs.checkpoint import load_checkpoint
from varalign.training.averaged import AveragedWeights

MADE, SKIPPED = torch.tensor(True), torch.tensor(False)
LSTM = "text_encoder.lstm.weight_hh_l0"


def set_to(layer: nn.Linear, value: float) -> None:
    with torch.no_grad():
        layer.weight.fill_(value)


def test_the_average_is_that_of_the_formula_and_a_skipped_step_does_not_count() -> None:
    layer = nn.Linear(1, 1, bias=False)
    set_to(layer, 8.0)
    averaged = AveragedWeights(layer, 0.15)
    set_to(layer, 18.0)
    averaged.update(SKIPPED)
    averaged.update(MADE)  # keeps 1/10: 0.8 + 16.2
    set_to(layer, 37.0)
    averaged.update(MADE)  # keeps 0.15, less than 2/11: 2.55 + 31.45
    with averaged.shown():
        assert layer.weight.item() == pytest.approx(34.0)
    assert layer.weight.item() == 37.0


def test_frozen_weights_are_left_out_and_the_statistics_of_batch_norms_are_averaged() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].requires_grad_(False)
    averaged = AveragedWeights(model, 0.5)
    assert set(averaged.state()) == {
        "steps", "weights.1.weight", "weights.1.bias", "weights.1.running_mean", "weights.1.running_var"
    }  # fmt: skip
    model(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    moved = model[1].running_mean.clone()
    averaged.update(MADE)
    with averaged.shown():
        torch.testing.assert_close(model[1].running_mean, 0.9 * moved)


def test_a_state_is_restored_with_both_sets_of_weights() -> None:
    layer, other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    averaged = AveragedWeights(layer, 0.9)
    for value in (1.0, 2.0, 4.0):
        set_to(layer, value)
        averaged.update(MADE)
    with averaged.shown():
        stored = layer.weight.item()
    again = AveragedWeights(other, 0.9)
    set_to(other, stored)  # as a checkpoint's model is
    again.load_state({name: value.clone() for name, value in averaged.state().items()})
    set_to(layer, 3.0), set_to(other, 3.0)
    for one in (averaged, again):
        one.update(MADE)
    with averaged.shown(), again.shown():
        assert layer.weight.item() == other.weight.item() != stored


def test_a_runs_figures_are_those_of_the_averages(image_folder: Path, tmp_path: Path) -> None:
    given = {"image_encoder": "timm:test_resnet", "image_size": 32, "embedding_dim": 16, "hidden_dim": 16}
    told = {"average_weights": 0.9, "epochs": 2, "batch_size": 16, "device": "cpu", "threads": 1}
    config = TrainConfig(data=str(image_folder), out=str(tmp_path / "run"), cache=str(tmp_path), **given, **told)  # type: ignore[arg-type]
    result = varalign.train(config, say=lambda _: None)
    last = load_checkpoint(tmp_path / "run" / "checkpoints" / "last")
    average, live = last.part("model"), last.part("averaged")
    assert live["steps"] == last.step > 0
    assert not torch.equal(average[LSTM], live[f"weights.{LSTM}"])
    assert varalign.load(tmp_path / "run", device="cpu").evaluate("test") == result.test
