"""Small checkpoints in the real formats, made by the libraries that own the formats: fixtures for any test."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORDS = [
    "a",
    "the",
    "dog",
    "dogs",
    "run",
    "##s",
    "##ning",
    "two",
    "cats",
    "sit",
    "on",
    "mat",
    "in",
    "snow",
    "red",
    "ball",
    ".",
    ",",
    "!",
    "man",
    "woman",
    "with",
    "black",
    "white",
    "##y",
]


CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": False,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3},
}


def write_clip(folder: Path, **changes: Any) -> Any:
    """Write a folder as open_clip pushes it to the hub; returns open_clip's own model of those weights."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = {**CLIP_CONFIG, **changes}
    model = open_clip.CLIP(**config).eval()
    # Random positions and norms, so that none of them could be dropped unseen.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir()
    preprocess = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model


def write_bert(folder: Path) -> None:
    """Write a small random BERT as transformers saves it, with a vocabulary."""
    import torch
    from transformers import BertConfig, BertModel

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = list(dict.fromkeys(vocabulary))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=48,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 48})
    )


@pytest.fixture
def clip_config() -> dict[str, Any]:
    """A CLIP of a few thousand weights, but for its real vocabulary."""
    return copy.deepcopy(CLIP_CONFIG)


@pytest.fixture
def clip_folder(tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Makes a folder as open_clip pushes it to the hub; returns it with open_clip's own model of those weights."""

    def make(name: str = "clip", **changes: Any) -> tuple[Path, Any]:
        return tmp_path / name, write_clip(tmp_path / name, **changes)

    return make


@pytest.fixture
def nothing_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and hubs at an address on this machine where nothing listens."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random BERT as transformers saves it, with a vocabulary."""
    folder: Path = tmp_path_factory.mktemp("bert")
    write_bert(folder)
    return folder
