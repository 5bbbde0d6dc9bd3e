"""The hub correction of a run: chosen after training, kept, and used wherever the run scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import varalign
from safetensors.numpy import load_file, save_file
from varalign.canonical.hub_correction import corrected_ranks
from varalign.cli import main
from varalign.data.features import FeatureSet, load_features, save_features
from varalign.evaluation.retrieval import recalls
from varalign.options.config import TrainConfig

KEYS = ("i2t_recall@1", "t2i_recall@1")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 images whose features say beside the topic how popular an image or a text is: popular ones are hubs."""
    random = np.random.default_rng(0)
    topic = random.normal(size=(240, 12))
    owner = np.repeat(np.arange(240), 2)
    popular = random.normal(size=(240, 1)), random.normal(size=(480, 1))
    level = np.full((240, 1), 4.0) + 0.5 * random.normal(size=(240, 1))
    images = np.concatenate([topic + 0.6 * random.normal(size=topic.shape), 2 * popular[0], level], axis=1)
    texts = np.concatenate([topic[owner] + 0.6 * random.normal(size=(480, 12)), level[owner], 2 * popular[1]], axis=1)
    split = np.repeat([0, 1, 2], [120, 60, 60]).astype(np.int8)
    path = tmp_path_factory.mktemp("features") / "hubs.safetensors"
    made = FeatureSet(images.astype(np.float32), texts.astype(np.float32), owner, split, np.arange(240))
    save_features(path, made, dtype="float32")
    return path


RECORDED = ("ridge", "text_ridge", "power", "embedding_dim", "voices", "epochs", "hub_correction")


def trained(features: Path, out: Path, said: list[str], **options: Any) -> varalign.training.run.TrainResult:
    given = {"epochs": 2, "batch_size": 40, "members": 0, "device": "cpu", "hub_correction": "train", **options}
    return varalign.train(TrainConfig(features=str(features), out=str(out), **given), say=said.append)


