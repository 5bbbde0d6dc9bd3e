"""Runs of several gloo processes on the CPU: the same numbers as one process, and an end in order when one dies."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_ranks import forked
from safetensors.torch import load_file
from varalign.options.config import TrainConfig
from varalign.runs.folder import RunFolder
from varalign.training.run import resume, train
from varalign.training.steps.step import TrainingStep

DIES_AT = 5


def features(path: str) -> TrainConfig:
    """Members with dropout and noise, on features."""
    return TrainConfig(
        features=path,
        voices="closed-form,members",
        settings="dev",
        members=2,
        hidden_dim=16,
        dropout=0.3,
        input_noise=0.2,
        epochs=3,
        batch_size=32,
        seed=1,
        precision="fp32",
        hub_correction="off",
    ).validate()


def images(path: str) -> TrainConfig:
    """ResNet-18 with batch norm and an LSTM with dropout; captions are shared by images.

    The rate is low: AdamW's first steps go by the sign of a gradient, and so blow up what float32 rounds.
    """
    given = {"image_size": 32, "epochs": 2, "batch_size": 20, "lr": 1e-6, "seed": 1, "average_weights": 0.5}
    return TrainConfig(data=path, precision="fp32", hub_correction="off", **given).validate()  # type: ignore[arg-type]


def run(config: TrainConfig, out: Path) -> None:
    train(replace(config, out=str(out), cache=str(out.parent / f"cache-{out.name}")), progress=False)


def dying(config: TrainConfig, out: Path) -> None:
    """Rank 1 is killed within its sixth step, after the batch's rows were gathered."""
    plain = TrainingStep._image_pass

    def passing(self: TrainingStep, *given: Any) -> Any:
        if os.environ.get("RANK") == "1" and self.state.position.step == DIES_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, *given)

    TrainingStep._image_pass = passing  # type: ignore[method-assign]
    run(config, out)


def told(config: TrainConfig, out: Path) -> None:
    """Rank 1 alone gets SIGTERM before its sixth step."""
    plain = TrainingStep.__call__

    def signalled(self: TrainingStep, inputs: Any) -> Any:
        if os.environ.get("RANK") == "1" and self.state.position.step == DIES_AT:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, inputs)

    TrainingStep.__call__ = signalled  # type: ignore[method-assign]
    run(config, out)


def case(size: int, act: Callable[..., None], *given: Any) -> None:
    """Run a case on so many processes; what each of them raised lies beside the run folder, as `<run>.<rank>`."""

    def work(rank: int) -> None:
        said = ""
        try:
            act(*given)
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        Path(f"{given[1]}.{rank}").write_text(said)

    forked(size, work, 60)


def run_cases(folder: Path, features_path: str, images_path: str) -> None:
    for name in ("matplotlib.pyplot", "torch._dynamo", "torch.nn.parallel"):  # once, instead of in every process
        importlib.import_module(name)
    on_features, on_images = features(features_path), images(images_path)
    for size in (1, 2):
        case(size, run, on_features, folder / f"features-{size}")
        case(size, run, on_images, folder / f"images-{size}")
    case(2, run, replace(on_images, accumulate=2), folder / "accumulated-2")
    case(2, dying, on_features, folder / "killed")
    case(2, told, on_features, folder / "told")
    case(3, run, replace(on_features, batch_size=2), folder / "small")
    case(2, run, replace(on_features, loss="siglip", schedule="fixed"), folder / "siglip")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, features_file: Path, image_folder: Path) -> Path:
    """All cases, from one clean process that forks the ranks (forking the test's own threads may hang)."""
    path = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(path), str(features_file), str(image_folder)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    return path


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_alike(one: Path, other: Path, tolerance: float) -> None:
    """The same steps and evaluations, and the same weights in the end."""
    assert len(lines(one)) == len(lines(other)) > 4
    for expected, found in zip(lines(one), lines(other), strict=True):
        for name, value in expected.items():
            if isinstance(value, float) and name not in ("seconds", "data_wait"):
                assert found[name] == pytest.approx(value, abs=tolerance), (name, expected["step"])
            elif not isinstance(value, (float, dict)):
                assert found[name] == value
    weights = [load_file(run / "checkpoints" / "last" / "tensors.safetensors") for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        if name.startswith(("model.", "schedule.", "pairs.")):
            torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=tolerance, msg=lambda m, n=name: n + m)


def test_two_ranks_train_heads_as_one_process_does(folder: Path) -> None:
    assert_alike(folder / "features-1", folder / "features-2", 1e-5)


def test_two_ranks_train_encoders_as_one_process_does(folder: Path) -> None:
    assert_alike(folder / "images-1", folder / "images-2", 1e-4)


def test_parts_of_a_step_on_two_ranks_see_the_same_batches(folder: Path) -> None:
    """Batch norm takes its statistics from a part, so the losses differ; rates, captions and lengths do not."""
    whole, parts = lines(folder / "images-2"), lines(folder / "accumulated-2")
    assert [line["step"] for line in whole] == [line["step"] for line in parts]
    losses = [(a["loss"], b["loss"]) for a, b in zip(whole, parts, strict=True)]
    assert all(b == pytest.approx(a, abs=1.0) for a, b in losses) and losses[1][0] != losses[1][1]


def test_one_rank_that_is_killed_ends_all_with_a_checkpoint(folder: Path, features_file: Path) -> None:
    said = (folder / "killed.0").read_text()
    assert "another process of this run has ended" in said and f"checkpoint of step {DIES_AT} is written" in said
    resume(folder / "killed", {"device": "cpu"}, progress=False)
    assert_alike(folder / "features-1", folder / "killed", 1e-5)


def test_a_signal_to_one_rank_stops_all_after_the_same_step(folder: Path) -> None:
    for rank in (0, 1):
        assert f"stopped after step {DIES_AT + 1}" in (folder / f"told.{rank}").read_text()
    steps = [line["step"] for line in lines(folder / "told") if line["kind"] == "step"]
    assert steps == list(range(1, DIES_AT + 2))
    assert RunFolder.open(folder / "told").config()["machine"]["processes"] == 2


def test_what_cannot_be_split_is_refused_on_every_rank(folder: Path) -> None:
    for rank in (0, 1, 2):
        assert "a batch of 2 images cannot be split over 3 processes" in (folder / f"small.{rank}").read_text()
    assert not (folder / "small").exists()
    for rank in (0, 1):
        assert "--loss siglip runs in one process" in (folder / f"siglip.{rank}").read_text()


if __name__ == "__main__":
    run_cases(Path(sys.argv[1]), *sys.argv[2:])
