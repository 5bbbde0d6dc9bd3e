"""timm's models give timm's own features."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from varalign.encoders.build import build_image_encoder, image_encoder_from_config
from varalign.encoders.specs import SpecError, WeightsUnavailable
from varalign.encoders.weights import WeightsError


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_a_file_gives_timms_features(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    encoder = build_image_encoder(f"timm:{name}@{tmp_path / 'w.pth'}").eval()
    size = encoder.preprocess.size
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        wanted = model.forward_head(model.forward_features(pixels), pre_logits=True)
        found = encoder(pixels)
    assert torch.equal(found, wanted)
    assert found.shape == (2, encoder.feature_dim)
    config = timm.data.resolve_model_data_config(model)
    assert encoder.preprocess.mean == tuple(config["mean"])
    assert encoder.preprocess.interpolation == config["interpolation"]
    again = image_encoder_from_config(encoder.to_config(), load_weights=False)
    again.load_state_dict(encoder.state_dict())
    assert again.weights_fingerprint() == encoder.weights_fingerprint()


def test_another_image_size_and_blocks() -> None:
    encoder = build_image_encoder("timm:vit_tiny_patch16_224", image_size=64).eval()
    assert not encoder.has_source
    assert encoder.preprocess.size == 64
    assert len(encoder.blocks()) == 12
    with torch.no_grad():
        assert encoder(torch.randn(1, 3, 64, 64)).shape == (1, 192)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="timm has no model 'resnet1'; near it: "):
        build_image_encoder("timm:resnet1")
    with pytest.raises(SpecError, match=r"'\.a1_in1k' names weights, but nothing says to load them: add @hub or @FILE"):
        build_image_encoder("timm:resnet18.a1_in1k")
    with pytest.raises(SpecError, match=r"timm has no weights 'zz' for resnet18; it has: resnet18\.a1_in1k, "):
        build_image_encoder("timm:resnet18.zz@hub")
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"timm cannot build it with these weights or this size: .*Missing key"):
        build_image_encoder(f"timm:resnet18@{tmp_path / 'w.pth'}")


def test_hub_weights_with_no_hub_in_reach(nothing_local: Path) -> None:
    with pytest.raises(
        WeightsUnavailable, match=r"huggingface\.co/timm/resnet18\.a1_in1k .*--image-encoder timm:resnet18@FILE"
    ):
        build_image_encoder("timm:resnet18@hub")
