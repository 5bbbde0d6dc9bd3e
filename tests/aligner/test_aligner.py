"""A trained model in use."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import varalign
from PIL import Image
from safetensors.numpy import load_file
from varalign.aligner.evaluate import embed_split
from varalign.cli import main
from varalign.data.errors import DataError
from varalign.data.readers.reading import Reading
from varalign.encoders import saved
from varalign.inputs import assemble as sources
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


def test_a_run_is_measured_on_captions_named_elsewhere(run: Path, image_folder: Path, tmp_path: Path) -> None:
    rows = (image_folder / "captions.txt").read_text().splitlines()
    lines = [json.dumps(dict(zip(("img", "title"), row.split(",", 1), strict=True))) for row in rows if ".jpg," in row]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    own, other = (
        varalign.load(run, device="cpu", reading=reading).evaluate("test")
        for reading in (Reading(), Reading(captions=str(tmp_path / "a.jsonl")))
    )
    assert own == other and own["images"] == 10


def test_embed_writes_the_features_of_unpaired_images_and_texts(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, texts, pool = tmp_path / "more.safetensors", tmp_path / "texts.txt", tmp_path / "pool"
    pool.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pool / f"{number}.png")
    texts.write_text("A red dog\nA blue cat\n")
    words = ["embed", str(run), "--features", "--out", str(out), "--unpaired-texts", str(texts)]
    assert main([*words, "--unpaired-images", str(pool), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(out), "images": 2, "texts": 2}
    assert {name: len(rows) for name, rows in load_file(out).items()} == {"image_features": 2, "text_features": 2}
    assert out.with_name("more.texts.jsonl").read_text() == '"A red dog"\n"A blue cat"\n'
    assert out.with_name("more.names.jsonl").read_text() == '"0.png"\n"1.png"\n'
    assert main(["embed", str(run), "--out", str(out), "--overwrite", "--unpaired-texts", str(texts)]) == 2
    assert "go with --features" in capsys.readouterr().err


def test_eval_visualize_embed_and_search_by_command(
    run: Path, tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(run), "--split", "test", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 10 and result["texts"] == 20 and 0 <= result["i2t_recall@1"] <= 1
    low, high = result["intervals"]["t2i_recall@10"]
    assert low <= result["t2i_recall@10"] <= high
    assert main(["eval", str(run), "--noise", "drop-words=0.5,blur=1"]) == 0
    table = capsys.readouterr().out
    assert "chance" in table and "95 % interval" in table and "Of 10 images one is 10.0 points" in table

    assert main(["visualize", str(run), "--perplexities", "2", "3", "--out", str(tmp_path / "pictures")]) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {"tsne_perplexity_2.png", "tsne_perplexity_3.png"} < {file.name for file in files}
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in files)
    assert main(["visualize", str(run), "--perplexities", "20"]) == 2
    assert "20" in capsys.readouterr().err

    assert main(["embed", str(run), "--out", str(tmp_path / "a.safetensors")]) == 0
    stored = load_file(tmp_path / "a.safetensors")
    assert stored["image_embeddings"].shape == (80, 16) and stored["text_embeddings"].shape == (160, 16)
    assert main(["embed", str(run), "--out", str(tmp_path / "b.npz"), "--split", "dev"]) == 0
    assert np.load(tmp_path / "b.npz")["image_embeddings"].shape == (10, 16)
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
    kept = run / "search" / "all-images.safetensors"
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


def test_a_text_query_builds_no_image_tower_and_looks_at_no_image(
    run: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = varalign.load(run, device="cpu").search_images("a red square on blue", top=3)
    looked: list[str] = []
    built: list[str] = []
    stat, encoder = os.stat, saved.image_encoder_from_config

    def counted(path: Any, *rest: Any, **options: Any) -> os.stat_result:
        looked.append(str(path))
        return stat(path, *rest, **options)

    monkeypatch.setattr(os, "stat", counted)
    monkeypatch.setattr(saved, "image_encoder_from_config", lambda *_, **__: built.append("image") or encoder(*_, **__))
    model = varalign.load(run, device="cpu")
    assert model.search_images("a red square on blue", top=3) == first
    assert model.search_images("a red square on blue", top=1) == first[:1]
    assert not built and "model" not in vars(model) and "parts" not in vars(model)
    assert str(image_folder / "Images") in looked and sum(path.endswith(".jpg") for path in looked) == 4, (
        "the hits alone"
    )
    assert model.search_captions(image_folder / "Images" / "000.jpg") and built == ["image"]


def test_a_search_embeds_only_the_side_that_is_asked_for(
    run: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(run / "search", ignore_errors=True)
    whole = varalign.load(run, device="cpu")
    found = embed_split(whole.parts, whole.rows("all"), every_caption=True)
    query, file = "a red square on blue", image_folder / "Images" / "000.jpg"
    by_text = whole.embed_texts([query]) @ found.images.numpy().T
    by_image = whole.embed_images([file]) @ found.texts.numpy().T
    for other, search, scores in (
        ("_text_source", lambda model: model.search_images(query), by_text),
        ("_image_source", lambda model: model.search_captions(file), by_image),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(sources, other, None)  # calling it fails
            hits = search(varalign.load(run, device="cpu"))
        assert [hit["score"] for hit in hits] == pytest.approx(np.sort(scores[0])[::-1][:5].tolist(), abs=1e-4)
    assert {path.stem for path in (run / "search").iterdir()} == {"all-images", "all-texts"}


def test_a_gallery_is_made_anew_where_captions_or_images_changed(image_folder: Path, run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(image_folder, data)
    kept = run / "search" / "test-images.safetensors"

    def made() -> bool:
        before = kept.read_bytes() if kept.exists() else b""
        varalign.load(run, data=data, device="cpu").search_images("red", split="test", top=10)
        return kept.read_bytes() != before

    assert made() and not made()
    name = (data / "Flickr_8k.testImages.txt").read_text().split()[0]
    captions = (data / "captions.txt").read_text().replace(f"{name},on ", f"{name},here on ")
    (data / "captions.txt").write_text(captions)
    assert made() and not made()
    (data / "Images" / "new.jpg").write_bytes((data / "Images" / "000.jpg").read_bytes())
    (data / "Images" / "new.jpg").replace(data / "Images" / name)
    assert made() and not made()
    (data / "Images" / name).write_bytes((data / "Images" / "001.jpg").read_bytes())
    assert made() and not made(), "an image that is shown was overwritten in place"


def test_queries_and_galleries_are_embedded_in_one_arithmetic(
    run: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text of the data, embedded as a query, is its own embedding in the gallery to the bit, in bfloat16 too."""
    for precision in ("fp32", "bf16"):
        model = varalign.load(run, device="cpu")
        model.config = dataclasses.replace(model.config, precision=precision)
        found = embed_split(model.parts, model.rows("test"))
        data = model.parts.data
        captions = [data.captions[row] for row in found.captions.tolist()]
        queries = model.embed_texts(captions)
        assert np.array_equal(queries, found.texts.numpy())
        files = [data.image_paths[row] for row in found.rows.tolist()]
        assert np.allclose(model.embed_images(files), found.images.numpy(), atol=1e-6 if precision == "fp32" else 0.02)


