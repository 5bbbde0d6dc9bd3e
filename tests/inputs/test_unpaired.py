"""Unpaired images and texts: what is read, and that nothing of dev or test is among them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from varalign.data.errors import DataError
from varalign.data.features import FeatureSet, load_features
from varalign.encoders.towers import Towers
from varalign.inputs.assemble import open_sources
from varalign.inputs.models import new_towers
from varalign.inputs.open_data import open_data
from varalign.inputs.parts import Inputs
from varalign.inputs.unpaired import open_bank, open_unpaired
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError

CPU = torch.device("cpu")


def features_inputs(file: Path, **options: Any) -> Inputs:
    config, data = open_data(TrainConfig(features=str(file), **options), lambda _: None)
    assert isinstance(data, FeatureSet)
    towers = Towers(None, None, image_feature_dim=12, text_feature_dim=10)
    return open_sources(config, data, towers, CPU, lambda _: None)


def test_rows_of_features_files(features_file: Path, tmp_path: Path) -> None:
    data, random = load_features(features_file), np.random.default_rng(0)
    x, y = random.normal(size=(7, 12)), random.normal(size=(9, 10))
    x[3], y[4] = data.image_features[150], data.text_features[200]  # an image of test, a text of train
    y[5] = data.text_features[2 * 125]  # a text of dev
    file = tmp_path / "more.safetensors"
    save_file({"image_features": x, "text_features": y.astype(np.float16)}, str(file))
    said: list[str] = []
    both = {"unpaired_images": str(file), "unpaired_texts": str(file), "settings": "dev"}
    found = open_unpaired(features_inputs(features_file, **both), said.append)
    assert found is not None and found.texts is None
    torch.testing.assert_close(found.image_features, torch.from_numpy(np.delete(x, 3, 0)).float())
    torch.testing.assert_close(found.text_features.half(), torch.from_numpy(np.delete(y, 5, 0)).half())
    assert said == [
        "--unpaired-images more.safetensors: 6 images; 1 images that are nearly one of dev or test are left out",
        "--unpaired-texts more.safetensors: 8 texts; 1 texts that are a caption of dev or test are left out",
    ]
    alone = open_unpaired(features_inputs(features_file, unpaired_images=str(file)), said.append)
    assert alone is not None and alone.text_features.shape == (0, 10)
    assert open_unpaired(features_inputs(features_file), said.append) is None
    said.clear()
    folds = open_unpaired(features_inputs(features_file, **{**both, "settings": "cv"}), said.append)
    assert folds is not None and len(folds.image_features) == 6 and len(folds.text_features) == 7
    assert said[1].endswith("2 texts that are a caption of the pairs, which a cross-validation judges are left out")


def test_known_texts_are_compared_as_texts(features_file: Path, tmp_path: Path) -> None:
    data = load_features(features_file)
    texts = [f"text {row}" for row in range(320)]
    base = tmp_path / "base.safetensors"
    base.write_bytes(features_file.read_bytes())
    base.with_suffix(".texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    file = tmp_path / "more.safetensors"
    save_file({"text_features": data.text_features[:3]}, str(file))
    file.with_suffix(".texts.jsonl").write_text('"TEXT 319."\n"text 0"\n"new"\n')
    found = open_unpaired(features_inputs(base, unpaired_texts=str(file), settings="dev"), lambda _: None)
    assert found is not None and found.texts == ["text 0", "new"]
    assert torch.equal(found.text_features, torch.from_numpy(data.text_features[1:3]))


@pytest.mark.parametrize(
    ("option", "name", "words"),
    [
        ("unpaired_images", "narrow.safetensors", "features of 4 dimensions, but the model takes 12"),
        (
            "unpaired_images",
            "narrow.txt",
            "--features has no encoders for it; wanted a features file, as `varalign",
        ),
        ("unpaired_images", "texts.safetensors", "no tensor image_features"),
        ("unpaired_texts", "none.safetensors", "no such features file"),
        ("unpaired_texts", "none.txt", "no such file"),
    ],
)
def test_features_that_do_not_fit_are_refused(
    option: str, name: str, words: str, features_file: Path, tmp_path: Path
) -> None:
    save_file({"image_features": np.ones((3, 4), np.float32)}, str(tmp_path / "narrow.safetensors"))
    save_file({"text_features": np.ones((3, 10), np.float32)}, str(tmp_path / "texts.safetensors"))
    (tmp_path / "narrow.txt").touch()
    with pytest.raises((DataError, ConfigError), match=words):
        open_unpaired(features_inputs(features_file, **{option: str(tmp_path / name)}), lambda _: None)


def test_a_bank_has_the_sides_of_its_file(features_file: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, widths in {"both": (12, 10), "images": (12, None), "texts": (None, 10), "narrow": (None, 4)}.items():
        sides = zip(("image_features", "text_features"), widths, strict=True)
        rows = {side: random.normal(size=(5, width)).astype(np.float32) for side, width in sides if width}
        save_file(rows, str(tmp_path / f"{name}.safetensors"))
    save_file({"other": np.ones(3, np.float32)}, str(tmp_path / "neither.safetensors"))
    (tmp_path / "words.txt").write_text("a dog")
    inputs = features_inputs(features_file)

    def opened(name: str) -> tuple[int, int]:
        found = open_bank(inputs, tmp_path / name, lambda _: None)
        return len(found.image_features), len(found.text_features)

    assert [opened(f"{name}.safetensors") for name in ("both", "images", "texts")] == [(5, 5), (5, 0), (0, 5)]
    for name, words in {
        "narrow.safetensors": "--hub-correction .*: text features of 4 dimensions, but the model takes 10",
        "neither.safetensors": "holds neither image_features nor text_features",
        "words.txt": "--features has no encoders for it; wanted a features file",
        "none.txt": "there is no such file or folder; wanted auto, off, train, dev, unpaired, a features file",
        "none.safetensors": "no such features file",
    }.items():
        with pytest.raises((DataError, ConfigError), match=words):
            opened(name)


def test_images_and_texts_through_the_towers(
    image_folder: Path, clip_folder: Callable[..., tuple[Path, Any]], tmp_path: Path
) -> None:
    spec = f"clip:x@{clip_folder()[0]}"
    options: dict[str, Any] = {"data": str(image_folder), "image_encoder": spec, "text_encoder": spec}
    options |= {"cache": str(tmp_path / "cache"), "max_bad": 0.5}
    _, data = open_data(TrainConfig(**options), lambda _: None)
    pool = tmp_path / "pool"
    (pool / "deep").mkdir(parents=True)
    random = np.random.default_rng(0)
    for place in ("a.png", "deep/b.png"):
        Image.fromarray(random.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(pool / place)
    with Image.open(data.image_paths[data.rows("test")[0]]) as image:
        image.save(pool / "copy.jpg", quality=60)  # saved anew, hence other bytes
    (pool / "bad.jpg").write_bytes(b"no image")
    caption = data.captions[data.caption_rows(data.rows("dev"))[0]].upper()
    (tmp_path / "texts.txt").write_text(f"A new text\n{caption}\na new text.\n")
    said: list[str] = []
    named = {"unpaired_images": str(pool), "unpaired_texts": str(tmp_path / "texts.txt")}
    config, data = open_data(TrainConfig(**options, **named), lambda _: None)
    towers = new_towers(config, data)
    inputs = open_sources(config, data, towers, CPU, lambda _: None)
    found = open_unpaired(inputs, said.append)
    assert found is not None and found.image_names == ["a.png", "deep/b.png"] and found.texts == ["A new text"]
    assert any(line.startswith("--unpaired-images pool: 2 images; 1 images that are nearly one") for line in said)
    assert any("'copy.jpg'; 1 cannot be read and are left out" in line for line in said)
    assert found.image_features.shape == (2, towers.image_feature_dim)
    with torch.no_grad():
        tokens = towers.text_encoder.tokenizer(["A new text"])
        wanted = towers.encode_texts(torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths))
    torch.testing.assert_close(found.text_features, wanted, atol=1e-5, rtol=0)
    again: list[str] = []
    assert torch.equal(open_unpaired(inputs, again.append).image_features, found.image_features)
    assert any("rows from the cache" in line for line in again)
    for place, words in (("none", "there is no such folder"), ("cache", "no image in it")):
        broken = dataclasses.replace(inputs, config=dataclasses.replace(config, unpaired_images=str(tmp_path / place)))
        with pytest.raises(DataError, match=words):
            open_unpaired(broken, lambda _: None)
