"""CLIP's text towers whose config names a tokenizer or a model of transformers: ids and features are open_clip's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from text_models import change_json, write_model
from varalign.data.tokens.tokenizers import load_tokenizer
from varalign.encoders.build import build_text_encoder, text_encoder_from_config
from varalign.encoders.specs import SpecError, WeightsUnavailable

TEXTS = ["A  dog, runs!", "Two cats sit on the mat, with a_red ball &amp; more", "", "snow", "the man and the " * 12]
LAST: dict[str, Any] = {"context_length": 16, "no_causal_mask": True, "pool_type": "last"}
OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "siglip": ("t5", {**LAST, "tokenizer_kwargs": {"clean": "canonicalize"}}),
    "left": ("xlm-roberta", LAST),
    "clipa": ("bert", {**LAST, "tokenizer_kwargs": {"strip_sep_token": True}}),
    "clips": ("bert", {**LAST, "tokenizer_mode": "clips", "tokenizer_kwargs": {"clean": "lower"}}),
    "worldwide": ("xlm-roberta", {"context_length": 20, "pool_type": "eos", "eos_id": 2}),
    "no-projection": ("xlm-roberta", {**LAST, "proj_type": "none", "width": 24}),
    "class-token": ("xlm-roberta", {"context_length": 20, "embed_cls": True, "pad_id": 1}),
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mean": ("xlm-roberta", {}),
    "pooler": ("bert", {"hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"}),
    "state": ("roberta", {"hf_pooler_type": "cls_last_hidden_state_pooler"}),
    "default": ("bert", {"hf_pooler_type": None}),
    "mt5": ("t5", {"hf_proj_type": "linear"}),
    "nllb": ("xlm-roberta", {"hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"}),
}
Made = tuple[Path, Any]


def write_config(folder: Path, name: str, rows: int) -> None:
    """Put the config of a model with an encoder and a decoder in the place of the folder's."""
    import transformers as t

    sizes: dict[str, Any] = {"vocab_size": rows, "d_model": 32}
    if name == "mt5":
        t.MT5Config(**sizes, d_kv=8, d_ff=32, num_layers=2, num_heads=4).save_pretrained(folder)
    if name == "nllb":
        sizes |= {"encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
        sizes |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40}
        t.M2M100Config(**sizes).save_pretrained(folder)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Made]:
    """Writes a folder as open_clip does, with the tokenizer in it; gives it and open_clip's own model."""

    def write(name: str) -> Made:
        is_model = name in MODELS
        family, settings = {**OWN, **MODELS}[name]
        plain, folder = write_model(tmp_path / "plain", family), tmp_path / "clip"
        if name == "clips":
            change_json(plain / "tokenizer_config.json", bos_token="a", eos_token="the")
        if name == "left":
            change_json(plain / "tokenizer_config.json", padding_side="left")
        folder.mkdir()
        for file in plain.glob("*token*"):
            shutil.copy(file, folder)
        rows = 1 + max(json.loads((plain / "tokenizer.json").read_text())["added_tokens"][-1]["id"], 130)
        write_config(plain, name, rows)
        text = {"width": 32, "heads": 2, "layers": 2, "vocab_size": rows, "hf_tokenizer_name": "x/y", **settings}
        if is_model:
            text = {"context_length": 30, **settings, "hf_model_name": str(plain), "hf_tokenizer_name": "x/y"}
        vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
        config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
        torch.manual_seed(0)
        untrained = {"hf_model_pretrained": False} if is_model else {}
        model = open_clip.CustomTextCLIP(24, vision, {**text, **untrained}).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        save_file(
            {key: value.clone() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
        )
        return folder, model

    return write


def features(encoder: Any, texts: list[str]) -> torch.Tensor:
    batch = encoder.tokenizer(texts)
    with torch.no_grad():
        found: torch.Tensor = encoder(torch.from_numpy(batch.ids), torch.from_numpy(batch.lengths))
    return found


@pytest.mark.parametrize("name", [*OWN, *MODELS])
def test_ids_and_features_are_open_clips(tmp_path: Path, make: Callable[..., Made], name: str) -> None:
    folder, model = make(name)
    encoder = build_text_encoder(f"clip:small@{folder}").eval()
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    assert torch.equal(torch.from_numpy(encoder.tokenizer(TEXTS).ids), ids)
    with torch.no_grad():
        wanted = model.encode_text(ids)
    for count in (5, 1, 4):  # all but the last text are short, so that padding is cut where it can be
        torch.testing.assert_close(features(encoder, TEXTS[:count]), wanted[:count], atol=1e-5, rtol=0)
    assert encoder.feature_dim == 24
    assert len(encoder.blocks()) == 2
    encoder.tokenizer.save(tmp_path / "run")
    config, tokenizer = json.loads(json.dumps(encoder.to_config())), load_tokenizer(tmp_path / "run")
    again = text_encoder_from_config(config, tokenizer=tokenizer, load_weights=True)
    assert again.weights_fingerprint() == encoder.weights_fingerprint()
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "plain")
    again = text_encoder_from_config(config, tokenizer=tokenizer, load_weights=False).eval()
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(features(again, TEXTS), wanted, atol=1e-5, rtol=0)
    assert again.weights_fingerprint() == encoder.weights_fingerprint()


