"""The Parquet map: a row for each image and text, read back."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import varalign
from PIL import Image
from varalign.cli import main
from varalign.options.config import TrainConfig

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install '.[parquet]'")


def test_a_map_holds_images_and_texts_with_places_ranks_and_thumbnails(
    searched_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "map.parquet"
    assert main(["embed", str(searched_run), "--out", str(file), "--split", "test", "--device", "cpu"]) == 0
    rows = parquet.read_table(file).to_pylist()
    result = varalign.load(searched_run, device="cpu").evaluate("test")
    assert capsys.readouterr().out == f"{file}: {result['images']} images, {result['texts']} texts\n"
    images, texts = ([row for row in rows if row["modality"] == kind] for kind in ("image", "text"))
    assert (len(images), len(texts)) == (result["images"], result["texts"])
    for way, queries in (("i2t", images), ("t2i", texts)):
        ranks = np.array([row["rank"] for row in queries])
        for k in (1, 5, 10):
            assert np.mean(ranks <= k) == pytest.approx(result[f"{way}_recall@{k}"])
    assert {row["split"] for row in rows} == {"test"} and len({row["id"] for row in rows}) == len(rows)
    assert np.isfinite([[row["x"], row["y"]] for row in rows]).all() and len({row["x"] for row in rows}) > 10
    image = None
    for row in rows:  # an image, then its texts, with its own first caption and thumbnail
        if row["modality"] == "image":
            image = row
            first = rows[rows.index(row) + 1]
            assert first["modality"] == "text" and row["text"] == first["text"]
        assert image is not None and (row["name"], row["image"], row["file"]) == tuple(
            image[name] for name in ("name", "image", "file")
        )
        assert row["file"] == str((image_folder / "Images" / row["name"]).absolute())
    head, packed = images[0]["image"].split(",")
    assert head == "data:image/jpeg;base64"
    assert max(Image.open(io.BytesIO(base64.b64decode(packed))).size) <= 112


def test_of_features_without_pictures_what_is_unknown_is_null(
    features_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"features": str(features_file), "out": str(tmp_path / "run"), "device": "cpu"}
    model = varalign.train(TrainConfig(**options), say=lambda _: None, progress=False).aligner
    written = model.write_embeddings(tmp_path / "map.parquet", split="all")
    rows = parquet.read_table(written["file"]).to_pylist()
    assert (written["images"], written["texts"], len(rows)) == (160, 320, 480)
    assert {row["image"] for row in rows} == {row["file"] for row in rows} == {None}
    assert {row["split"] for row in rows} == {"train", "dev", "test"}
    assert capsys.readouterr().out == ""


def test_without_pyarrow_the_extra_is_named_before_anything_is_embedded(
    searched_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["embed", str(searched_run), "--out", str(tmp_path / "map.parquet")]) == 2
    assert "Parquet files are written by pyarrow: pip install '.[parquet]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
