"""Towers split over two gloo processes train as one process does, and their checkpoints are those of one process."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_clip
from forked_ranks import forked
from safetensors.torch import load_file
from torch import nn
from varalign.encoders.sharding import clip_gradients, is_split
from varalign.options.config import TrainConfig
from varalign.training import run as runs
from varalign.training.steps.step import TrainingStep
from varalign.training.steps.step_guard import StepGuard

STOPS_AT = 4


def config(clip: str, images: str) -> TrainConfig:
    """A CLIP's image tower that trains whole and an LSTM with dropout, no batch norm."""
    return TrainConfig(
        data=images,
        image_encoder=f"clip:ViT-tiny@{clip}",
        freeze="none",
        shard=True,
        epochs=2,
        batch_size=20,
        lr=1e-4,
        tower_lr=1e-4,
        clip_grad=0.05,
        seed=1,
        precision="fp32",
        hub_correction="off",
        checkpoint_every=1,
        device="cpu",
    ).validate()


def run(given: TrainConfig, out: Path) -> None:
    runs.train(replace(given, out=str(out)), progress=False)


def stopping(given: TrainConfig, out: Path) -> None:
    """All processes end when they are about to make a step, after a checkpoint of the one before."""
    plain = TrainingStep.__call__

    def ending(self: TrainingStep, inputs: Any) -> Any:
        if self.state.position.step == STOPS_AT:
            raise KeyboardInterrupt
        return plain(self, inputs)

    TrainingStep.__call__ = ending  # type: ignore[method-assign]
    run(given, out)


def skipping(given: TrainConfig, out: Path) -> None:
    """The second step's gradient is not finite: it changes neither weights nor optimiser."""
    plain, made = StepGuard._make, []

    def state(self: StepGuard) -> list[torch.Tensor]:
        tensors = [*self.model.parameters(), *(t for some in self.optimiser.state.values() for t in some.values())]
        return [(tensor.to_local() if is_split(tensor) else tensor).detach().clone() for tensor in tensors]

    def broken(self: StepGuard, value: torch.Tensor) -> torch.Tensor:
        made.append(value)
        if len(made) == 1:
            return plain(self, value)
        if torch.distributed.get_rank() == 1:
            parameter = next(p for p in self.model.image_encoder.parameters() if p.to_local().numel())  # type: ignore[union-attr,attr-defined]
            parameter.grad.to_local().fill_(torch.nan)  # type: ignore[union-attr,attr-defined]
        before = state(self)
        assert not plain(self, value)
        assert all(torch.equal(a, b) for a, b in zip(before, state(self), strict=True)) and len(before) > 100
        raise KeyboardInterrupt

    StepGuard._make = broken  # type: ignore[method-assign]
    run(given, out)


def resuming(given: TrainConfig, out: Path) -> None:
    runs.resume(out, {}, progress=False)


def case(size: int, act: Callable[..., None], *given: Any) -> None:
    """Run a case on so many processes; what one of them raised lies beside the run folder, as `<run>.<rank>`."""

    def work(rank: int) -> None:
        try:
            act(*given)
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                import traceback

                Path(f"{given[1]}.{rank}").write_text(traceback.format_exc())

    forked(size, work, 240)


def run_cases(folder: Path, images: str, which: str) -> None:
    for name in ("torch._dynamo", "torch.distributed.fsdp", "open_clip"):  # once for all processes
        importlib.import_module(name)
    runs.write_run_report = lambda *_, **__: None
    given = config(str(folder / "clip"), images)
    if which == "long":
        case(2, run, replace(given, accumulate=2, gradient_checkpointing=True), folder / "parts")
        case(1, stopping, given, folder / "grows")
        case(2, resuming, given, folder / "grows")
        return
    write_clip(folder / "clip")
    case(1, run, given, folder / "one")
    case(2, skipping, given, folder / "skips")
    case(2, stopping, given, folder / "shrinks")
    case(1, resuming, given, folder / "shrinks")


def processes(folder: Path, images: Path, which: str) -> Path:
    """All cases, from one clean process that forks the ranks (forking the test's own threads may hang)."""
    places = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder), str(images), which]
    found = subprocess.run(command, env={**os.environ, **places}, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    for file in folder.glob("*.[01]"):
        raise AssertionError(file.read_text())
    return folder


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """One process beside two that end, and one that goes on."""
    return processes(tmp_path_factory.mktemp("shards"), image_folder, "quick")


@pytest.fixture(scope="module")
def more(quick: Path, image_folder: Path) -> Path:
    """Further cases beside them."""
    return processes(quick, image_folder, "long")


@pytest.mark.parametrize(
    ("name", "fixture"),
    [
        ("shrinks", "quick"),
        pytest.param("parts", "more", marks=pytest.mark.long),
        pytest.param("grows", "more", marks=pytest.mark.long),
    ],
)
def test_split_towers_train_as_whole_ones(request: pytest.FixtureRequest, name: str, fixture: str) -> None:
    folder: Path = request.getfixturevalue(fixture)
    one, other = (
        [json.loads(line) for line in (folder / place / "metrics.jsonl").read_text().splitlines()]
        for place in ("one", name)
    )
    assert len(one) == len(other) == 9
    for expected, found in zip(one, other, strict=True):
        for figure in ("kind", "step", "loss", "w_i2t", "logit_scale", "i2t_recall@5", "t2i_recall@5"):
            assert found.get(figure) == pytest.approx(expected.get(figure), abs=1e-5)
    start, last, ours = (
        load_file(folder / place / "tensors.safetensors")
        for place in ("one/checkpoints/step-5", "one/checkpoints/step-6", f"{name}/checkpoints/step-6")
    )
    assert ours.keys() == last.keys()
    for key, tensor in last.items():
        if key.startswith("model."):
            torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    moved = {key for key in start if key.startswith("model.") and not torch.equal(start[key], last[key])}
    assert any("image_encoder.visual.transformer" in key for key in moved) and any("lstm" in key for key in moved)


def test_a_step_that_is_not_finite_on_one_process_is_skipped_on_all(quick: Path) -> None:
    """What `skipping` asserts has not failed, and both processes came to its end."""
    assert (quick / "skips" / "checkpoints" / "step-1").is_dir()
    assert not (quick / "skips" / "checkpoints" / "step-2").exists()


def test_whole_models_are_clipped_by_torch() -> None:
    torch.manual_seed(0)
    nets = [nn.Linear(4, 3), nn.Linear(4, 3)]
    for net in nets:
        for number, parameter in enumerate(net.parameters(), 1):
            parameter.grad = torch.full_like(parameter, 0.5 * number)
    norm = clip_gradients(nets[0], 1.0)
    assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(nets[1].parameters(), 1.0))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))  # type: ignore[arg-type]


if __name__ == "__main__":
    run_cases(Path(sys.argv[1]), *sys.argv[2:])
