"""Small trained runs to export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import varalign
from checkpoints import write_bert, write_clip
from exported import Train
from varalign.options.config import TrainConfig


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Specs of small frozen encoders: `clip` and `bert`."""
    folder = tmp_path_factory.mktemp("towers")
    write_clip(folder / "clip")
    (folder / "bert").mkdir()
    write_bert(folder / "bert")
    return {"clip": f"clip:ViT-tiny@{folder / 'clip'}", "bert": f"bert:{folder / 'bert'}"}


@pytest.fixture(scope="session")
def trained(image_folder: Path, towers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains a run on the squares, once for the same options; the text encoder is `bert` unless `clip` is named."""
    cache, made = tmp_path_factory.mktemp("cache"), dict[str, Path]()

    def train(text: str = "bert", **options: Any) -> Path:
        key = f"{text} {sorted(options.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("runs") / "run"
            usual: dict[str, Any] = {"data": str(image_folder), "out": str(made[key]), "cache": str(cache)}
            usual |= {"image_encoder": towers["clip"], "text_encoder": towers[text], "device": "cpu", "threads": 1}
            usual |= {"batch_size": 16, "voices": "closed-form", "hub_correction": "off"}
            varalign.train(TrainConfig(**{**usual, **options}), say=lambda _: None)
        return made[key]

    return train


@pytest.fixture(scope="session")
def voices(trained: Train) -> Path:
    """A run of all voices and two members, with a hub correction."""
    options = {"voices": "auto", "members": 2, "epochs": 1, "embedding_dim": 8, "hub_correction": "train"}
    return trained(**options)
