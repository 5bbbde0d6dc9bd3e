"""A small trained run and a folder of pictures, for searches over any folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import varalign
from varalign import TrainConfig


@pytest.fixture(scope="session")
def searched_run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with hub correction, whose folder the tests may add to."""
    out = tmp_path_factory.mktemp("searched") / "run"
    options = {"image_size": 32, "epochs": 1, "batch_size": 16, "embedding_dim": 16, "hub_correction": "dev"}
    places = {"data": str(image_folder), "out": str(out), "device": "cpu", "threads": 1}
    varalign.train(TrainConfig(**options, **places), say=lambda _: None)  # type: ignore[arg-type]
    return out


@pytest.fixture
def pictures(image_folder: Path, tmp_path: Path) -> Path:
    """12 images of the data in a folder of their own, 2 of them in a subfolder."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for number in range(12):
        shutil.copy(image_folder / "Images" / f"{number:03}.jpg", folder / ("sub" if number > 9 else ""))
    return folder
