"""The ensemble beside the closed form, in a run: its share, its start, what goes with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import varalign
from varalign.canonical.voices.held_out import losses_at
from varalign.data.features import load_features, save_features
from varalign.encoders.voices_head import VoicesHead
from varalign.inputs.open_data import open_data
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.options.recipe import fill
from varalign.runs.folder import RunFolder
from varalign.training.fusion import Fusion
from varalign.training.start import begin


def quiet(_: object) -> None:
    pass


def begun(features: Path, **options: Any):
    config = TrainConfig(features=str(features), members=3, hidden_dim=16, device="cpu", **options)
    config, data = open_data(config.validate(), quiet)
    config = fill(config, len(data.rows("train")))
    parts = begin(config, data, torch.device("cpu"), quiet).parts
    return parts, parts.config


def test_members_that_know_nothing_get_no_share(features_file: Path, tmp_path: Path) -> None:
    data = load_features(features_file)
    random = np.random.default_rng(0)
    x, y = (f + 30 * random.normal(size=f.shape).astype(np.float32) for f in (data.image_features, data.text_features))
    weak = tmp_path / "weak.safetensors"  # where 20 dev images tell little, members of no use are lower by luck
    save_features(weak, replace(data, image_features=x, text_features=y), dtype="float32")
    for path in (features_file, weak):
        for seed in range(3):
            parts, config = begun(path, seed=seed)
            fusion = Fusion.of(parts, config.batch_size)
            assert fusion.choose(trained=False) == 0
            assert fusion.choose() == 0
    scale = float(parts.model.evaluation_scale)
    closed, _ = fusion._scores()
    means = [
        float(losses_at([block.bare() for block in closed], other).mean())
        for other in (scale, max(1.0, scale * 0.8), scale * 1.25)
    ]
    assert min(means) > means[0] - 0.01


def test_members_that_know_more_get_their_share(features_file: Path) -> None:
    parts, config = begun(features_file)
    fusion = Fusion.of(parts, config.batch_size)
    with torch.no_grad():  # a closed form of noise, and members that tell every pair from the others
        for head in (parts.model.image_head, parts.model.text_head):
            assert isinstance(head, VoicesHead)
            for voice in head.fixed.values():
                voice.map.copy_(torch.randn(voice.map.shape, generator=torch.Generator().manual_seed(1)))
    closed, members = fusion._scores()
    perfect = [replace(block, pairs=torch.eye(len(block.pairs))) for block in members]
    fusion._scores = lambda: (closed, perfect)  # type: ignore[method-assign]
    assert fusion.choose() > 0
    assert float(parts.model.image_head.share) == float(parts.model.text_head.share) > 0


def test_a_share_that_is_told_is_taken_once_members_are_trained(features_file: Path) -> None:
    parts, config = begun(features_file, members_share=0.625)
    fusion = Fusion.of(parts, config.batch_size)
    assert [fusion.choose(trained=trained) for trained in (False, True)] == [0, 0.625]
    assert float(parts.model.text_head.share) == 0.625


def test_a_run_keeps_the_closed_form_as_epoch_0_and_is_loaded_whole(features_file: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"hidden_dim": 16, "batch_size": 40, "epochs": 3, "device": "cpu"}
    options["settings"] = "dev"  # by cross-validation, a run without members is fitted on dev too
    config = TrainConfig(features=str(features_file), members=4, out=str(tmp_path / "run"), **options)
    result = varalign.train(config, say=quiet)
    assert RunFolder.open(tmp_path / "run").config()["model"]["members"] == 4
    evals = [line for line in RunFolder.open(tmp_path / "run").read_metrics() if line["kind"] == "eval"]
    linear = TrainConfig(features=str(features_file), members=0, out=str(tmp_path / "plain"), **options)
    varalign.train(linear, say=quiet)
    plain = [line for line in RunFolder.open(tmp_path / "plain").read_metrics() if line["kind"] == "eval"]
    assert evals[0]["i2t_recall@1"] == plain[0]["i2t_recall@1"]
    assert evals[0]["t2i_recall@5"] == plain[0]["t2i_recall@5"]
    loaded = varalign.load(tmp_path / "run", device="cpu").model
    assert loaded.shape.head == "voices"
    assert loaded.shape == result.aligner.model.shape


@pytest.mark.parametrize(
    "options",
    [{"start": "random"}, {"head": "linear"}, {"map_lr": 0.1}],
)
def test_members_go_with_the_closed_form_alone(features_file: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--members 3 needs the closed form"):
        TrainConfig(features=str(features_file), members=3, **options).validate()
    assert fill(TrainConfig(features=str(features_file), **options).validate(), 100).members == 0


def test_members_read_the_words_where_a_voice_does(features_file: Path, tmp_path: Path) -> None:
    """The run is loaded whole, and an old one, whose members read the features alone, still is."""
    data = load_features(features_file)
    words = ["red", "green", "blue", "cat", "dog", "tree", "house", "car"]
    texts = [f"a {words[row % 8]} and a {words[row // 2 % 7]}" for row in range(len(data.text_features))]
    path = tmp_path / "worded.safetensors"
    save_features(path, replace(data, texts=texts), dtype="float32")
    config = TrainConfig(
        features=str(path), members=2, hidden_dim=16, epochs=2, voices="lexical,members", out=str(tmp_path / "run")
    )
    result = varalign.train(config, say=quiet, progress=False)
    shape = result.aligner.parts.model.shape
    head = result.aligner.parts.model.text_head
    assert shape.lexical_members and isinstance(head, VoicesHead) and head.members is not None
    assert head.member_dim == data.text_features.shape[1] + shape.lexical_dim == len(head.members.mean)
    assert varalign.load(tmp_path / "run").evaluate("dev") == result.aligner.evaluate("dev")
    narrow = VoicesHead(10, replace(shape, lexical_members=False), "text")
    assert narrow.members is not None and len(narrow.members.mean) == 10
    narrow.eval()(torch.randn(3, 10 + shape.lexical_dim))


def test_the_best_epoch_has_the_least_loss(features_file: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        features=str(features_file),
        members=2,
        hidden_dim=16,
        epochs=6,
        evaluations=6,
        lr=0.02,
        out=str(tmp_path / "run"),
    )
    result = varalign.train(config, say=quiet, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = {line["epoch"]: line["choice_loss"] for line in lines if line["kind"] == "eval" and "choice_loss" in line}
    assert len(losses) > 3 and result.best_epoch == min(losses, key=lambda epoch: losses[epoch])
