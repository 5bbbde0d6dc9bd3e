"""Low-rank adapters beside frozen towers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import varalign
from varalign.encoders.adapters import ADAPTER
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.runs.checkpoint import load_checkpoint
from varalign.training.run import resume

ClipFolder = Callable[..., tuple[Path, Any]]


@pytest.fixture
def config(clip_folder: ClipFolder, bert_folder: Path, image_folder: Path, tmp_path: Path) -> TrainConfig:
    clip, _ = clip_folder()
    return TrainConfig(
        data=str(image_folder),
        image_encoder=f"clip:ViT-tiny@{clip}",
        text_encoder=f"bert:{bert_folder}",
        out=str(tmp_path / "run"),
        cache=str(tmp_path / "cache"),
        epochs=2,
        batch_size=16,
        lora=4,
        device="cpu",
    )


def quiet(_: str) -> None:
    pass


def test_adapters_train_and_the_towers_stay_as_they_are(config: TrainConfig, tmp_path: Path) -> None:
    result = varalign.train(config, say=quiet)
    model = result.aligner.parts.model
    assert model.adapters == {"image": 4, "text": 4} and not model.fully_frozen("image")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    towers = {name for name in trained if "_encoder." in name}
    assert towers and all(ADAPTER in name for name in towers)
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "best").part("model")
    kept = [name for name in state if "_encoder." in name]
    assert kept and all(ADAPTER in name for name in kept), "a checkpoint holds the adapters and not the towers"
    assert any(bool(state[name].abs().max() > 0) for name in kept if "lora_B" in name)
    again = varalign.load(tmp_path / "run", device="cpu")
    texts = ["a red square", "two dogs"]
    assert torch.equal(torch.as_tensor(again.embed_texts(texts)), torch.as_tensor(result.aligner.embed_texts(texts)))
    more = resume(tmp_path / "run", {"epochs": 3, "device": "cpu"}, say=quiet)
    assert more.epochs == 3


def test_before_training_adapters_change_nothing(config: TrainConfig, tmp_path: Path) -> None:
    from varalign.encoders.build import build_image_encoder
    from varalign.encoders.towers import Towers

    pixels = torch.randn(2, 3, 32, 32)
    image = build_image_encoder(config.image_spec, image_size=32)
    towers = Towers(image, None, text_feature_dim=3).eval()
    towers.freeze("image")
    before, fingerprint = towers.encode_images(pixels), image.weights_fingerprint()
    towers.adapt("image", 2)
    torch.testing.assert_close(towers.encode_images(pixels), before)
    assert towers.fingerprints == {"image": fingerprint}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": 4, "features": "x.safetensors"}, "--lora needs the encoders"),
        ({"lora": 4, "unfreeze": 1, "use_pretrained": True}, "pass one of them"),
        ({"lora": 4, "wise_ft": True, "use_pretrained": True}, "--wise-ft"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options).validate()


def test_without_a_frozen_tower_there_is_nothing_to_adapt(image_folder: Path, tmp_path: Path) -> None:
    options = TrainConfig(data=str(image_folder), lora=4, out=str(tmp_path / "run"), image_size=32, device="cpu")
    with pytest.raises(ConfigError, match="no tower is frozen"):
        varalign.train(options, say=quiet)
