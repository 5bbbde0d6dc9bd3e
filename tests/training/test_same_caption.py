"""Labels as captions: one text, right for all images of its class, in training, evaluation and the run folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from varalign.aligner.load import load
from varalign.cli import main
from varalign.data.features import FeatureSet, save_features
from varalign.options.config import TrainConfig
from varalign.training.run import train

CLASSES = 10


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 images of ten separable classes, "a photo of a C." or "A photo of a C": 400 train, 100 dev, 100 test."""
    draw = np.random.default_rng(0)
    kind = np.arange(600) % CLASSES
    images, texts = draw.standard_normal((CLASSES, 24)), draw.standard_normal((CLASSES, 12))
    x = (images[kind] + 0.3 * draw.standard_normal((600, 24))).astype(np.float32)
    split = np.repeat(np.array([0, 1, 2], np.int8), [400, 100, 100])
    captions = [f"{'Aa'[row % 3 == 0]} photo of a thing {c}{'.' * (row % 2)}" for row, c in enumerate(kind.tolist())]
    file = tmp_path_factory.mktemp("labels") / "labels.safetensors"
    data = FeatureSet(x, texts[kind].astype(np.float32), np.arange(600), split, np.arange(600), texts=captions)
    save_features(file, data, "float32")
    return file


@pytest.mark.parametrize(
    "options",
    [
        {"start": "random", "epochs": 12, "lr": 1e-2, "evaluations": 1, "embedding_dim": 12, "hidden_dim": 32},
        {"head": "linear", "map_lr": 0.0, "epochs": 1, "pair_weighting": "closed-form"},
        {"members": 2, "epochs": 2, "evaluations": 1, "hidden_dim": 16},
    ],
    ids=["random", "closed form", "members"],
)
def test_training_on_labels_reaches_what_a_perfect_model_does(options: dict, labels: Path, tmp_path: Path) -> None:
    config = TrainConfig(features=str(labels), out=str(tmp_path / "run"), batch_size=100, **options)
    found = train(config, say=lambda _: None, progress=False)
    assert (found.test["images"], found.test["texts"]) == (100, 10)
    assert found.chance["t2i_recall@1"] == pytest.approx(0.1)
    assert found.reachable is None and found.as_dict()["same_caption"] == "positive"
    assert min(found.test["i2t_recall@1"], found.test["t2i_recall@1"]) >= 0.95
    assert "equal captions are one text" in found.table()


def test_told_apart_they_are_what_they_were_and_old_runs_stay_so(
    labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    config = TrainConfig(features=str(labels), out=str(run), head="linear", map_lr=0.0, epochs=1, batch_size=100)
    found = train(replace(config, same_caption="distinct"), say=lambda _: None, progress=False)
    assert found.test["texts"] == 100 and found.test["i2t_recall@1"] < 0.5
    assert found.reachable is not None and found.reachable["i2t_recall@1"] == pytest.approx(0.1)
    assert "reachable" in found.table() and "--same-caption distinct" in found.table()
    saved = json.loads((run / "config.json").read_text())
    assert saved["options"].pop("same_caption") == "distinct"
    (run / "config.json").write_text(json.dumps(saved))
    assert load(run).config.same_caption == "distinct"
    assert load(run, same_caption="positive").config.same_caption == "positive"
    capsys.readouterr()
    for given, mode, texts in (([], "distinct", 100), (["--same-caption", "positive"], "positive", 10)):
        assert main(["eval", str(run), "--json", *given]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["same_caption"], said["texts"]) == (mode, texts)
    assert said["i2t_recall@1"] == said["t2i_recall@1"] == 1.0
