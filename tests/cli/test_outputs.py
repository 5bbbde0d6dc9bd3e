"""Every command that writes: into a new place, into its own, or with --overwrite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from varalign.cli import main

OPTIONS = "--embedding-dim 8 --hidden-dim 8 --members 1 --epochs 1 --batch-size 60 --device cpu"


@pytest.fixture(scope="module")
def run(features_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on features."""
    folder = tmp_path_factory.mktemp("run") / "run"
    assert main(["train", "--features", str(features_file), *OPTIONS.split(), "--out", str(folder)]) == 0
    return folder


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("error:") == 1
    return said.err


def test_embed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "all.safetensors"
    for name in ("all.safetensors", "all.names.jsonl", "all.texts.jsonl"):
        (tmp_path / name).write_text("mine")
        assert f"{name}: is there already; name another file, or pass --overwrite" in refused(
            capsys, "embed", run, "--out", out
        )
        assert (tmp_path / name).read_text() == "mine" and len(os.listdir(tmp_path)) == 1
        (tmp_path / name).unlink()
    assert main(["embed", str(run), "--out", str(out)]) == 0
    first = out.read_bytes()
    assert "is there already" in refused(capsys, "embed", run, "--out", out, "--split", "test")
    assert out.read_bytes() == first
    assert main(["embed", str(run), "--out", str(out), "--split", "test", "--overwrite"]) == 0
    assert len(out.read_bytes()) < len(first)
    out.unlink()
    (tmp_path / "all.unfinished.txt").write_text("as a killed process leaves it, beside the names")
    assert main(["embed", str(run), "--out", str(out)]) == 0 and out.read_bytes() == first
    assert sorted(os.listdir(tmp_path))[0] == "all.safetensors", "the marker is gone"


def test_visualize(run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["visualize", str(run), "--perplexities", "5", "--pairs", "10"]
    before = sorted(os.listdir(image_folder / "Images"))
    for place in (image_folder / "Images", run):
        assert "holds what this command did not write" in refused(capsys, *words, "--out", place)
    assert sorted(os.listdir(image_folder / "Images")) == before
    for place in (tmp_path / "new", tmp_path / "new", run / "pictures"):
        assert main([*words, "--out", str(place)]) == 0
    (tmp_path / "new" / "mine.png").write_text("mine")
    assert "(mine.png)" in refused(capsys, *words, "--out", tmp_path / "new")
    assert main([*words, "--out", str(tmp_path / "new"), "--overwrite"]) == 0
    assert (tmp_path / "new" / "mine.png").read_text() == "mine"


def test_diagnose(features_file: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["diagnose", "--features", str(features_file)]
    before = sorted(os.listdir(image_folder))
    assert "holds what this command did not write" in refused(capsys, *words, "--out", image_folder)
    assert sorted(os.listdir(image_folder)) == before
    (tmp_path / "pairs.csv").write_text("mine")
    assert "(pairs.csv)" in refused(capsys, *words, "--out", tmp_path)
    for more in (["--overwrite"], []):
        assert main([*words, "--out", str(tmp_path), *more]) == 0
    assert sorted(os.listdir(tmp_path)) == ["diagnosis.html", "pairs.csv"]
    (tmp_path / "diagnosis.html").rename(
        tmp_path / "unfinished.txt"
    )  # as a process leaves it that is killed between both
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert sorted(os.listdir(tmp_path)) == ["diagnosis.html", "pairs.csv"]


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "in.pt")
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    assert "is there already" in refused(capsys, "convert", tmp_path / "in.pt", out)
    assert out.read_text() == "mine"
    assert main(["convert", str(tmp_path / "in.pt"), str(out), "--overwrite"]) == 0
    assert out.read_bytes() != b"mine"


def test_study(features_file: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study", "--features", features_file, "--axis", "fraction", "100", "--report"]
    before = sorted(os.listdir(image_folder))
    assert "holds what this command did not write" in refused(capsys, *words, "--out", image_folder)
    assert sorted(os.listdir(image_folder)) == before


def test_train_and_the_sample(run: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = f"train --features f --out {image_folder}".split()
    assert "is not empty and holds no run; name a new folder" in refused(capsys, *features)
    assert "holds a run already" in refused(capsys, *features[:-1], run)
    assert "holds no built-in sample" in refused(capsys, "data", "sample", image_folder)
