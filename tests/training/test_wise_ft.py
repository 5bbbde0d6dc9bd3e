"""Weights between the start and the end of a fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import varalign
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.runs.checkpoint import load_checkpoint
from varalign.training import run as runs
from varalign.training import wise_ft
from varalign.training.wise_ft import interpolated

ClipFolder = Callable[..., tuple[Path, Any]]


def test_between_two_states() -> None:
    start = {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor(3)}
    end = {"w": torch.tensor([1.0, 4.0]), "n": torch.tensor(7)}
    assert interpolated(start, end, 0.25)["w"].tolist() == [0.25, 2.5]
    assert interpolated(start, end, 0.25)["n"].item() == 7
    assert torch.equal(interpolated(start, end, 1.0)["w"], end["w"])


def test_the_best_share_on_dev_becomes_the_best_checkpoint(
    clip_folder: ClipFolder, bert_folder: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, _ = clip_folder()
    config = TrainConfig(
        data=str(image_folder),
        image_encoder=f"clip:ViT-tiny@{clip}",
        text_encoder=f"bert:{bert_folder}",
        out=str(tmp_path / "run"),
        cache=str(tmp_path / "cache"),
        epochs=2,
        batch_size=16,
        unfreeze=1,
        tower_lr=1e-3,
        keep=1,
        device="cpu",
        wise_ft=True,
    )
    # What dev says is made up, so that 0.3 of the way is best whatever the tiny towers do.
    tried: list[float] = []

    def found(*_: Any, **__: Any) -> dict[str, float]:
        tried.append(wise_ft.SHARES[len(tried)])
        return {f"{d}_recall@{k}": 2.0 - abs(tried[-1] - 0.3) for d in ("i2t", "t2i") for k in (1, 5, 10)}

    monkeypatch.setattr(wise_ft, "evaluate", found)
    said: list[str] = []
    result = varalign.train(config, say=said.append)
    assert tried == list(wise_ft.SHARES) and any("wise-ft: 0.3 of the way" in line for line in said)
    folder = tmp_path / "run" / "checkpoints"
    best = load_checkpoint(folder / "best")
    assert best.state["wise_ft"] == 0.3 and result.best_epoch == best.state["progress"]["best_epoch"]
    start = load_checkpoint(folder / "step-0").part("model")
    moved = [name for name in start if not torch.equal(best.part("model")[name], start[name])]
    name = next(name for name in moved if name.startswith("image_encoder"))
    loaded = varalign.load(tmp_path / "run", device="cpu")
    assert torch.equal(loaded.model.state_dict()[name], best.part("model")[name])
    assert loaded.evaluate("test") == result.test
    assert runs.resume(tmp_path / "run", {}, say=said.append).test == result.test  # not gone a part of it again
    assert len(tried) == len(wise_ft.SHARES)


def test_it_wants_a_pretrained_tower_that_trains() -> None:
    for options in ({}, {"use_pretrained": True}, {"features": "f"}):
        with pytest.raises(ConfigError, match="--wise-ft averages trained with pretrained weights"):
            TrainConfig(wise_ft=True, **options).validate()  # type: ignore[arg-type]
    TrainConfig(wise_ft=True, use_pretrained=True, unfreeze=2).validate()
    TrainConfig(wise_ft=True, use_pretrained=True, freeze="image").validate()
