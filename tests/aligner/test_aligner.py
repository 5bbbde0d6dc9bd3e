"""A trained model in use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import varalign
from safetensors.numpy import load_file
from varalign.cli import main
from varalign.data.errors import DataError
from varalign.options.config import TrainConfig


@pytest.fixture(scope="module")
def run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "squares"
    varalign.train(
        TrainConfig(
            data=str(image_folder),
            image_size=32,
            out=str(out),
            epochs=4,
            batch_size=16,
            embedding_dim=16,
            device="cpu",
            threads=1,
        ),
        say=lambda _: None,
    )
    return out


def test_embeddings_of_files_and_of_the_split_agree(run: Path, image_folder: Path) -> None:
    model = varalign.load(run, device="cpu")
    names = (image_folder / "Flickr_8k.testImages.txt").read_text().split()
    images = model.embed_images([image_folder / "Images" / name for name in names])
    texts = model.embed_texts(["A red square, left, on blue .", ""])
    assert images.shape == (10, 16) and texts.shape == (2, 16)
    assert np.linalg.norm(images, axis=1) == pytest.approx(1, abs=1e-5)
    scores, rows = model.rank(texts[:1], images, 3)
    expected = sorted((images @ texts[0]).tolist(), reverse=True)[:3]
    assert scores[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert rows.shape == (1, 3)


def test_eval_visualize_embed_and_search_by_command(
    run: Path, tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(run), "--split", "test", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 10 and result["texts"] == 20 and 0 <= result["i2t_recall@1"] <= 1
    assert main(["eval", str(run), "--noise", "drop-words=0.5,blur=1"]) == 0
    assert "chance" in capsys.readouterr().out

    assert main(["visualize", str(run), "--perplexities", "2", "3", "--out", str(tmp_path / "pictures")]) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {"tsne_perplexity_2.png", "tsne_perplexity_3.png"} < {file.name for file in files}
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in files)
    assert main(["visualize", str(run), "--perplexities", "20"]) == 2
    assert "20" in capsys.readouterr().err

    assert main(["embed", str(run), "--out", str(tmp_path / "a.safetensors")]) == 0
    stored = load_file(tmp_path / "a.safetensors")
    assert stored["image_embeddings"].shape == (80, 16) and stored["text_embeddings"].shape == (160, 16)
    assert main(["embed", str(run), "--out", str(tmp_path / "a.npz"), "--split", "dev"]) == 0
    assert np.load(tmp_path / "a.npz")["image_embeddings"].shape == (10, 16)
    assert main(["embed", str(run), "--features", "--out", str(tmp_path / "f.safetensors")]) == 0
    capsys.readouterr()
    assert (
        main(
            [
                "train",
                "--features",
                str(tmp_path / "f.safetensors"),
                "--epochs",
                "1",
                "--batch-size",
                "16",
                "--out",
                str(tmp_path / "frozen"),
                "--device",
                "cpu",
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["epochs"] == 1

    assert main(["search", str(run), "a red square on blue", "--top", "2", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)
    assert len(hits) == 2 and hits[0]["score"] >= hits[1]["score"]
    kept = run / "search" / "all.safetensors"
    first = kept.stat().st_mtime_ns
    assert main(["search", str(run), "a red square on blue", "--top", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == hits and kept.stat().st_mtime_ns == first, "embedded once"
    kept.write_bytes(kept.read_bytes()[:100])
    assert main(["search", str(run), "a red square on blue", "--top", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == hits and kept.stat().st_mtime_ns > first, "made anew, being damaged"
    assert main(["search", str(run), " "]) == 2
    assert "the text is empty" in capsys.readouterr().err
    assert main(["search", str(run), "--image", "nowhere.jpg"]) == 2
    assert capsys.readouterr().err.count("nowhere.jpg") == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "image_names.txt").write_text("b.jpg\n")
    assert main(["embed", str(run), "--features", "--out", str(tmp_path / "other" / "f.safetensors")]) == 2
    assert "image_names.txt" in capsys.readouterr().err
    assert (tmp_path / "other" / "image_names.txt").read_text() == "b.jpg\n"
    assert main(["visualize", str(run), "--seed", "-1"]) == 2
    assert "seed is -1" in capsys.readouterr().err
    assert main(["search", str(run), "--image", str(image_folder / "Images" / "000.jpg"), "--top", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_what_a_model_of_features_cannot_do(features_file: Path, tmp_path: Path) -> None:
    varalign.train(
        TrainConfig(features=str(features_file), out=str(tmp_path / "run"), epochs=1, batch_size=16, device="cpu"),
        say=lambda _: None,
    )
    model = varalign.load(tmp_path / "run", device="cpu")
    with pytest.raises(DataError, match="no text encoder"):
        model.embed_texts(["a"])
    with pytest.raises(DataError, match="no image encoder"):
        model.embed_images(["a.jpg"])
    assert model.visualize([3], out=tmp_path / "pictures")


def test_a_file_that_is_no_image_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no")
    with pytest.raises(DataError, match=r"a\.jpg"):
        varalign.load(run, device="cpu").embed_images([tmp_path / "a.jpg"])
