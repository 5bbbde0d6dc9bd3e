"""A run from tar shards: to the bit the run from the same files, whether it was killed or not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from varalign.cli import main
from varalign.options.config import TrainConfig
from varalign.runs.checkpoint import load_checkpoint
from varalign.runs.folder import RunFolder
from varalign.training import run as runs


def quiet(_: str) -> None:
    pass


def outcome(run: Path) -> tuple[list[float], dict[str, Any]]:
    folder = RunFolder.open(run)
    losses = [line["loss"] for line in folder.read_metrics() if line["kind"] == "step"]
    return losses, load_checkpoint(folder.checkpoints / "last").tensors


def test_a_run_from_shards_is_the_run_from_files(
    image_folder: Path, tmp_path: Path, killed_after: Callable[[int], AbstractContextManager[None]]
) -> None:
    """The same losses, weights and moments, after a kill in the middle of a shard too."""
    shards = ["data", "convert", str(image_folder), "--to", "webdataset", "--out", str(tmp_path / "shards")]
    assert main([*shards, "--shard-size", "9"]) == 0
    options: dict[str, Any] = {"image_encoder": "timm:test_resnet", "image_size": 32, "embedding_dim": 16}
    options |= {"hidden_dim": 16, "batch_size": 13, "epochs": 1, "device": "cpu", "threads": 1, "start": "random"}
    options |= {"cache": str(tmp_path / "cache"), "checkpoint_every": 2}
    runs.train(TrainConfig(**options, data=str(image_folder), out=str(tmp_path / "files")), say=quiet)
    with killed_after(3):
        runs.train(
            TrainConfig(**options, data=str(tmp_path / "shards" / "*.tar"), out=str(tmp_path / "run")), say=quiet
        )
    runs.resume(tmp_path / "run", {"threads": 2}, say=quiet)
    (losses, tensors), (wanted, theirs) = outcome(tmp_path / "run"), outcome(tmp_path / "files")
    assert losses == wanted and len(losses) == 4
    assert tensors.keys() == theirs.keys() and all(tensor.equal(theirs[name]) for name, tensor in tensors.items())
