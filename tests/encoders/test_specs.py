"""Specs are read strictly, and what is unknown gets the list of what is known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from varalign.encoders.specs import (
    IMAGE_SPECS,
    TEXT_SPECS,
    EncoderSpec,
    SpecError,
    clip_models,
    looks_like_path,
    parse_image_spec,
    parse_text_spec,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("resnet18", EncoderSpec("resnet18")),
        ("resnet18@imagenet", EncoderSpec("resnet18", "", "imagenet")),
        ("resnet18@weights/a@b.pth", EncoderSpec("resnet18", "", "weights/a@b.pth")),
        (r"resnet18@C:\w.pth", EncoderSpec("resnet18", "", r"C:\w.pth")),
        ("clip:ViT-B-32@openai", EncoderSpec("clip", "ViT-B-32", "openai")),
        ("clip:ViT-B-32@/w/a@b.pt", EncoderSpec("clip", "ViT-B-32", "/w/a@b.pt")),
        ("timm:vit_tiny_patch16_224", EncoderSpec("timm", "vit_tiny_patch16_224")),
        ("timm:resnet50.a1_in1k@hub", EncoderSpec("timm", "resnet50.a1_in1k", "hub")),
    ],
)
def test_image_specs(text: str, wanted: EncoderSpec) -> None:
    assert parse_image_spec(text) == wanted
    assert str(wanted) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("lstm", EncoderSpec("lstm")),
        ("bert:bert-base-uncased", EncoderSpec("bert", "bert-base-uncased")),
        ("bert:owner/name", EncoderSpec("bert", "owner/name")),
        ("bert:/models/b@2", EncoderSpec("bert", "/models/b@2")),
        ("clip:ViT-B-32@openai", EncoderSpec("clip", "ViT-B-32", "openai")),
    ],
)
def test_text_specs(text: str, wanted: EncoderSpec) -> None:
    assert parse_text_spec(text) == wanted
    assert str(wanted) == text


@pytest.mark.parametrize(
    "text", ["", "resnet", "resnet18@", "resnet18:x", "clip:", "timm:", "timm:x@", "lstm", "bert:x", ":"]
)
def test_an_unknown_image_spec_lists_the_known_ones(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_image_spec(text)
    assert str(caught.value) == f"unknown image encoder '{text}'; known: {', '.join(IMAGE_SPECS)}"


@pytest.mark.parametrize("text", ["", "lstm@x", "lstm:x", "bert", "bert:", "resnet18", "clip:@openai", "timm:x"])
def test_an_unknown_text_spec_lists_the_known_ones(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_text_spec(text)
    assert str(caught.value) == f"unknown text encoder '{text}'; known: {', '.join(TEXT_SPECS)}"


def test_clip_wants_weights_and_a_name_that_open_clip_has() -> None:
    with pytest.raises(SpecError, match=r"'clip:ViT-B-32' names no weights: add @openai"):
        parse_image_spec("clip:ViT-B-32")
    with pytest.raises(SpecError, match=r"open_clip has no model 'ViT-B32'; near it: ViT-B-32, .*; all \d+: python"):
        parse_text_spec("clip:ViT-B32@openai")


def test_clip_models_are_open_clips() -> None:
    import open_clip

    assert set(clip_models()) == set(open_clip.list_models())


def test_with_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.pt").touch()
    Path("bert").mkdir()
    assert str(parse_image_spec("resnet18@w.pt").with_absolute_path()) == f"resnet18@{tmp_path.resolve()}/w.pt"
    assert str(parse_text_spec("bert:bert").with_absolute_path()) == f"bert:{tmp_path.resolve()}/bert"
    for untouched in ("clip:ViT-B-32@openai", "bert:bert-base-uncased", "lstm"):
        assert str(parse_text_spec(untouched).with_absolute_path()) == untouched


def test_looks_like_path() -> None:
    assert all(looks_like_path(text) for text in ("/a", "./a", "../a", "~/a", "a.pt", r"a\b", "..", "x/y.safetensors"))
    assert not any(looks_like_path(text) for text in ("bert-base-uncased", "owner/name", "openai"))


def test_specs_need_no_torch() -> None:
    code = "import sys, varalign.encoders.specs as s; s.clip_models(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
