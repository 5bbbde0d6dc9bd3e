"""Every kind of encoder, frozen, with its last block unfrozen and with adapters: trained, saved, resumed, embedded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import varalign
from checkpoints import write_bert, write_clip
from image_models import write_image_model
from text_models import change_json, write_model
from varalign.aligner.load import zero_shot
from varalign.encoders.adapters import ADAPTER
from varalign.options.config import TrainConfig
from varalign.training.run import resume

LONG = pytest.mark.long


def write(folder: Path, kind: str, side: str) -> str:
    """A spec of a kind, with small weights behind it; one of transformers is named by its family."""
    if kind == "lstm":
        return kind
    if kind == "clip":
        write_clip(folder)
        return f"clip:ViT-tiny@{folder}"
    if kind == "bert":
        write_bert(folder)
        return f"bert:{folder}"
    if kind in ("resnet18", "timm"):
        folder.mkdir()
        if kind == "timm":
            import timm

            torch.save(timm.create_model("test_vit").state_dict(), folder / "w.pth")
            return f"timm:test_vit@{folder / 'w.pth'}"
        from torchvision.models import resnet18

        torch.save(resnet18().state_dict(), folder / "w.pth")
        return f"resnet18@{folder / 'w.pth'}"
    if side == "image":
        return f"hf:{write_image_model(folder, kind.removeprefix('hf-'))}"
    if kind != "hf-clip":
        return f"hf:{write_model(folder, kind)}"
    write_image_model(folder, "clip")
    other = write_model(folder / "tokenizer", "roberta")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(other / name, folder)
    change_json(folder / "tokenizer_config.json", model_max_length=16)
    return f"hf:{folder}"


@pytest.mark.parametrize(
    ("image", "text", "options"),
    [
        pytest.param("clip", "xlm-roberta", {}, marks=LONG),
        pytest.param("dinov2", "bert", {}, marks=LONG),
        pytest.param("timm", "clip", {}, marks=LONG),
        ("hf-clip", "hf-clip", {}),
        pytest.param("resnet18", "lstm", {"freeze": "image"}, marks=LONG),
        pytest.param("resnet18", "mpnet", {"unfreeze": 1}, marks=LONG),
        pytest.param("timm", "bert", {"unfreeze": 1}, marks=LONG),
        pytest.param("siglip", "clip", {"unfreeze": 1}, marks=LONG),
        ("clip", "t5", {"unfreeze": 1}),
        pytest.param("hf-clip", "hf-clip", {"lora": 2}, marks=LONG),
        ("convnext", "roberta", {"lora": 2}),
        pytest.param("timm", "clip", {"lora": 2}, marks=LONG),
        pytest.param("clip", "bert", {"lora": 2}, marks=LONG),
        pytest.param("siglip", "lstm", {"lora": 2, "freeze": "image"}, marks=LONG),
    ],
)
def test_each_kind_trains_and_is_used(
    image_folder: Path, tmp_path: Path, image: str, text: str, options: dict[str, Any]
) -> None:
    text_spec = write(tmp_path / "text", text, "text")
    config = TrainConfig(
        data=str(image_folder),
        image_encoder=text_spec if image == text else write(tmp_path / "image", image, "image"),
        text_encoder=text_spec,
        out=str(tmp_path / "run"),
        cache=str(tmp_path / "cache"),
        image_size=32 if image in ("resnet18", "timm") else None,
        epochs=1,
        batch_size=30,
        start="random",
        members=0,
        voices="none",
        embedding_dim=8,
        device="cpu",
        **options,
    )
    result = varalign.train(config, say=lambda _: None, progress=False)
    model = result.aligner.parts.model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "_encoder." in name}
    of_sources = {name for name in trained if not (text == "lstm" and name.startswith("text_encoder."))}
    if "lora" in options:
        assert of_sources and all(ADAPTER in name for name in of_sources)
    else:
        assert bool(of_sources) == ("unfreeze" in options)
    texts, file = ["a red square", "two dogs"], image_folder / "Images" / "000.jpg"
    again = varalign.load(tmp_path / "run", device="cpu")
    np.testing.assert_array_equal(again.embed_texts(texts), result.aligner.embed_texts(texts))
    np.testing.assert_array_equal(again.embed_images([file]), result.aligner.embed_images([file]))
    assert again.evaluate("test") == result.test
    if image == text and not options:  # both towers of one CLIP, read from transformers' folder
        published = zero_shot(config.text_spec, image_folder, device="cpu").evaluate("test")
        assert result.zero_shot is not None
        assert result.zero_shot["t2i_recall@5"] == published["t2i_recall@5"]
    assert resume(tmp_path / "run", {"epochs": 2}, say=lambda _: None).epochs == 2
