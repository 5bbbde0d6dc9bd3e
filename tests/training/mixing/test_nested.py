"""Runs on data without dev or test: all pairs are fitted, and nested cross-validation gives the figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import varalign
from varalign.cli import main
from varalign.data.features import FeatureSet, load_features, save_features
from varalign.data.tokens.lexicon import Lexicon
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.runs.folder import RunFolder

WORDS = ["red", "green", "blue", "dog", "cat", "bird", "runs", "sits"]
QUICK: dict[str, Any] = {"device": "cpu", "voices": "closed-form,lexical", "ridge": 1.0, "power": 1.0}


def without(features_file: Path, folder: Path, **sizes: int) -> Path:
    """The first 40 images of the features, split as told, with made captions beside them."""
    data, random = load_features(features_file), np.random.default_rng(0)
    split = np.repeat([0, 1, 2], [sizes.get(name, 0) for name in ("train", "dev", "test")])
    images, texts = len(split), 2 * len(split)
    kept = FeatureSet(
        data.image_features[:images],
        data.text_features[:texts],
        data.text_image_ids[:texts],
        split.astype(np.int8),
        np.arange(images),
        texts=[" ".join(random.choice(WORDS, 3)) + f" {row}" for row in range(texts)],
    )
    path = folder / f"{'-'.join(map(str, sizes.values()))}.safetensors"
    save_features(path, kept, dtype="float32")
    return path


def trained(file: Path, out: Path, **options: Any) -> tuple[varalign.training.run.TrainResult, list[str]]:
    said: list[str] = []
    config = TrainConfig(features=str(file), out=str(out), **{**QUICK, **options})
    return varalign.train(config, say=said.append, progress=False), said


def test_all_pairs_are_fitted_and_each_is_judged_by_a_fit_without_it(
    features_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[set[str]] = []
    fitted = Lexicon.fitted

    def noted(captions: list[str], *rest: Any, **named: Any) -> Lexicon | None:
        read.append(set(captions))
        return fitted(captions, *rest, **named)

    monkeypatch.setattr(Lexicon, "fitted", noted)
    file = without(features_file, tmp_path, train=40)
    result, said = trained(file, tmp_path / "run")
    every = set(load_features(file).texts or [])
    assert read[0] == every and [len(captions) for captions in read[1:]] == [64] * 5
    assert set.intersection(*read[1:]) == set()  # each caption is left out by one fold's fit, words and all
    assert result.test["folds"] == 5 and result.test["judged"] == {"images": 40, "texts": 80}
    assert (result.test["images"], result.test["texts"]) == (8, 16) and result.epochs == 0
    assert any(line.startswith("no test split: the figures come from nested cross-validation") for line in said)
    table = " ".join(result.table().split())
    assert "among 8 images, 16 texts of each of 5 folds" in table
    assert "nested cross-validation by image. Each of 5 folds was scored by voices that were fitted, chosen" in table
    run = RunFolder.open(result.run)
    config = run.config()["start"]["voices"]
    assert (config["settings"], config["fitted_on"], config["pairs"]) == ("cv", "every pair", 80)
    lines = run.read_metrics()
    assert [line["split"] for line in lines] == ["cross-validation", "nested cross-validation"]
    assert lines[1]["i2t_recall@1"] == result.test["i2t_recall@1"]
    page = (result.run / "report.html").read_text()
    assert "in 5 folds (there is no test split)" in page and "show training pairs" in page

    capsys.readouterr()
    assert main(["eval", str(result.run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["i2t_recall@5"] == result.test["i2t_recall@5"]
    assert main(["eval", str(result.run), "--split", "dev"]) == 2
    assert "have no dev split; name another one by --split" in capsys.readouterr().err
    again = varalign.training.run.resume(result.run, {}, say=lambda _: None, progress=False)
    assert again.test == result.test and len(run.read_metrics()) == 2


def test_a_small_dev_split_is_fitted_on_too(
    features_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = without(features_file, tmp_path, train=30, dev=10, test=8)
    result, said = trained(file, tmp_path / "run", hub_correction="train")
    assert "voices fitted on train and dev together" in said and result.test["images"] == 8
    assert "hub correction by 40 images and 80 captions of train and dev" in said
    capsys.readouterr()
    for split, fitted in (("dev", True), ("test", False)):
        assert main(["eval", str(result.run), "--split", split, "--device", "cpu"]) == 0
        assert (f"The model was fitted on pairs of {split}" in capsys.readouterr().out) is fitted
    assert [line["split"] for line in RunFolder.open(result.run).read_metrics()] == ["cross-validation"]
    members = trained(file, tmp_path / "members", members=1, epochs=1, voices="closed-form,members")[1]
    assert any(line.startswith("voices fitted on train alone: dev is left for the members' share") for line in members)


@pytest.mark.parametrize("sizes", [{"train": 30, "test": 10}, {"train": 30, "dev": 10}])
def test_one_of_dev_and_test_is_enough_too(sizes: dict[str, int], features_file: Path, tmp_path: Path) -> None:
    result, _ = trained(without(features_file, tmp_path, **sizes), tmp_path / "run")
    judged = sizes.get("test", 0) or 40
    assert result.test.get("judged", result.test)["images"] == judged


@pytest.mark.parametrize(
    ("sizes", "options", "words"),
    [
        ({"train": 12}, {}, "need 13 different images, not 12: give more pairs, or a test split"),
        ({"train": 40}, {"members": 2, "voices": "auto"}, "the dev split has 0 images.* the test split has 0 images"),
        ({"train": 40}, {"members": 2, "voices": "auto"}, "or leave out --members and --epochs"),
        ({"train": 40}, {"settings": "dev"}, "these data have no dev split; pass cv"),
        ({"train": 30, "dev": 10}, {"settings": "dev"}, "these data have no test split, and the nested"),
        ({"train": 30, "dev": 10}, {"voices": "zero-shot"}, "cannot have zero-shot: zero-shot needs both encoders"),
        ({"train": 30, "dev": 10}, {"voices": "kernel,zero-shot"}, "cannot have zero-shot"),
        ({"train": 40}, {"hub_correction": "dev"}, "have no dev split; name another bank"),
        ({"train": 40}, {"hub_correction": "unpaired"}, "unpaired is a bank of what is unpaired, and nothing is"),
    ],
)
def test_what_needs_a_split_says_so(
    sizes: dict[str, int], options: dict[str, Any], words: str, features_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        trained(without(features_file, tmp_path, **sizes), tmp_path / "run", **options)


def test_pair_weights_of_a_fold_come_from_the_rest_alone(
    features_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from varalign.training.mixing import nested

    seen: list[int] = []
    weigh = nested.closed_form_weights

    def noted(pairs: Any, *, seed: int) -> Any:
        seen.append(len(pairs.images))
        return weigh(pairs, seed=seed)

    monkeypatch.setattr(nested, "closed_form_weights", noted)
    file = without(features_file, tmp_path, train=100)
    trained(file, tmp_path / "run", pair_weighting="closed-form", voices="closed-form")
    assert seen == [80] * 5


@pytest.fixture
def bare(image_folder: Path, tmp_path: Path) -> Path:
    """The folder without its lists of splits."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "Images").symlink_to(image_folder / "Images")
    (tmp_path / "bare" / "captions.txt").write_bytes((image_folder / "captions.txt").read_bytes())
    return tmp_path / "bare"


