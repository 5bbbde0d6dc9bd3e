"""A run that is fitted on unpaired images and texts too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import varalign
from safetensors.numpy import save_file
from varalign.data.features import load_features
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.runs.folder import RunFolder


def test_a_run_says_and_records_its_rounds(features_file: Path, tmp_path: Path) -> None:
    data, pool = load_features(features_file), tmp_path / "pool.safetensors"
    random = np.random.default_rng(0)
    x, y = data.image_features[30:120], data.text_features[80:200]
    x, y = (rows + 0.05 * random.normal(size=rows.shape).astype(np.float32) for rows in (x, y))
    save_file({"image_features": x, "text_features": y}, str(pool))
    given: dict[str, Any] = {"features": str(features_file), "dataset_size": 30, "device": "cpu"}
    given |= {"unpaired_images": str(pool), "unpaired_texts": str(pool), "voices": "closed-form", "settings": "dev"}
    said: list[str] = []
    result = varalign.train(TrainConfig(**given, out=str(tmp_path / "run")), say=said.append, progress=False)
    saved = RunFolder.open(result.run).config()
    found = saved["start"]["voices"]["self_training"]
    # of the 90 images five have a cosine above 0.95 with one of dev or test: the file has six factors only
    assert (found["images"], found["texts"]) == (85, 120) and found["losses"] == sorted(found["losses"], reverse=True)
    assert any(line.startswith("self-training on unpaired images and texts: ") for line in said)
    assert saved["options"]["unpaired_images"] == str(pool)
    assert varalign.load(result.run).evaluate("test")["t2i_recall@1"] == result.test["t2i_recall@1"]


@pytest.mark.parametrize("options", [{"start": "random"}, {"voices": "none"}])
def test_without_voices_nothing_is_fitted_on_it(options: dict[str, Any], features_file: Path) -> None:
    with pytest.raises(ConfigError, match="--unpaired-images belongs to the voices"):
        TrainConfig(features=str(features_file), unpaired_images="a.safetensors", **options).validate()
