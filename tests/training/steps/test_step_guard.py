"""A step that is not finite changes nothing; a finite one is what it would be without the guard."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import varalign
from torch import Tensor, nn
from varalign.cli import main
from varalign.options.config import TrainConfig
from varalign.runs.folder import RunFolder
from varalign.schedules import build_schedule
from varalign.schedules.direction_stats import DirectionStats
from varalign.training.steps.step_guard import StepGuard
from varalign.training.trainer import Diverged


class Net(nn.Module):
    """A layer, a batch norm and dropout: parameters, running statistics, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(0.2), nn.Linear(7, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.layers(inputs)
        return output


def steps(fused: bool, clip: float, factors: list[float], *, guarded: bool) -> tuple[dict[str, Tensor], list[bool]]:
    """Train on random numbers; a step's loss is multiplied by its factor. Unguarded, such steps are left out."""
    torch.manual_seed(3)
    net = Net()
    schedule = build_schedule("random")
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True if fused else None)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    guard = StepGuard(net, schedule, optimiser, scaler, clip)
    done = []
    generator = torch.Generator().manual_seed(1)
    for factor in factors:
        inputs = torch.randn(8, 5, generator=generator)
        before = copy.deepcopy(net.state_dict())
        if guarded:
            guard.begin()
            done.append(bool(guard.step(net(inputs).square().mean() * factor)))
            continue
        optimiser.zero_grad()
        loss = net(inputs).square().mean() * factor
        if not torch.isfinite(loss):
            net.load_state_dict(before)
            continue
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimiser.step()
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    for index, values in optimiser.state_dict()["state"].items():
        state |= {f"optimiser.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    return state, done


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("fused", [False, True], ids=["host", "on the device"])
def test_finite_steps_are_bit_identical_and_others_leave_no_trace(fused: bool, clip: float) -> None:
    factors = [1.0, 2.0, float("nan"), 1.0, float("inf"), float("inf"), 0.5]
    plain, _ = steps(fused, clip, factors, guarded=False)
    guarded, done = steps(fused, clip, factors, guarded=True)
    assert done == [True, True, False, True, False, False, True]
    assert plain.keys() == guarded.keys()
    for name, tensor in plain.items():
        assert torch.equal(tensor, guarded[name]), name


def test_a_gradient_that_is_not_finite_counts_where_the_loss_is() -> None:
    weight = nn.Parameter(torch.zeros(2))
    net = nn.Module()
    net.weight = weight
    guard = StepGuard(
        net, build_schedule("fixed"), torch.optim.AdamW([weight]), torch.amp.GradScaler("cpu", enabled=False), 1.0
    )
    guard.begin()
    assert not guard.step(weight.sqrt().sum())  # 0, with an infinite slope
    assert torch.equal(weight, torch.zeros(2))


def test_a_skipped_step_does_not_move_the_schedule() -> None:
    schedule = build_schedule("variance").train()
    weight = nn.Parameter(torch.ones(1))
    net = nn.Module()
    net.weight = weight
    guard = StepGuard(net, schedule, torch.optim.AdamW([weight]), torch.amp.GradScaler("cpu", enabled=False), 0.0)
    ones = torch.ones(4)
    stats = DirectionStats(ones, ones, ones, ones, ones, ones, ones, 4, torch.tensor(1.0))
    for factor, moved in ((float("nan"), False), (1.0, True)):
        guard.begin()
        schedule(stats, stats)
        guard.step(weight.sum() * factor)
        assert bool(schedule.steps) == moved


def config_for(features_file: Path, out: Path, **options: Any) -> TrainConfig:
    small: dict[str, Any] = {
        "start": "random",
        "embedding_dim": 8,
        "hidden_dim": 8,
        "batch_size": 24,
        "device": "cpu",
        "warmup": 0.0,
    }
    return TrainConfig(**small, features=str(features_file), out=str(out), **options)


def poison(monkeypatch: pytest.MonkeyPatch, spoilt: Any) -> None:
    """Make the loss NaN at the guard's steps that `spoilt(number of the call)` says."""
    calls = iter(range(10**6))
    plain = StepGuard.step
    monkeypatch.setattr(
        StepGuard, "step", lambda self, loss: plain(self, loss * (float("nan") if spoilt(next(calls)) else 1.0))
    )


def test_a_single_bad_step_is_skipped_logged_and_passed(
    features_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, lambda call: call == 3)
    varalign.train(config_for(features_file, tmp_path / "run", epochs=2), say=lambda _: None)
    lines = [line for line in RunFolder.open(tmp_path / "run").read_metrics() if line["kind"] == "step"]
    assert [line["step"] for line in lines if line.get("skipped")] == [4]
    assert len(lines) == 10
    assert "step 4: loss or gradient is not finite, the step is skipped" in capsys.readouterr().err


def test_a_streak_leads_back_to_a_checkpoint_and_a_lower_rate(
    features_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda call: 7 <= call < 10)
    config = config_for(features_file, tmp_path / "run", epochs=3, max_nonfinite=3, lr_schedule="constant", lr=0.01)
    varalign.train(config, say=lambda _: None)
    lines = RunFolder.open(tmp_path / "run").read_metrics()
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 16))
    (back,) = [line for line in lines if line["kind"] == "rollback"]
    assert back["step"] == 5 and back["rate"] == pytest.approx(0.1) and back["from_step"] == 10
    assert [line["lr"] for line in lines if line["kind"] == "step"] == pytest.approx([0.01] * 5 + [0.001] * 10)
    assert not any(line.get("skipped") for line in lines)


def test_a_second_streak_stops_and_says_what_to_do(features_file: Path, tmp_path: Path) -> None:
    config = config_for(features_file, tmp_path / "run", epochs=9, lr=1e37, max_nonfinite=4)
    with pytest.raises(Diverged, match=r"steps in a row .* after going back once with a lower rate: lower --lr$"):
        varalign.train(config, say=lambda _: None)


def test_a_run_without_one_sound_step_fails(
    features_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, lambda call: True)
    words = f"train --features {features_file} --start random --batch-size 24 --epochs 1 --device cpu --max-nonfinite 9"
    assert main([*words.split(), "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "none of the 5 steps was made" in error and "lower --lr" in error
    assert main(["train", "--resume", str(tmp_path / "run")]) == 1  # a finished run is asked again


def test_a_run_with_one_sound_step_is_done(
    features_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda call: call != 2)
    varalign.train(config_for(features_file, tmp_path / "run", epochs=1), say=lambda _: None)