def test_a_folder_is_trained_on_whole_and_clip_is_judged_on_the_same_folds(
    bare: Path, clip_folder: Callable[..., tuple[Path, Any]], tmp_path: Path
) -> None:
    spec = f"clip:x@{clip_folder()[0]}"
    options: dict[str, Any] = {"data": str(bare), "image_encoder": spec, "text_encoder": spec, "device": "cpu"}
    options |= {"cache": str(tmp_path / "cache"), "voices": "closed-form,zero-shot", "ridge": 1.0, "power": 1.0}
    config = TrainConfig(**options, out=str(tmp_path / "run"))
    result = varalign.train(config, say=lambda _: None, progress=False)
    assert result.test["judged"]["images"] == 80 and result.zero_shot is not None
    assert (result.zero_shot["images"], result.zero_shot["folds"]) == (16, 5)
    assert "zero-shot clip" in result.table()
    assert RunFolder.open(result.run).config()["options"]["split_by"] == "none"
    again = varalign.load(result.run, device="cpu")
    assert len(again.rows("train")) == 80 and len(again.search_images("a red square", top=2)) == 2
    drawn = varalign.train(replace(config, split_by="seed", out=str(tmp_path / "drawn")), say=lambda _: None)
    assert drawn.test["images"] == 8 and "folds" not in drawn.test


def test_a_folder_without_splits_is_whole_where_it_is_small(bare: Path, image_folder: Path) -> None:
    from varalign.data.datasets import load_dataset
    from varalign.data.readers.reading import Reading

    sizes = {
        name: [len(data.rows(split)) for split in ("train", "dev", "test")]
        for name, data in {
            "drawn": load_dataset(bare),
            "few": load_dataset(bare, whole_below=81),
            "enough": load_dataset(bare, whole_below=80),
            "lists": load_dataset(image_folder, whole_below=1000),
            "told": load_dataset(image_folder, reading=replace(Reading(), split_by="none")),
            "seed": load_dataset(bare, whole_below=1000, reading=replace(Reading(), split_by="seed")),
        }.items()
    }
    drawn = [64, 8, 8]
    assert sizes == {
        "drawn": drawn,
        "few": [80, 0, 0],
        "enough": drawn,
        "lists": [60, 10, 10],
        "told": [80, 0, 0],
        "seed": drawn,
    }
