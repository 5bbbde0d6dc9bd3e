"""varalign's own format: loads anywhere, holds no data, keeps scores and corrections."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import varalign
from exported import Train, images_of
from huggingface_hub import ModelCard
from varalign.cli import main
from varalign.data.errors import DataError
from varalign.data.features import load_features, save_features
from varalign.options.config import TrainConfig


def test_an_export_gives_the_same_vectors_without_its_encoders(
    voices: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(voices), str(tmp_path / "out"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert max(made["differences"].values()) < 1e-6 and made["bytes"] > 0
    folder = tmp_path / "moved"
    shutil.move(tmp_path / "out", folder)
    ours, theirs = varalign.load(voices, device="cpu"), varalign.load(folder, device="cpu")
    files = images_of(image_folder)
    text = (folder / "config.json").read_text() + (folder / "README.md").read_text()
    assert str(image_folder) not in text and "/tmp" not in text and str(voices.parent) not in text
    assert np.array_equal(ours.embed_images(files), theirs.embed_images(files))
    assert np.array_equal(ours.embed_texts(["a red square"]), theirs.embed_texts(["a red square"]))
    form = theirs.hub.correction
    assert form is not None and form.form == "variance" and "alone" in theirs.hub.line
    by_moments = ours.evaluate("test", hub_form="variance")
    measured = varalign.load(folder, data=image_folder, device="cpu").evaluate("test")
    assert measured["t2i_recall@1"] == by_moments["t2i_recall@1"] and measured["hub_correction"] == "train, variance"
    with pytest.raises(DataError, match="no data of its own: name some by --data"):
        theirs.evaluate("test")
    assert not [file for file in folder.rglob("*") if file.suffix in (".pt", ".pth", ".bin", ".pkl")]


def test_the_bank_is_given_away_only_where_it_is_asked_for(voices: Path, tmp_path: Path) -> None:
    model = varalign.load(voices, device="cpu")
    without, with_it = (
        Path(model.export(tmp_path / name, with_bank=wanted)["folder"])
        for name, wanted in (("without", False), ("with", True))
    )
    assert model.hub.correction is not None
    query = model.hub.correction.texts.tensors["queries"][0].numpy().tobytes()
    assert query in (with_it / "bank.safetensors").read_bytes()
    assert not [file for file in without.rglob("*") if file.is_file() and query in file.read_bytes()]
    assert "embeddings of queries" in (with_it / "README.md").read_text()
    assert "no embedding of a training pair" in (without / "README.md").read_text()
    again = varalign.load(with_it, device="cpu")
    assert np.array_equal(again.encode_document(["a b"]), model.encode_document(["a b"]))


def test_the_card_has_a_header_that_the_hub_reads_and_the_tables_rows(voices: Path, tmp_path: Path) -> None:
    folder = Path(varalign.load(voices, device="cpu").export(tmp_path / "out")["folder"])
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "varalign" and card.data.pipeline_tag == "feature-extraction"
    assert len(card.data.eval_results) == 6 and "95 % interval" in card.content
    for part in ("## How to use it", "## Data", "## Recipe", "## Results", "## Hub correction", "## Limits", "chance"):
        assert part in card.content
    assert "lexical" in card.content


def test_adapters_are_merged_and_a_whole_trained_model_is_exported(trained: Train, tmp_path: Path) -> None:
    run = trained(lora=2, epochs=1, voices="none", start="random", head="linear")
    model = varalign.load(run, device="cpu")
    folder = model.export(tmp_path / "out")["folder"]
    again = varalign.load(folder, device="cpu")
    assert again.model.adapters == {} and model.model.adapters
    assert np.allclose(model.embed_texts(["a dog"]), again.embed_texts(["a dog"]), atol=1e-6)
    twice = varalign.load(again.export(tmp_path / "twice")["folder"], device="cpu")
    assert (tmp_path / "twice" / "README.md").read_text() == (tmp_path / "out" / "README.md").read_text()
    assert np.array_equal(twice.embed_texts(["a dog"]), again.embed_texts(["a dog"]))


def test_zero_shot_has_no_run_to_export(towers: dict[str, str], image_folder: Path, tmp_path: Path) -> None:
    from varalign.aligner.load import zero_shot

    with pytest.raises(DataError, match="has no run"):
        zero_shot(towers["clip"], image_folder, device="cpu").export(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_card_of_a_model_of_features_has_code_that_runs(features_file: Path, tmp_path: Path) -> None:
    data = load_features(features_file)
    words = [f"{['red', 'blue', 'green'][row % 3]} {['dog', 'cat'][row % 2]} {row}" for row in range(320)]
    save_features(tmp_path / "worded.safetensors", replace(data, texts=words), dtype="float32")
    options: dict[str, Any] = {"voices": "lexical", "out": str(tmp_path / "run"), "device": "cpu"}
    varalign.train(TrainConfig(features=str(tmp_path / "worded.safetensors"), **options), say=lambda _: None)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "given")]) == 0
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "given" / "README.md").read_text(), re.DOTALL)
    known: dict[str, Any] = {"image_features": data.image_features, "text_features": data.text_features}
    exec(code.replace("PATH/OF/THIS/FOLDER", str(tmp_path / "given")), known | {"captions": words})
    assert main(["eval", str(tmp_path / "given"), "--data", str(tmp_path)]) == 2
