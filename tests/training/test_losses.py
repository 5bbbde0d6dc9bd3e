"""`--loss`: runs that train under other people's losses, resume bit for bit, and refuse what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import varalign
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.runs.checkpoint import load_checkpoint
from varalign.training import run as runs

SMALL: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 40,
    "embedding_dim": 8,
    "hidden_dim": 8,
    "start": "random",
    "schedule": "fixed",
    "captions_per_step": 1,
}


@pytest.mark.parametrize("loss", ["siglip", "isogclr", "adversarial-inputs"])
def test_a_killed_run_ends_like_one_that_was_not(
    features_file: Path, tmp_path: Path, killed_after: Any, loss: str
) -> None:
    options = SMALL | {"features": str(features_file), "loss": loss}
    whole = varalign.train(TrainConfig(**options, out=str(tmp_path / "whole")), say=print)
    with killed_after(4):  # in the second epoch of three steps each
        varalign.train(TrainConfig(**options, out=str(tmp_path / "cut")), say=print)
    again = runs.resume(tmp_path / "cut", {}, say=print)
    one, other = (load_checkpoint(path / "checkpoints" / "last").tensors for path in (whole.run, again.run))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    if loss == "siglip":
        assert float(one["loss.bias"]) != -10.0
    if loss == "isogclr":
        assert one["loss.image_temperature"].unique().numel() > 10


def test_pixels_are_attacked_where_the_images_are_live(image_folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        data=str(image_folder),
        out=str(tmp_path / "run"),
        image_size=32,
        epochs=1,
        batch_size=16,
        embedding_dim=8,
        loss="adversarial-inputs",
        loss_strength=0.02,
        attack_steps=2,
        schedule="variance",
    )
    lines = [line for line in varalign.train(config, say=print).aligner.run.read_metrics() if line["kind"] == "step"]
    assert lines and all(line["loss"] > 0 for line in lines)


@pytest.mark.parametrize(
    "options,message",
    [
        (
            {"loss": "siglip", "schedule": "variance"},
            "no two directions for --schedule variance to weight: pass --schedule fixed",
        ),
        ({"loss": "gce", "duplicates": "ignore"}, "--duplicates ignore belongs to --loss clip"),
        ({"loss_strength": 0.5}, "--loss-strength belongs to a --loss other than clip"),
        ({"loss": "gce", "attack_steps": 3}, "--attack-steps belongs to"),
        ({"loss": "gce", "loss_strength": 2.0}, "--loss-strength 2: loss gce takes a strength above 0 to 1"),
        ({"loss": "cyclop"}, "did you mean 'cyclip'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    features_file: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    config = TrainConfig(**{**SMALL, "features": str(features_file), "out": str(tmp_path / "run"), **options})
    with pytest.raises(ConfigError, match=message):
        varalign.train(config, say=print)
    assert not (tmp_path / "run").exists()
