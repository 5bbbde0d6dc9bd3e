"""The dual encoder: unit vectors, frozen parts that stay as they are, groups for the optimiser."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from varalign.encoders.build import build_image_encoder, build_text_encoder
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.head_shape import HeadShape
from varalign.encoders.towers import Towers

CAPTIONS = ["a dog runs in the snow", "two cats sit on a mat", "a red ball"]


def build(**options: object) -> DualEncoder:
    torch.manual_seed(0)
    images = build_image_encoder("resnet18", image_size=32)
    towers = Towers(images, build_text_encoder("lstm", captions=CAPTIONS))
    return DualEncoder(towers, HeadShape(embedding_dim=16, **options))  # type: ignore[arg-type]


def of_features(image_dim: int = 2, text_dim: int = 2, **options: object) -> DualEncoder:
    towers = Towers(None, None, image_feature_dim=image_dim, text_feature_dim=text_dim)
    return DualEncoder(towers, HeadShape(**options))  # type: ignore[arg-type]


def batch(model: DualEncoder) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    assert model.text_encoder is not None
    tokens = model.text_encoder.tokenizer(CAPTIONS)
    return torch.randn(3, 3, 32, 32), torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_embeddings_are_unit_vectors_of_the_projected_features(head: str) -> None:
    model = build(head=head).eval()
    pixels, ids, lengths = batch(model)
    u, v = model(pixels, ids, lengths)
    for vectors in (u, v):
        assert vectors.shape == (3, 16)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    features = model.encode_images(pixels)
    assert features.shape == (3, model.image_feature_dim)
    projected = model.image_head(features)
    torch.testing.assert_close(u, projected / projected.norm(dim=1, keepdim=True))


def test_half_precision_heads_give_float32_and_double_stays_double() -> None:
    model = of_features(8, 6, embedding_dim=4)
    features = torch.randn(5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.project_images(features).dtype == torch.float32
    assert model.double().project_images(features.double()).dtype == torch.float64


def test_features_instead_of_towers() -> None:
    model = of_features(8, 6, embedding_dim=4)
    x, y = torch.randn(5, 8), torch.randn(5, 6)
    assert model.encode_images(x) is x
    assert model.encode_texts(y) is y
    u, v = model(x, y)
    assert u.shape == v.shape == (5, 4)
    model.freeze("image")
    assert not model.fully_frozen("image")
    assert model.to_config()["image_encoder"] is None


def test_logit_scale_starts_at_its_value_and_is_clamped_in_place_only() -> None:
    model = of_features()
    assert model.logit_scale.item() == pytest.approx(1 / 0.07)
    assert model.log_logit_scale.dtype == torch.float32
    with torch.no_grad():
        model.log_logit_scale.fill_(6.0)
    scale = model.logit_scale
    assert scale.item() == pytest.approx(math.exp(6.0)), "the forward pass does not clamp"
    scale.backward()
    assert model.log_logit_scale.grad is not None
    assert model.log_logit_scale.grad.item() == pytest.approx(math.exp(6.0))
    model.clamp_logit_scale_()
    assert model.logit_scale.item() == pytest.approx(100.0)
    with torch.no_grad():
        model.log_logit_scale.fill_(-1.0)
    model.clamp_logit_scale_()
    assert model.logit_scale.item() == pytest.approx(1.0)


def test_a_frozen_tower_keeps_weights_and_statistics_through_training() -> None:
    model = build()
    model.freeze("image")
    assert model.fully_frozen("image")
    assert not model.fully_frozen("text")
    assert model.image_encoder is not None
    before = model.image_encoder.weights_fingerprint()
    optimiser = torch.optim.SGD(model.parameter_groups(0.1, 0.1, 0.0), lr=0.1)
    model.train()
    assert not any(module.training for module in model.image_encoder.modules())
    assert model.text_encoder is not None
    assert model.text_encoder.training
    u, v = model(*batch(model))
    (u - v).square().sum().backward()
    optimiser.step()
    assert model.image_encoder.weights_fingerprint() == before
    assert model.image_head.weight.grad is not None


def test_unfreezing_frees_the_last_blocks_only() -> None:
    model = build()
    model.freeze("image", 1)
    assert not model.fully_frozen("image")
    encoder = model.image_encoder
    assert encoder is not None
    free = {name.split(".")[1] for name, p in encoder.named_parameters() if p.requires_grad}
    assert free == {"layer4"}
    model.train()
    norms = {name.split(".")[1]: m.training for name, m in encoder.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms == {"bn1": False, "layer1": False, "layer2": False, "layer3": False, "layer4": True}
    model.eval()
    assert not any(module.training for module in model.modules())


def test_clips_tail_is_freed_with_its_last_block(clip_folder) -> None:  # type: ignore[no-untyped-def]
    folder, _ = clip_folder()
    model = DualEncoder(Towers(build_image_encoder(f"clip:x@{folder}"), build_text_encoder(f"clip:x@{folder}")))
    model.freeze("image", 1)
    model.freeze("text", 2)
    free = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "encoder" in name}
    assert {"image_encoder.visual.proj", "image_encoder.visual.ln_post.weight"} <= free
    assert {"text_encoder.text.text_projection", "text_encoder.text.ln_final.bias"} <= free
    assert all(".resblocks.2." in name or ".resblocks.1." in name for name in free if "resblocks" in name)
    assert not any("embedding" in name for name in free)


def test_how_many_blocks_can_be_unfrozen() -> None:
    model = build()
    with pytest.raises(ValueError, match="unfreeze 5: the image tower 'resnet18' has 4 blocks; pass at most 4"):
        model.freeze("image", 5)
    with pytest.raises(ValueError, match="unfreeze is a number of blocks, 0 or more, not -1"):
        model.freeze("image", -1)


def test_parameter_groups_hold_every_trainable_parameter_once() -> None:
    model = build(head="mlp")
    assert model.image_encoder is not None
    model.image_encoder.has_source = True
    model.freeze("image", 2)
    groups = model.parameter_groups(1e-3, 1e-5, 0.1)
    assert {group["name"]: (group["lr"], group["weight_decay"]) for group in groups} == {
        "heads": (1e-3, 0.1),
        "heads_no_decay": (1e-3, 0.0),
        "towers": (1e-3, 0.1),
        "towers_no_decay": (1e-3, 0.0),
        "pretrained_towers": (1e-5, 0.1),
        "pretrained_towers_no_decay": (1e-5, 0.0),
    }
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert "text_encoder.lstm.weight_hh_l0" in names
    assert "image_head.hidden.weight" in names
    assert not names & {"log_logit_scale", "text_encoder.embedding.weight", "image_head.skip.bias"}
    assert not any(".bn" in name for name in names)


def test_transformers_position_embeddings_are_not_decayed(clip_folder, bert_folder) -> None:  # type: ignore[no-untyped-def]
    folder, _ = clip_folder()
    model = DualEncoder(Towers(build_image_encoder(f"clip:x@{folder}"), build_text_encoder(f"bert:{bert_folder}")))
    decayed = {id(p) for group in model.parameter_groups(1, 1, 1) if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert not any("embedding" in name for name in names)
    assert "image_encoder.visual.proj" in names


def test_what_it_cannot_be_built_from() -> None:
    with pytest.raises(ValueError, match="without an image tower image_feature_dim says how wide"):
        Towers(None, None, text_feature_dim=3)
    with pytest.raises(ValueError, match="'resnet18' gives 512 image features, not 3"):
        Towers(build_image_encoder("resnet18"), None, image_feature_dim=3, text_feature_dim=3)
    for options, message in (
        ({"head": "deep"}, "unknown projection head 'deep'; known: linear, mlp"),
        ({"dropout": 1.0}, "dropout is within"),
        ({"embedding_dim": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            of_features(**options)
    with pytest.raises(ValueError, match=r"logit_scale is within \[1, 100\], not 0.5"):
        DualEncoder(Towers(None, None, image_feature_dim=2, text_feature_dim=2), logit_scale=0.5)
    with pytest.raises(TypeError, match="lengths of the texts"):
        build().encode_texts(torch.ones(1, 2, dtype=torch.int64))
