"""An encoder kind is a file and a row: nothing else knows its name."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from varalign.data.tokens.tokenizers import word_tokenizer
from varalign.encoders import specs
from varalign.encoders.base import TextEncoder, TextOptions
from varalign.encoders.build import build_image_encoder, build_text_encoder
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.saved import dual_encoder_from_config
from varalign.encoders.specs import EncoderKind, EncoderSpec, SpecError
from varalign.encoders.towers import Towers

CAPTIONS = ["a dog runs", "two cats"]


class BagOfWords(TextEncoder):
    """The sum of a text's word embeddings."""

    def __init__(self, spec: EncoderSpec, options: TextOptions) -> None:
        super().__init__()
        self.spec, self.has_source, self.feature_dim = str(spec), False, int(spec.name)
        self.tokenizer = options.tokenizer or word_tokenizer(options.captions or [])
        self.words = nn.EmbeddingBag(self.tokenizer.vocabulary_size, self.feature_dim, mode="sum")

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        return self.words(ids)

    def architecture(self) -> dict[str, Any]:
        return {"kind": "bag", "tokenizer": self.tokenizer.fingerprint}


@pytest.fixture
def bag(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("bag_of_words")
    module.BagOfWords = BagOfWords  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bag_of_words", module)
    row = EncoderKind("bag", "text", "bag_of_words:BagOfWords", ("bag:WIDTH",))
    monkeypatch.setattr(specs, "KINDS", (*specs.KINDS, row))


def test_a_new_kind_is_built_saved_and_built_again(bag: None) -> None:
    model = DualEncoder(Towers(None, build_text_encoder("bag:5", captions=CAPTIONS), image_feature_dim=3))
    assert model.text_feature_dim == 5 and model.text_encoder is not None
    tokens = model.text_encoder.tokenizer(CAPTIONS)
    again = dual_encoder_from_config(json.loads(json.dumps(model.to_config())), tokenizer=model.text_encoder.tokenizer)
    again.load_checkpoint_state(model.checkpoint_state())
    ids, lengths = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths)
    assert torch.equal(again.encode_texts(ids, lengths), model.encode_texts(ids, lengths))


def test_a_kind_is_of_its_side_and_takes_what_its_forms_say(bag: None) -> None:
    for text, side in (("bag:5", "image"), ("bag", "text"), ("bag@file", "text")):
        with pytest.raises(SpecError, match=f"unknown {side} encoder '{text}'"):
            specs.parse_spec(text, side)  # type: ignore[arg-type]


@pytest.mark.parametrize("row", specs.KINDS, ids=lambda row: f"{row.side} {row.name}")
def test_every_row_names_a_class_in_a_file(row: EncoderKind) -> None:
    from varalign.encoders.build import _class_of

    assert issubclass(_class_of(row.place), nn.Module)
    assert all(form.startswith(row.name) for form in row.forms)


@pytest.mark.parametrize(("name", "size"), [("efficientformer_l1", 96), ("crossvit_tiny_240", 112)])
def test_an_image_size_that_fails_in_the_forward_pass_is_refused_when_the_model_is_built(name: str, size: int) -> None:
    with pytest.raises(SpecError, match=f"this model takes no images of {size} x {size} pixels: The size of tensor"):
        build_image_encoder(f"timm:{name}", image_size=size)


def test_fewer_pixels_than_a_patch_are_refused(clip_folder: Callable[..., tuple[Path, Any]]) -> None:
    folder, _ = clip_folder()
    with pytest.raises(SpecError, match="its position embeddings cannot be resampled to this image size"):
        build_image_encoder(f"clip:ViT-tiny@{folder}", image_size=7)


def test_a_timm_file_is_resampled_to_another_image_size(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_vit").eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    encoder = build_image_encoder(f"timm:test_vit@{tmp_path / 'w.pth'}", image_size=96).eval()
    model.set_input_size((96, 96))
    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        wanted = model.forward_head(model.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(encoder(pixels), wanted, atol=1e-5, rtol=0)
