"""A dual encoder comes back from its config, its tokenizer and its checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from varalign.data.tokens.tokenizers import load_tokenizer
from varalign.encoders.build import build_image_encoder, build_text_encoder
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.head_shape import HeadShape
from varalign.encoders.saved import dual_encoder_from_config
from varalign.encoders.specs import SpecError, WeightsChanged
from varalign.encoders.towers import Towers

CAPTIONS = ["a dog runs in the snow", "two cats sit on a mat", "a red ball"]
Folder = Callable[..., tuple[Path, Any]]


def embed(model: DualEncoder) -> list[torch.Tensor]:
    assert model.image_encoder is not None
    assert model.text_encoder is not None
    torch.manual_seed(7)
    size = model.image_encoder.preprocess.size
    tokens = model.text_encoder.tokenizer(CAPTIONS)
    model.eval()
    with torch.no_grad():
        return list(
            model(torch.randn(3, 3, size, size), torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths))
        )


def through_disk(model: DualEncoder, run: Path) -> Callable[[], DualEncoder]:
    """Save as a run does; returns what loads it."""
    run.mkdir()
    (run / "config.json").write_text(json.dumps(model.to_config()))
    save_file({k: v.contiguous() for k, v in model.checkpoint_state().items()}, run / "model.safetensors")
    if model.text_encoder is not None:
        (run / "tokenizer").mkdir()
        model.text_encoder.tokenizer.save(run / "tokenizer")

    def load() -> DualEncoder:
        config = json.loads((run / "config.json").read_text())
        tokenizer = load_tokenizer(run / "tokenizer") if (run / "tokenizer").exists() else None
        again = dual_encoder_from_config(config, tokenizer=tokenizer)
        again.load_checkpoint_state(load_file(run / "model.safetensors"))
        return again

    return load


def same(one: DualEncoder, other: DualEncoder) -> bool:
    return all(torch.equal(a, b) for a, b in zip(embed(one), embed(other), strict=True))


def test_trained_towers_are_in_the_checkpoint(tmp_path: Path) -> None:
    images = build_image_encoder("resnet18", image_size=32)
    texts = build_text_encoder("lstm", captions=CAPTIONS, bidirectional=True)
    model = DualEncoder(Towers(images, texts), HeadShape(head="mlp"))
    model.train()
    tokens = model.text_encoder.tokenizer(CAPTIONS)  # type: ignore[union-attr]
    model(torch.randn(3, 3, 32, 32), torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths))  # BatchNorm moves
    again = through_disk(model, tmp_path / "run")()
    assert same(model, again)
    assert again.state_dict().keys() == model.checkpoint_state().keys()


def test_frozen_towers_are_read_from_their_source(tmp_path: Path, clip_folder: Folder, bert_folder: Path) -> None:
    clip, _ = clip_folder()
    bert = tmp_path / "bert"
    shutil.copytree(bert_folder, bert)
    model = DualEncoder(
        Towers(build_image_encoder(f"clip:x@{clip}"), build_text_encoder(f"bert:{bert}", pooling="cls"))
    )
    model.freeze("image")
    model.freeze("text")
    assert {name.partition(".")[0] for name in model.checkpoint_state()} == {
        "image_head",
        "text_head",
        "log_logit_scale",
    }
    load = through_disk(model, tmp_path / "run")
    again = load()
    assert same(model, again)
    assert again.fully_frozen("image")
    assert again.fully_frozen("text")

    state = load_file(clip / "open_clip_model.safetensors")
    save_file({**state, "visual.proj": state["visual.proj"] + 1}, clip / "open_clip_model.safetensors")
    with pytest.raises(WeightsChanged, match=r"has other weights now than when the run was trained \(fingerprint "):
        load()
    (clip / "open_clip_model.safetensors").unlink()
    with pytest.raises(SpecError, match="has no weights"):
        load()


def test_partly_unfrozen_towers_need_no_source(tmp_path: Path, clip_folder: Folder, bert_folder: Path) -> None:
    clip, _ = clip_folder()
    bert = tmp_path / "bert"
    shutil.copytree(bert_folder, bert)
    model = DualEncoder(Towers(build_image_encoder(f"clip:x@{clip}"), build_text_encoder(f"bert:{bert}")))
    model.freeze("image", 1)
    model.freeze("text", 1)
    load = through_disk(model, tmp_path / "run")
    shutil.rmtree(clip)
    shutil.rmtree(bert)
    again = load()
    assert same(model, again)
    assert again.frozen == {"image": 1, "text": 1}


def test_random_frozen_towers_are_in_the_checkpoint(tmp_path: Path) -> None:
    images = build_image_encoder("resnet18", image_size=32)
    model = DualEncoder(Towers(images, build_text_encoder("lstm", captions=CAPTIONS)))
    model.freeze("image")
    assert same(model, through_disk(model, tmp_path / "run")())


def test_features_models(tmp_path: Path) -> None:
    model = DualEncoder(Towers(None, None, image_feature_dim=5, text_feature_dim=4), HeadShape(embedding_dim=3))
    again = through_disk(model, tmp_path / "run")()
    x = torch.randn(2, 5)
    assert torch.equal(again.project_images(x), model.project_images(x))


def test_what_does_not_fit() -> None:
    model = DualEncoder(Towers(None, None, image_feature_dim=5, text_feature_dim=4))
    with pytest.raises(ValueError, match=r"5 tensors missing .*, 1 unknown \['other'\]"):
        model.load_checkpoint_state({"other": torch.ones(1)})
    with_text = DualEncoder(Towers(None, build_text_encoder("lstm", captions=CAPTIONS), image_feature_dim=5))
    with pytest.raises(ValueError, match="pass the tokenizer saved with it"):
        dual_encoder_from_config(with_text.to_config())


def test_one_side_is_built_without_the_other_towers_source(tmp_path: Path, clip_folder: Folder) -> None:
    """A text query needs no image tower: nothing of it is read, and its weights in a checkpoint are passed over."""
    clip, _ = clip_folder()
    texts = build_text_encoder("lstm", captions=CAPTIONS)
    for unfreeze in (0, 1):
        model = DualEncoder(Towers(build_image_encoder(f"clip:x@{clip}"), texts), HeadShape(embedding_dim=8))
        model.freeze("image", unfreeze)
        config, state = json.loads(json.dumps(model.to_config())), model.checkpoint_state()
        config["image_encoder"]["spec"] = "clip:x@/no/such/folder"
        again = dual_encoder_from_config(config, tokenizer=texts.tokenizer, sides=("text",))
        again.load_checkpoint_state(state)
        assert again.image_encoder is None
        tokens = texts.tokenizer(CAPTIONS)
        ids, lengths = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths)
        wanted, found = (one.eval().project_texts(one.encode_texts(ids, lengths)) for one in (model, again))
        assert torch.equal(found, wanted)
