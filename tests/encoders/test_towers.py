"""Gradient checkpointing: the same gradients from fewer activations, and a refusal where a tower has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from image_models import write_image_model
from text_models import write_model
from torch import Tensor
from varalign.encoders.build import build_image_encoder, build_text_encoder
from varalign.encoders.specs import SpecError
from varalign.encoders.towers import Towers

ClipFolder = Callable[..., tuple[Path, Any]]
TEXTS = ["a dog runs", "two cats sit on the mat", "snow"]


def towers(image: str, text: str, unfreeze: int) -> Towers:
    found = Towers(build_image_encoder(image), build_text_encoder(text))
    for side in ("image", "text"):
        found.freeze(side, unfreeze)  # type: ignore[arg-type]
    return found.train()


def gradients(model: Towers) -> tuple[dict[str, Tensor], int]:
    """The gradients of a step, and how many bytes its forward pass has kept for them."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    assert model.text_encoder is not None and model.image_encoder is not None
    ids = model.text_encoder.tokenizer(TEXTS)
    size = model.image_encoder.preprocess.size
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        images = model.encode_images(pixels)
        texts = model.encode_texts(torch.from_numpy(ids.ids), torch.from_numpy(ids.lengths))
    (images.square().sum() + texts.square().sum()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("kind", ["clip", "hf", "timm + bert"])
def test_gradients_stay_and_less_is_kept(clip_folder: ClipFolder, bert_folder: Path, tmp_path: Path, kind: str) -> None:
    """With dropout: the backward pass draws the forward pass's numbers again."""
    if kind == "clip":
        folder, _ = clip_folder()
        model = towers(*[f"clip:ViT-tiny@{folder}"] * 2, unfreeze=2)
    elif kind == "hf":
        image, text = write_image_model(tmp_path / "i", "vit"), write_model(tmp_path / "t", "t5")
        model = towers(f"hf:{image}", f"hf:{text}", unfreeze=1)
    else:
        model = towers("timm:test_vit", f"bert:{bert_folder}", unfreeze=3)
    plain, before = gradients(model)
    model.checkpoint_activations()
    found, after = gradients(model)
    assert found.keys() == plain.keys() and len(plain) > 20
    assert after < 0.8 * before
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-7)


def test_towers_without_it_are_refused_where_they_train(clip_folder: ClipFolder, tmp_path: Path) -> None:
    custom = Towers(build_image_encoder("resnet18"), build_text_encoder("lstm", captions=TEXTS))
    with pytest.raises(SpecError, match="'resnet18' keeps what it computes.*; 'lstm' keeps"):
        custom.checkpoint_activations()
    custom.freeze("image")
    custom.freeze("text")
    with pytest.raises(SpecError, match="no encoder trains: leave it out"):
        custom.checkpoint_activations()
    for net, reason in (("resnet10t", "has batch norms"), ("vgg11", "has no gradient checkpointing")):
        with pytest.raises(SpecError, match=reason):
            build_image_encoder(f"timm:{net}", load_weights=False).checkpoint_activations()
    folder, _ = clip_folder()
    beside = Towers(build_image_encoder(f"clip:ViT-tiny@{folder}"), build_text_encoder("lstm", captions=TEXTS))
    beside.checkpoint_activations()  # of the image tower alone
    model = write_image_model(tmp_path / "i", "vit")
    with pytest.raises(SpecError, match="for layers in training mode alone"):
        build_image_encoder(f"hf:{model}").checkpoint_activations(beside_adapters=True)
