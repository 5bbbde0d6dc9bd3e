"""ONNX and torch.export: the graphs give our vectors and priors, by inputs made as preprocessing.json states."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import varalign
from exported import images_of
from varalign.aligner.exports.graphs import Prior
from varalign.canonical.hub_correction import FORMS, QueryBank
from varalign.data.errors import DataError
from varalign.data.images import Preprocess, load_images
from varalign.data.tokens.lexicon import Lexicon
from varalign.data.tokens.tokenizers import load_tokenizer
from varalign.options.config import TrainConfig

TEXTS = ["A red square, left, on blue .", "on white ground a green one at the top", "a"]


@pytest.mark.parametrize("form", FORMS)
def test_the_recorded_prior_is_the_banks(form: str) -> None:
    queries, items = (torch.nn.functional.normalize(torch.randn(count, 6), dim=1) for count in (40, 5))
    bank = QueryBank.of(queries, form)  # type: ignore[arg-type]
    assert torch.allclose(Prior(bank, 7.0)(items), bank.prior(items, 7.0), atol=1e-6)


def test_onnx_and_torch_give_our_vectors_and_priors(voices: Path, image_folder: Path, tmp_path: Path) -> None:
    model = varalign.load(voices, device="cpu")
    made = {to: model.export(tmp_path / to, to=to) for to in ("onnx", "torch")}
    assert all(max(export["differences"].values()) < 1e-4 for export in made.values())
    files = images_of(image_folder, 2)
    source = str(Path(varalign.__file__).parent).encode()
    for to in made:
        folder = tmp_path / to
        assert not any(source in path.read_bytes() for path in folder.rglob("*") if path.is_file()), "a path of ours"
        about = json.loads((folder / "preprocessing.json").read_text())
        kept = {name: about["image"][name] for name in ("size", "mean", "std", "interpolation", "resize")}
        pixels = load_images(files, Preprocess(**kept))[0]
        tokens = load_tokenizer(folder / "tokenizer")(TEXTS)
        lexicon = Lexicon.load(folder / "tokenizer")
        assert lexicon is not None
        inputs = {"input_ids": tokens.ids, "lengths": tokens.lengths, "lexical": lexicon(TEXTS)}
        if to == "onnx":
            sessions = [onnxruntime.InferenceSession(folder / f"{name}_model.onnx") for name in ("vision", "text")]
            images, b = sessions[0].run(None, {"pixel_values": pixels})
            texts, _ = sessions[1].run(None, inputs)
        else:
            vision, text = (torch.export.load(folder / f"{name}_model.pt2").module() for name in ("vision", "text"))
            with torch.no_grad():
                images, b = (part.numpy() for part in vision(torch.from_numpy(pixels)))
                texts = text(*(torch.from_numpy(part) for part in inputs.values()))[0].numpy()
        assert np.allclose(images, model.embed_images(files), atol=1e-4)
        assert np.allclose(texts, model.embed_texts(TEXTS), atol=1e-4)
        moments = model._subject(False).hub.correction
        assert moments is not None
        assert np.allclose(b, moments.image_prior(torch.from_numpy(images)).numpy(), atol=1e-4)


@pytest.mark.long
def test_the_default_encoders_are_recorded_and_two_directions_refused(image_folder: Path, tmp_path: Path) -> None:
    usual = {"data": str(image_folder), "image_size": 32, "epochs": 1, "batch_size": 16, "embedding_dim": 8}
    usual |= {"device": "cpu", "threads": 1, "hub_correction": "off"}
    for bidirectional in (False, True):
        out = tmp_path / f"run-{bidirectional}"
        varalign.train(TrainConfig(**usual, out=str(out), bidirectional=bidirectional), say=lambda _: None)  # type: ignore[arg-type]
        model = varalign.load(out, device="cpu")
        if bidirectional:
            with pytest.raises(DataError, match="--to torch: an LSTM in two directions"):
                model.export(tmp_path / "out", to="torch")
        else:
            assert max(model.export(tmp_path / "out", to="torch")["differences"].values()) < 1e-5


def test_features_have_no_encoders_to_record(features_file: Path, tmp_path: Path) -> None:
    config = {"features": str(features_file), "out": str(tmp_path / "run"), "members": 0, "voices": "closed-form"}
    varalign.train(TrainConfig(**config, device="cpu"), say=lambda _: None)  # type: ignore[arg-type]
    model = varalign.load(tmp_path / "run", device="cpu")
    for to in ("onnx", "torch", "open_clip", "sentence-transformers"):
        with pytest.raises(DataError, match=f"--to {to}: .*features file, so it has no encoders"):
            model.export(tmp_path / "out", to=to)
    folder = model.export(tmp_path / "out")["folder"]
    again = varalign.load(folder, data=features_file, device="cpu")
    assert again.evaluate("test")["i2t_recall@1"] == model.evaluate("test")["i2t_recall@1"]