def test_a_run_keeps_its_correction_and_scores_by_it(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    run = tmp_path / "run"
    result = trained(features, run, said)
    assert "hub correction by 180 images and 360 captions of train and dev" in said
    assert result.test["hub_correction"] == "train, bank"
    assert "  without hub correction" in result.table()
    model = varalign.load(run, device="cpu")
    correction = model.hub.correction
    assert correction is not None and correction.source == "train"
    whole = model.evaluate("test")
    assert {key: whole[key] for key in KEYS} == {key: result.test[key] for key in KEYS}

    assert main(["embed", str(run), "--split", "test", "--out", str(tmp_path / "e.safetensors")]) == 0
    stored = {name: torch.from_numpy(array) for name, array in load_file(tmp_path / "e.safetensors").items()}
    images, texts = stored["image_embeddings"], stored["text_embeddings"]
    torch.testing.assert_close(correction.image_prior(images), stored["image_prior"])
    torch.testing.assert_close(correction.text_prior(texts), stored["text_prior"])
    pairs = torch.stack([torch.arange(len(texts)), stored["text_image_ids"]], dim=1)
    by_hand = recalls(*corrected_ranks(images, texts, pairs, correction))
    assert {key: by_hand[key] for key in KEYS} == {key: whole[key] for key in KEYS}

    capsys.readouterr()
    assert main(["eval", str(run), "--hub-correction", "off", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["hub_correction"] is None and "uncorrected" not in plain
    assert {key: plain[key] for key in KEYS} == {key: whole["uncorrected"][key] for key in KEYS}
    assert whole["uncorrected"]["intervals"] == plain["intervals"] != whole["intervals"]
    assert main(["eval", str(run), "--hub-correction", "gallery", "--hub-form", "variance", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hub_correction"] == "gallery, variance (transductive)"


def test_the_bank_file_is_checked_and_belongs_to_the_best_weights(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    trained(features, run, [], hub_form="variance")
    bank = run / "bank.safetensors"
    kept = bank.read_bytes()
    assert {"images.covariance", "images.mean", "texts.covariance", "texts.mean", "about"} < load_file(bank).keys()
    step = next(path.name for path in (run / "checkpoints").glob("step-*"))
    assert main(["eval", str(run), "--device", "cpu", "--checkpoint", step]) == 0
    assert bank.read_bytes() == kept
    bank.write_bytes(kept[:-40] + bytes(40))
    capsys.readouterr()
    assert main(["eval", str(run), "--device", "cpu"]) == 0
    assert f"{bank}: damaged" in capsys.readouterr().err
    assert bank.read_bytes() == kept


def test_auto_judges_on_dev(features: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = trained(features, tmp_path / "run", said, hub_correction="auto", settings="dev")
    line = next(line for line in said if line.startswith("hub correction"))
    assert "of train: dev has mean R@1" in line
    assert line.endswith(", used") == (result.test["hub_correction"] is not None)


def test_a_cross_validation_judges_where_dev_is_small(features: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = trained(features, tmp_path / "run", said, hub_correction="auto")
    line = next(line for line in said if line.startswith("hub correction"))
    assert "180 images and 360 captions of train and dev: cross-validation has mean R@1" in line
    assert line.endswith(", used") == (result.test["hub_correction"] is not None)
    assert result.voices is not None and abs(sum(result.voices.values()) - 1) < 1e-6
    assert result.epochs == 0 and "\nvoices: " in result.table()
    options = json.loads((tmp_path / "run" / "config.json").read_text())["options"]
    again = trained(features, tmp_path / "again", said, **{name: options[name] for name in RECORDED})
    assert again.voices == result.voices and again.test["loss"] == result.test["loss"]


def test_few_dev_images_judge_nothing(features: Path, tmp_path: Path) -> None:
    data = load_features(features)
    data.split[130:180] = -1
    save_features(tmp_path / "few.safetensors", data, dtype="float32")
    said: list[str] = []
    result = trained(tmp_path / "few.safetensors", tmp_path / "run", said, hub_correction="auto", settings="dev")
    assert "hub correction: none, 10 dev images are too few to judge it by" in said
    assert result.test["hub_correction"] is None


def pool_of(features: Path, tmp_path: Path, *sides: str, count: int = 130) -> Path:
    """A features file of rows like those of the run, and of none of them."""
    data, random = load_features(features), np.random.default_rng(1)
    rows = {side: getattr(data, side)[:count] for side in sides}
    rows = {side: row + 2 * random.normal(size=row.shape).astype(np.float32) for side, row in rows.items()}
    save_file(rows, str(tmp_path / "pool.safetensors"))
    return tmp_path / "pool.safetensors"


def test_a_file_is_the_bank_of_the_sides_that_it_has(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    pool = pool_of(features, tmp_path, "text_features")
    result = trained(features, tmp_path / "run", said, hub_correction=str(pool))
    assert "hub correction by 180 images and 130 captions of pool.safetensors and of train (images alone)" in said
    assert result.test["hub_correction"] == "pool.safetensors, bank"
    model, correction = result.aligner.model, result.aligner.hub.correction
    assert correction is not None and correction.tau == pytest.approx(0.7 * float(model.evaluation_scale))
    with torch.no_grad():
        wanted = model.project_texts(torch.from_numpy(load_file(pool)["text_features"]))
    torch.testing.assert_close(correction.texts.tensors["queries"], wanted)
    capsys.readouterr()
    pool.unlink()  # the run keeps its bank
    assert main(["eval", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["t2i_recall@1"] == result.test["t2i_recall@1"]
    assert main(["eval", str(tmp_path / "run"), "--hub-correction", str(pool)]) == 2
    assert main(["eval", str(tmp_path / "run"), "--hub-correction", "trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "run"), "--hub-correction", "unpaired"]) == 2
    assert "nothing is unpaired; name it by --unpaired-images or --unpaired-texts" in capsys.readouterr().err


def test_what_is_unpaired_is_the_bank_that_is_judged(features: Path, tmp_path: Path) -> None:
    pool = str(pool_of(features, tmp_path, "image_features", "text_features"))
    for settings, judged in (("cv", "cross-validation"), ("dev", "dev")):
        said: list[str] = []
        options = {"unpaired_images": pool, "unpaired_texts": pool, "hub_correction": "auto", "settings": settings}
        trained(features, tmp_path / settings, said, **options)
        line = next(line for line in said if line.startswith("hub correction"))
        assert line.startswith(f"hub correction by 130 images and 130 captions of unpaired: {judged} has mean R@1")


@pytest.mark.parametrize("settings", ["cv", "dev"])
def test_a_few_unpaired_texts_take_no_banks_place(settings: str, features: Path, tmp_path: Path) -> None:
    """Fewer than half of the training captions."""
    pool = str(pool_of(features, tmp_path, "text_features", count=119))
    said: list[str] = []
    trained(features, tmp_path / "run", said, unpaired_texts=pool, hub_correction="auto", settings=settings)
    assert "of train" in next(line for line in said if line.startswith("hub correction"))


def test_a_form_that_is_none_is_refused(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(features, tmp_path / "run", [])
    assert main(["eval", str(tmp_path / "run"), "--hub-form", "bnak"]) == 2
    assert "--hub-form 'bnak' is not known" in capsys.readouterr().err


def test_search_takes_the_prior_from_the_similarity(image_folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=str(image_folder), image_size=32, out=str(tmp_path / "run"), epochs=1, batch_size=16)
    config = TrainConfig(**{**config.as_dict(), "device": "cpu", "threads": 1, "hub_correction": "dev"})
    model = varalign.train(config, say=lambda _: None).aligner
    correction = model.hub.correction
    assert correction is not None
    query = "A red square, left, on blue ."
    found = model.search_images(query, top=3)
    files = [image_folder / "Images" / hit["image"] for hit in found]
    images = torch.from_numpy(model.embed_images(files))
    wanted = images @ torch.from_numpy(model.embed_texts([query])[0]) - correction.image_prior(images)
    assert [hit["score"] for hit in found] == pytest.approx(wanted.tolist(), abs=1e-3)
    assert found == varalign.load(tmp_path / "run", device="cpu").search_images(query, top=3)