def test_a_collapsed_space_is_not_drawn(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = varalign.load(run, device="cpu")
    with torch.no_grad():
        for head in (model.model.image_head, model.model.text_head):
            for parameter in head.parameters():
                parameter.mul_(1e-9).add_(1.0)  # every output the same but for rounding
    assert model.visualize([3], out=tmp_path / "pictures") == []
    assert "are one point but for rounding" in capsys.readouterr().err and not (tmp_path / "pictures").exists()


def test_epochs_are_those_of_the_checkpoint(run: Path) -> None:
    steps = sorted((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    epochs = [varalign.load(run, checkpoint=path.name, device="cpu").epochs for path in steps]
    assert epochs == sorted(epochs) and epochs[0] < epochs[-1] == 4
    assert varalign.load(run, checkpoint="last", device="cpu").epochs == 4


def test_copies_of_an_image_are_not_counted_as_unreadable(run: Path, image_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(image_folder, data)
    one, other, bad = (data / "Flickr_8k.testImages.txt").read_text().split()[:3]
    (data / "Images" / other).write_bytes((data / "Images" / one).read_bytes())
    found = varalign.load(run, data=data, device="cpu").evaluate("test")
    assert found["images"] == 9 and found["texts"] == 20 and "unreadable" not in found
    (data / "Images" / bad).write_bytes(b"no image")
    model = varalign.load(run, data=data, device="cpu")
    model.config = dataclasses.replace(model.config, max_bad=0.5)
    found = model.evaluate("test")
    assert found["images"] == 8 and found["unreadable"] == 1


def test_a_file_that_is_no_image_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no")
    with pytest.raises(DataError, match=r"a\.jpg"):
        varalign.load(run, device="cpu").embed_images([tmp_path / "a.jpg"])
