"""Small random image models in the folders that transformers writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
VISION: dict[str, Any] = {**SIZES, "image_size": 32, "patch_size": 8}


def _make(family: str) -> tuple[Any, Any]:
    """The model and the image processor of a family."""
    import transformers as t

    short = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    square = {"size": {"height": 32, "width": 32}}
    text = {**SIZES, "vocab_size": 110, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    if family == "clip":
        config = t.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
        return t.CLIPModel(config), t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square["size"])
    if family == "clip-vision":
        config = t.CLIPVisionConfig(**VISION, projection_dim=16)
        return t.CLIPVisionModelWithProjection(config), t.CLIPImageProcessor(**short)
    if family == "siglip":
        text = {**text, "pad_token_id": 1}
        return t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=VISION)), t.SiglipImageProcessor(**square)
    if family == "dinov2":
        return t.Dinov2Model(t.Dinov2Config(**VISION)), t.BitImageProcessor(**short)
    if family == "vit":
        return t.ViTModel(t.ViTConfig(**VISION)), t.ViTImageProcessor(**square)
    if family == "vit-classifier":  # its folder holds no pooler
        return t.ViTForImageClassification(t.ViTConfig(**VISION)), t.ViTImageProcessor(**square)
    processor = getattr(t, "DINOv3ViTImageProcessor", None) or t.DINOv3ViTImageProcessorFast  # the name before 5.4
    if family == "dinov3":
        config = t.DINOv3ViTConfig(**SIZES, image_size=32, patch_size=8, num_register_tokens=3)
        return t.DINOv3ViTModel(config), processor(**square)
    if family == "dinov3-convnext":
        config = t.DINOv3ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 2, 1], image_size=32)
        return t.DINOv3ConvNextModel(config), processor(**square)
    assert family == "convnext"
    config = t.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 2, 1])
    return t.ConvNextModel(config), t.ConvNextImageProcessor(size={"shortest_edge": 32})


def write_image_model(folder: Path, family: str) -> Path:
    """Write a model and its image processor as transformers does."""
    torch.manual_seed(0)
    model, processor = _make(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