def test_the_tokenizer_of_a_tag_comes_from_the_hubs_cache(
    tmp_path: Path, make: Callable[..., Made], nothing_local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without a tokenizer names one of the hub; the message says what to download, the cache answers."""
    folder, _ = make("worldwide")
    tokenizer = build_text_encoder(f"clip:small@{folder}").tokenizer
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(WeightsUnavailable, match=r"huggingface\.co/x/y .*a folder with open_clip_config\.json and the"):
        build_text_encoder(f"clip:small@{folder}")
    import huggingface_hub

    def cached(repo: str, **_: Any) -> str:
        return str(tmp_path / "plain")

    with monkeypatch.context() as patched:
        patched.setattr(huggingface_hub, "snapshot_download", cached)
        assert build_text_encoder(f"clip:small@{folder}").tokenizer == tokenizer
    model = json.loads((folder / "open_clip_config.json").read_text())
    model["model_cfg"]["text_cfg"] |= {"hf_model_name": "some/model"}
    (folder / "open_clip_config.json").write_text(json.dumps(model))
    with pytest.raises(WeightsUnavailable, match=r"huggingface\.co/some/model .*hf_model_name names the folder of"):
        build_text_encoder(f"clip:small@{folder}")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("worldwide", {"tokenizer_kwargs": {"language": "de"}}, r"settings \{.*'language': 'de'.*\} are not known"),
        ("worldwide", {"tokenizer_kwargs": {"clean": "upper"}}, "are not known"),
        ("clipa", {"tokenizer_mode": "clips"}, "name tokens that it has not"),
        ("worldwide", {"vocab_size": 10}, "its text tower knows 10 tokens, the tokenizer makes"),
        (
            "worldwide",
            {"hf_tokenizer_name": None, "tokenizer_kwargs": {"clean": "canonicalize"}},
            "settings that varalign has not",
        ),
    ],
)
def test_what_is_refused(make: Callable[..., Made], name: str, changes: dict[str, Any], message: str) -> None:
    folder, _ = make(name)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= changes
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(SpecError, match=message):
        build_text_encoder(f"clip:small@{folder}", load_weights=False)


@pytest.mark.parametrize("name", ["mean", "siglip"])
def test_a_shorter_text_only_where_padding_is_masked(make: Callable[..., Made], name: str) -> None:
    folder, model = make(name)
    if name == "siglip":
        with pytest.raises(SpecError, match="reads 16 tokens of each text: leave out --max-length"):
            build_text_encoder(f"clip:small@{folder}", max_length=9)
        return
    encoder = build_text_encoder(f"clip:small@{folder}", max_length=9).eval()
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS, context_length=9)
    assert torch.equal(torch.from_numpy(encoder.tokenizer(TEXTS).ids), ids)
    with torch.no_grad():
        torch.testing.assert_close(features(encoder, TEXTS), model.encode_text(ids), atol=1e-5, rtol=0)
