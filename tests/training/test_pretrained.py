"""Frozen, partly unfrozen and zero-shot towers from checkpoints in the real formats, through whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import varalign
from varalign.aligner.load import zero_shot
from varalign.cli import main
from varalign.encoders.specs import WeightsChanged
from varalign.options.config import TrainConfig
from varalign.runs.checkpoint import load_checkpoint
from varalign.training import run as runs

ClipFolder = Callable[..., tuple[Path, Any]]


def config_for(clip: Path, bert: Path, images: Path, tmp_path: Path, name: str = "run", **options: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "data": str(images),
        "image_encoder": f"clip:ViT-tiny@{clip}",
        "text_encoder": f"bert:{bert}",
        "out": str(tmp_path / name),
        "cache": str(tmp_path / "cache"),
        "epochs": 2,
        "batch_size": 16,
        "embedding_dim": 16,
        "device": "cpu",
    }
    return TrainConfig(**{**settings, **options})


def test_frozen_towers_are_run_once_and_their_features_kept(
    clip_folder: ClipFolder, bert_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    clip, _ = clip_folder()
    said: list[str] = []
    first = varalign.train(config_for(clip, bert_folder, image_folder, tmp_path), say=said.append)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not any("from the cache" in line for line in said)
    said.clear()
    again = varalign.train(config_for(clip, bert_folder, image_folder, tmp_path, "again"), say=said.append)
    assert sum("from the cache" in line for line in said) == 2
    assert again.test == first.test

    names = load_checkpoint(tmp_path / "run" / "checkpoints" / "best").part("model")
    assert not any(name.startswith(("image_encoder", "text_encoder")) for name in names), "frozen towers stay out"
    model = varalign.load(tmp_path / "run", device="cpu")
    width = model.model.shape.embedding_dim
    assert width > 8 * 64, "the fitted voices beside the members"
    assert model.embed_texts(["a dog in the snow"]).shape == (1, width)
    assert model.embed_images([image_folder / "Images" / "000.jpg"]).shape == (1, width)
    assert model.evaluate("test") == first.test


def test_a_frozen_run_resumes_and_refuses_other_weights(
    clip_folder: ClipFolder, bert_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    clip, model = clip_folder()
    first = varalign.train(config_for(clip, bert_folder, image_folder, tmp_path), say=lambda _: None)
    assert runs.resume(tmp_path / "run", {}, say=lambda _: None).test == first.test
    from safetensors.torch import save_file

    save_file(
        {name: tensor + 0.01 for name, tensor in model.state_dict().items()}, clip / "open_clip_model.safetensors"
    )
    with pytest.raises(WeightsChanged):
        _ = varalign.load(tmp_path / "run").model  # built when first needed


def test_unfrozen_blocks_train_and_are_checkpointed(
    clip_folder: ClipFolder, bert_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    clip, _ = clip_folder()
    config = config_for(clip, bert_folder, image_folder, tmp_path, unfreeze=1, epochs=1, tower_lr=1e-3)
    result = varalign.train(config, say=lambda _: None)
    folder = tmp_path / "run" / "checkpoints"
    start, end = (load_checkpoint(folder / name).part("model") for name in ("step-0", "last"))
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert any(name.startswith("image_encoder") for name in moved) and any(
        name.startswith("text_encoder") for name in moved
    )
    assert not any("embeddings.word_embeddings" in name or "conv1" in name for name in moved), (
        "stem and embeddings stay"
    )
    assert varalign.load(tmp_path / "run", checkpoint="best", device="cpu").evaluate("test") == result.test


def test_zero_shot_clip_is_a_row(
    clip_folder: ClipFolder, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, _ = clip_folder()
    line = [
        "eval",
        "--zero-shot",
        f"clip:ViT-tiny@{clip}",
        "--data",
        str(image_folder),
        "--cache",
        str(tmp_path),
        "--json",
    ]
    assert main(line) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 10 and result["texts"] == 20 and result["logit_scale"] == pytest.approx(100)


def test_no_hub_and_nothing_local_is_one_message(
    nothing_local: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--use_pretrained", "True", "--data", str(image_folder), "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and "--image-encoder" in message and "varalign: error:" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("hf:facebook/dinov2-small", "hf:intfloat/multilingual-e5-small"),
        ("resnet18@imagenet", "bert:bert-base-uncased"),
        ("clip:ViT-B-32@openai", "clip:ViT-B-32@openai"),
        ("timm:test_vit@hub", "hf:xlm-roberta-base"),
    ],
)
def test_without_a_hub_each_kind_ends_in_one_message_on_both_towers(
    nothing_local: Path,
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    image: str,
    text: str,
) -> None:
    line = ["train", "--image-encoder", image, "--text-encoder", text, "--data", str(image_folder)]
    assert main([*line, "--out", str(tmp_path / "run")]) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("varalign: error:")]
    assert f"'{image}'" in message and f"'{text}'" in message
    assert "--image-encoder" in message and "--text-encoder" in message
    assert not (tmp_path / "run").exists()


def test_zero_shot_is_a_row_where_both_frozen_towers_are_of_one_clip(
    clip_folder: ClipFolder, bert_folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, _ = clip_folder()
    spec = f"clip:ViT-tiny@{clip}"
    config = config_for(clip, bert_folder, image_folder, tmp_path, text_encoder=spec, epochs=1)
    result = varalign.train(config, say=lambda _: None, progress=False)
    published = zero_shot(spec, image_folder, device="cpu").evaluate("test")
    keys = [key for key in published if "recall" in key] + ["cosine_similarity", "images"]
    assert result.zero_shot is not None
    assert [result.zero_shot[key] for key in keys] == [published[key] for key in keys]
    assert result.zero_shot["model"] == "zero-shot clip:ViT-tiny@clip"
    assert "zero-shot clip:ViT-tiny@clip" in result.table()
    assert "zero-shot clip:ViT-tiny@clip" in (tmp_path / "run" / "report.html").read_text()
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert "zero-shot clip:ViT-tiny@clip" in capsys.readouterr().out
    assert result.aligner.evaluate("test") == result.test
    with_bert = varalign.train(config_for(clip, bert_folder, image_folder, tmp_path, "b", epochs=1), say=lambda _: None)
    assert with_bert.zero_shot is None


def test_zero_shot_is_a_voice_where_both_frozen_towers_are_of_one_clip(
    clip_folder: ClipFolder, bert_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    clip, _ = clip_folder()
    options: dict[str, Any] = {"voices": "zero-shot", "hub_correction": "off", "embedding_dim": None}
    towers = config_for(clip, bert_folder, image_folder, tmp_path, text_encoder=f"clip:ViT-tiny@{clip}", **options)
    alone = varalign.train(towers, say=lambda _: None, progress=False)
    keys = [key for key in alone.test if "recall" in key] + ["cosine_similarity"]
    assert alone.zero_shot is not None
    assert [alone.test[key] for key in keys] == pytest.approx([alone.zero_shot[key] for key in keys])
    model = varalign.load(tmp_path / "run", device="cpu")
    assert model.evaluate("test") == alone.test
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["start"]["voices"]["weights"] == {"zero-shot": 1.0}
    config_of_both = replace(towers, voices="closed-form,zero-shot", out=str(tmp_path / "both"))
    varalign.train(config_of_both, say=lambda _: None, progress=False)
    weights = json.loads((tmp_path / "both" / "config.json").read_text())["start"]["voices"]["weights"]
    assert set(weights) == {"closed-form", "zero-shot"} and sum(weights.values()) == pytest.approx(1.0)
