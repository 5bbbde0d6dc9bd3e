"""Weights of pairs: which pairs they find wrong, and that they reach the loss."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import varalign
from varalign.data.features import load_features
from varalign.data.noise import noisy_pairs, parse_noise
from varalign.evaluation.pair_moments import PairMoments
from varalign.losses.contrastive import ContrastiveLoss
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.runs.folder import RunFolder
from varalign.training import run as runs
from varalign.training.pair_weights import moment_weights, weighted_mean


def quiet(_: str) -> None:
    pass


def small(features: Path, out: Path, **options: Any) -> TrainConfig:
    usual: dict[str, Any] = {"hidden_dim": 16, "batch_size": 16, "epochs": 2, "device": "cpu"}
    return TrainConfig(**{"features": str(features), "out": str(out), **usual, **options})


def table(run: Path) -> list[dict[str, str]]:
    with open(run / "pairs.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("noise", ["swap-images=0.3", "swap-captions=0.3"])
def test_swapped_pairs_are_found_weigh_less_and_the_table_begins_with_them(
    noise: str, features_file: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    config = small(features_file, tmp_path / "run", noise=noise, pair_weighting="closed-form", seed=1)
    varalign.train(config, say=said.append)
    data = load_features(features_file)
    owner, _ = noisy_pairs(data.text_image_ids, data.rows("train"), parse_noise(noise), 1)
    wrong = set(np.flatnonzero(owner != data.text_image_ids).tolist())
    rows = table(tmp_path / "run")
    weights = [float(row["weight"]) for row in rows]
    assert len(rows) == 240 and weights == sorted(weights)
    first = [int(row["caption_row"]) for row in rows[: len(wrong)]]
    assert len(wrong & set(first)) > 0.9 * len(wrong)
    found = RunFolder.open(tmp_path / "run").config()["start"]["pairs"]
    assert found["by"] == ("image" if "images" in noise else "pair")
    assert found["wrong_share"] == pytest.approx(len(wrong) / 240, abs=0.1)  # 120 images only
    assert found["low"] <= found["wrong_share"] <= found["high"]
    assert any("of the training pairs look wrong" in line for line in said)


def test_the_weights_of_the_drawn_captions_reach_the_loss(
    features_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    forward = ContrastiveLoss.forward

    def watched(self: ContrastiveLoss, *inputs: Any, **weights: Any) -> Any:
        seen.append((inputs[3], weights["image_weights"]))
        assert weights["text_weights"] is weights["image_weights"]
        return forward(self, *inputs, **weights)

    monkeypatch.setattr(ContrastiveLoss, "forward", watched)
    options: dict[str, Any] = {"noise": "swap-images=0.3", "captions_per_step": 2, "epochs": 1}
    varalign.train(small(features_file, tmp_path / "a", pair_weighting="closed-form", **options), say=quiet)
    of_image: dict[int, list[float]] = {}
    for row in table(tmp_path / "a"):
        of_image.setdefault(int(row["image_row"]), []).append(float(row["weight"]))
    for ids, weights in seen:  # both captions of an image are drawn, so its weight is their mean
        wanted = [np.mean(of_image[int(row)]) for row in ids]
        assert weights.tolist() == pytest.approx(wanted, abs=1e-4)
    seen.clear()
    varalign.train(small(features_file, tmp_path / "b", **options), say=quiet)
    assert all(weights is None for _, weights in seen) and not (tmp_path / "b" / "pairs.csv").exists()


def test_moments_weigh_after_the_warm_up_and_resume_bit_for_bit(
    features_file: Path, tmp_path: Path, killed_after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from varalign.runs.checkpoint import load_checkpoint
    from varalign.training.steps.step import TrainingStep

    options: dict[str, Any] = {"pair_weighting": "moments", "pair_warmup": 0.5, "noise": "swap-images=0.3"}
    options |= {"start": "random", "epochs": 6, "lr": 3e-3, "captions_per_step": 1, "checkpoint_every": 5}
    whole = varalign.train(small(features_file, tmp_path / "whole", **options), say=quiet)
    assert any(float(row["weight"]) < 0.5 for row in table(tmp_path / "whole"))
    step = TrainingStep.__call__

    def checking(self: TrainingStep, inputs: Any) -> Any:
        assert (self.state.pair_weights is not None) == (self.state.position.epoch >= 3)
        return step(self, inputs)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingStep, "__call__", checking)
        with killed_after(31):  # in the fifth epoch, a step after a checkpoint within it
            varalign.train(small(features_file, tmp_path / "cut", **options), say=quiet)
    resumed = runs.resume(tmp_path / "cut", {}, say=quiet)
    a, b = (load_checkpoint(tmp_path / name / "checkpoints" / "last") for name in ("cut", "whole"))
    assert a.tensors.keys() == b.tensors.keys() and "weights.pairs" in a.tensors
    for name, tensor in a.tensors.items():
        assert torch.equal(tensor, b.tensors[name]), name
    assert resumed.test == whole.test
    assert (tmp_path / "cut" / "pairs.csv").read_text() == (tmp_path / "whole" / "pairs.csv").read_text()


def moments_of(margins: np.ndarray[Any, Any]) -> tuple[PairMoments, Any]:
    moments = PairMoments(len(margins))
    seen = np.isfinite(margins)
    moments.update(np.flatnonzero(seen), np.stack([np.full(seen.sum(), 0.5), margins[seen]], axis=1))
    rows = np.arange(len(margins))
    return moments, SimpleNamespace(train_rows=rows, data=SimpleNamespace(caption_rows=lambda rows: rows))


def test_two_groups_of_margins_are_told_apart_and_one_is_left_alone() -> None:
    random = np.random.default_rng(0)
    right, wrong = random.normal(0.2, 0.05, 700), random.normal(-0.2, 0.08, 300)
    moments, parts = moments_of(np.concatenate([right, wrong, [np.nan]]))
    weights = moment_weights(moments, parts)
    assert float((weights[:700] > 0.5).float().mean()) > 0.99 and float((weights[700:1000] < 0.5).float().mean()) > 0.98
    assert weights[1000] == 1.0  # never seen
    order = np.argsort(np.concatenate([right, wrong]))
    assert (np.diff(weights[:1000].numpy()[order]) >= -1e-6).all()  # a larger margin is never less right
    moments, parts = moments_of(random.normal(0.1, 0.1, 1000))
    assert moment_weights(moments, parts).tolist() == [1.0] * 1000
    moments, parts = moments_of(np.full(1000, np.nan))
    assert moment_weights(moments, parts).tolist() == [1.0] * 1000


def test_weighted_mean_of_captions() -> None:
    features = torch.tensor([[[1.0, 0.0], [3.0, 4.0]], [[1.0, 1.0], [2.0, 2.0]]])
    assert weighted_mean(features, None).tolist() == [[2.0, 2.0], [1.5, 1.5]]
    weights = torch.tensor([[0.25, 0.75], [0.0, 0.0]])
    assert weighted_mean(features, weights).tolist() == [[2.5, 3.0], [1.5, 1.5]]


def test_too_few_images_to_score_are_refused(features_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--pair-weighting closed-form: pair scores in 5 folds need"):
        varalign.train(small(features_file, tmp_path / "run", dataset_size=6, pair_weighting="closed-form"), say=quiet)
