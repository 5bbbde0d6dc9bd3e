"""Signals: a run ends in order, says how to go on, and ends later as if it had not been stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import varalign
from varalign.options.config import TrainConfig
from varalign.runs.checkpoint import load_checkpoint, newest_checkpoint
from varalign.runs.folder import RunFolder
from varalign.runs.signals import Interrupted, StopSignals
from varalign.training import run as runs
from varalign.training import state
from varalign.training import trainer as trainers
from varalign.training.steps.step import TrainingStep


def quiet(_: str) -> None:
    pass


def config_for(features_file: Path, out: Path) -> TrainConfig:
    small: dict[str, Any] = {"embedding_dim": 8, "hidden_dim": 8, "batch_size": 24, "device": "cpu", "dropout": 0.3}
    return TrainConfig(**small, features=str(features_file), out=str(out), epochs=3)


def kill_in(target: Any, name: str, call: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send the process a signal at the start of the given call of `target.name`, once."""
    plain: Callable[..., Any] = getattr(target, name)
    calls = iter(range(10**6))

    def killing(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return plain(*arguments, **options)

    monkeypatch.setattr(target, name, killing)


@pytest.fixture(scope="module")
def whole(features_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("whole") / "run"
    varalign.train(config_for(features_file, out), say=quiet)
    return RunFolder.open(out)


PLACES = {
    "first step": (TrainingStep, "__call__", 0, 1),
    "a step": (TrainingStep, "__call__", 6, 7),
    "last step of an epoch": (TrainingStep, "__call__", 9, 10),
    "evaluation before training": (trainers, "evaluate", 0, 0),
    "evaluation": (trainers, "evaluate", 2, 10),
    "saving": (state.checkpoints, "save_checkpoint", 0, 0),
}


@pytest.mark.parametrize(
    ("place", "number"), list(zip(PLACES, [signal.SIGINT, signal.SIGTERM] * 3, strict=True)), ids=list(PLACES)
)
def test_the_checkpoint_is_of_this_moment_and_the_end_the_same(
    place: str, number: int, features_file: Path, whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, name, call, step = PLACES[place]
    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        kill_in(target, name, call, number, patched)
        with pytest.raises(Interrupted, match=r"checkpoint is written; go on with `varalign train --resume") as stop:
            varalign.train(config_for(features_file, tmp_path / "run"), say=quiet)
    assert stop.value.exit_code == 128 + number and signal.getsignal(number) is before
    found = newest_checkpoint(tmp_path / "run" / "checkpoints", quiet)
    assert found is not None and found.state["step"] == step
    torch.rand(5)  # another process has another random state
    runs.resume(tmp_path / "run", {}, say=quiet)
    ours = RunFolder.open(tmp_path / "run")

    def lines(run: RunFolder) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if k not in {"seconds", "data_wait"}} for line in run.read_metrics()]

    assert lines(ours) == lines(whole)
    a, b = (load_checkpoint(run.checkpoints / "last") for run in (ours, whole))
    assert all(torch.equal(tensor, b.tensors[name]) for name, tensor in a.tensors.items())
    assert a.state["progress"] == b.state["progress"]


def test_before_training_there_is_nothing_to_save_and_it_says_so(
    features_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_in(runs, "open_data", 0, signal.SIGTERM, monkeypatch)
    with pytest.raises(Interrupted, match="SIGTERM: stopped before training began, so there is nothing to save"):
        varalign.train(config_for(features_file, tmp_path / "run"), say=quiet)
    assert not (tmp_path / "run").exists()


def test_after_training_the_last_evaluation_is_made_on_resuming(
    features_file: Path, whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill_in(runs.Aligner, "evaluate", 0, signal.SIGINT, patched)
        with pytest.raises(Interrupted, match="training is done and saved"):
            varalign.train(config_for(features_file, tmp_path / "run"), say=quiet)
    assert runs.resume(tmp_path / "run", {}, say=quiet).epochs == 3
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_result_is_shown_before_the_page_is_drawn(
    features_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, shown = tmp_path / "run" / "report.html", []

    def show(result: runs.TrainResult) -> None:
        shown.append((result.table().count("chance"), page.exists()))

    kill_in(runs, "write_run_report", 0, signal.SIGTERM, monkeypatch)
    with pytest.raises(Interrupted, match="training is done and saved, the run's page is not; .* --resume .* makes it"):
        varalign.train(config_for(features_file, tmp_path / "run"), say=quiet, show=show)
    assert shown == [(1, False)] and not page.exists()


def test_a_noted_signal_raises_where_it_may() -> None:
    with StopSignals() as stop, stop.held():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        with pytest.raises(Interrupted), stop.at_once():
            raise AssertionError("not reached")
    with StopSignals() as stop, pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_signal_ends_the_process_at_once() -> None:
    code = (
        "import os, signal, threading\n"
        "from varalign.runs.signals import StopSignals\n"
        "threading.Thread(target=threading.Event().wait).start()\n"  # not a daemon: an orderly end would wait for it
        "with StopSignals() as stop, stop.held():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('not here')\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == 143 and found.stdout == "still here\n"
    assert "once more to leave at once" in found.stderr and "SIGTERM again" in found.stderr
