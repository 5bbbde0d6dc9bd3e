"""The closed-form start and the recipe as a run has them: epoch 0, what is chosen and recorded, odd features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import varalign
from varalign.canonical import RunningCovariance, Whitening
from varalign.data.errors import DataError
from varalign.data.features import FeatureSet, load_features, save_features
from varalign.inputs.assemble import open_sources
from varalign.inputs.models import new_towers
from varalign.inputs.open_data import open_data
from varalign.inputs.pair_features import all_pairs
from varalign.losses.pair_loss import best_logit_scale
from varalign.options import recipe
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.options.layers import resolve
from varalign.runs.checkpoint import load_checkpoint
from varalign.runs.folder import RunFolder
from varalign.training import run as runs
from varalign.training import start as starts

CPU = torch.device("cpu")


def quiet(_: str) -> None:
    pass


def small(features: Path, out: Path, **options: Any) -> TrainConfig:
    usual: dict[str, Any] = {"hidden_dim": 16, "members": 0, "batch_size": 16, "epochs": 1, "device": "cpu"}
    usual |= {"voices": "none"} if options.get("start") != "random" else {}
    return TrainConfig(**{"features": str(features), "out": str(out), **usual, **options})


def changed(source: Path, target: Path, **fields: Any) -> Path:
    save_features(target, replace(load_features(source), **fields), dtype="float32")
    return target


def test_epoch_0_is_the_closed_form_of_every_training_pair(features_file: Path, tmp_path: Path) -> None:
    said: list[str] = []
    varalign.train(small(features_file, tmp_path / "run", epochs=2, keep=5), say=said.append)
    chosen = RunFolder.open(tmp_path / "run").config()["start"]["closed_form"]
    data = load_features(features_file)
    x, y, ids = (torch.from_numpy(v) for v in (data.image_features, data.text_features, data.text_image_ids))
    covariance = RunningCovariance(12, 10)
    train = torch.from_numpy(data.split)[ids] == 0
    covariance.update(x[ids[train]], y[train])
    settings = {name: chosen[name] for name in ("ridge", "text_ridge", "power", "dimensions")}
    wanted = Whitening(covariance).solve(**settings)
    model = varalign.load(tmp_path / "run", checkpoint="step-0", device="cpu").model
    with torch.no_grad():
        u, v, scale = model.project_images(x), model.project_texts(y), float(model.logit_scale)
    torch.testing.assert_close(u, wanted.embed_images(x), atol=2e-6, rtol=0)
    torch.testing.assert_close(v, wanted.embed_texts(y), atol=2e-6, rtol=0)
    dev = np.flatnonzero(data.split == 1)
    pairs = u[dev], v[np.searchsorted(data.text_image_ids, dev)]
    assert scale == pytest.approx(best_logit_scale(*pairs, batch_size=16), rel=1e-4)
    assert chosen["logit_scale"] == pytest.approx(scale, rel=1e-6)
    line = next(text for text in said if text.startswith("closed-form start: "))
    ridges = f"ridge {chosen['ridge']:g} (texts {chosen['text_ridge']:g})"
    assert f"{ridges}, power {chosen['power']:g}, {chosen['dimensions']} dimensions" in line
    assert chosen["pairs"] == 240 and "240 pairs" in line
    first = next(line for line in RunFolder.open(tmp_path / "run").read_metrics() if line["kind"] == "eval")
    assert (first["step"], first["epoch"]) == (0, 0)


def test_what_is_best_on_dev_is_kept_even_if_that_is_the_start(features_file: Path, tmp_path: Path) -> None:
    result = varalign.train(small(features_file, tmp_path / "run", epochs=3, lr=10.0), say=quiet)
    start = varalign.train(small(features_file, tmp_path / "alone", lr=0.0), say=quiet)
    assert result.best_epoch == 0 and result.test == start.test


def test_the_recipe_is_a_rule_of_the_images_and_goes_under_every_option() -> None:
    config = TrainConfig(features="a").validate()
    members, few = (recipe.fill(config, images) for images in (6000, 60))
    assert members.start == "closed-form" and members.members > 1 and members.map_lr is None
    assert (few.members, few.epochs) == (0, 0) and few.batch_size < 60 < members.batch_size
    assert few.voices == "closed-form,kernel,lexical,zero-shot" and members.voices == few.voices + ",members"
    asked = recipe.fill(TrainConfig(features="a", epochs=3).validate(), 60)
    assert asked.members == members.members and asked.epochs == 3
    assert few == recipe.fill(few, 6000), "what is said stays"
    config = TrainConfig(features="a", voices="none", members=0).validate()
    full, tenth, one = (recipe.fill(config, images) for images in (6000, 600, 60))
    assert full.start == "closed-form" and full.input_noise > 0 and full.captions_per_step > 1
    assert full.lr > tenth.lr > 0 and full.map_lr is not None and tenth.map_lr is not None
    assert full.map_lr <= tenth.map_lr and one.lr > 0
    assert recipe.fill(config, 60_000) == full
    random = recipe.fill(TrainConfig().validate(), 6000)
    assert (random.start, random.epochs, random.lr, random.map_lr) == ("random", 30, 3e-4, None)
    assert recipe.fill(random, 10) == random
    given = {**recipe.RANDOM, "embedding_dim": 7, "map_lr": 0.5}
    told = recipe.fill(resolve([{"features": "a", **given}]), 600)
    assert {name: getattr(told, name) for name in given} == given
    assert recipe.filled(told, told) == "" and "--epochs 40" in recipe.filled(config, full)
    flat = TrainConfig(features="a", head="linear").validate()
    line = recipe.filled(flat, recipe.fill(flat, 6000))
    assert "--map-lr" in line and "--hidden-dim" not in line and "--dropout" not in line, "a map has nothing inside"


def test_options_and_what_was_resolved_are_in_the_runs_config(features_file: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = small(features_file, tmp_path / "run", embedding_dim=16, ridge=2.0, head="linear", dropout=0.0, seed=3)
    varalign.train(config, say=said.append)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    options = saved["options"]
    assert (options["start"], options["ridge"], options["embedding_dim"], options["epochs"]) == (
        "closed-form",
        2.0,
        16,
        1,
    )
    assert options["power"] == saved["start"]["closed_form"]["power"]
    assert None not in (options["lr"], options["map_lr"], options["input_noise"], options["captions_per_step"])
    assert any("--lr" in line and "--epochs" not in line for line in said if "training images" in line)
    model = varalign.load(tmp_path / "run", device="cpu").model
    shape = model.shape  # wider than the 10 correlations: the rest is 0
    assert shape.embedding_dim == 16 and shape.hidden_dim == 0
    assert saved["start"]["closed_form"]["dimensions"] == 10


@pytest.mark.parametrize("start", ["closed-form", "random"])
def test_input_noise_mixup_and_several_captions_resume_bit_for_bit(
    start: str, features_file: Path, tmp_path: Path, killed_after: Any
) -> None:
    options: dict[str, Any] = {"start": start, "epochs": 2, "checkpoint_every": 3, "input_noise": 0.5}
    options |= {"captions_per_step": 2, "captions_as": "mean", "feature_mixup": 0.5}
    options |= {"pair_weighting": "closed-form", "noise": "swap-images=0.3"}
    whole = varalign.train(small(features_file, tmp_path / "whole", **options), say=quiet)

    for stop_at in (0, 11):  # before the first checkpoint (which is then taken away), and within an epoch
        out = tmp_path / str(stop_at)
        with killed_after(stop_at):
            varalign.train(small(features_file, out, **options), say=quiet)
        if stop_at == 0:
            for path in (out / "checkpoints").iterdir():
                path.unlink() if path.is_symlink() else [file.unlink() for file in path.iterdir()] and path.rmdir()
        torch.rand(5)
        resumed = runs.resume(out, {}, say=quiet)
        ours, theirs = (load_checkpoint(folder / "checkpoints" / "last") for folder in (out, tmp_path / "whole"))
        assert ours.tensors.keys() == theirs.tensors.keys()
        for name, tensor in ours.tensors.items():
            assert torch.equal(tensor, theirs.tensors[name]), name
        assert resumed.test == whole.test
        assert (out / "pairs.csv").read_text() == (tmp_path / "whole" / "pairs.csv").read_text()


def odd_features(name: str, data: FeatureSet) -> dict[str, Any]:
    x, y = data.image_features, data.text_features
    if name == "constant column":
        return {"image_features": np.concatenate([x, np.full((len(x), 1), 7, np.float32)], 1)}
    if name == "duplicated columns":
        return {"image_features": np.concatenate([x, x], 1), "text_features": np.concatenate([y, y, y], 1)}
    if name == "fewer pairs than dimensions":
        split = data.split.copy()
        split[np.flatnonzero(split == 0)[4:]] = -1
        return {"split": split}
    if name == "duplicated rows":
        rows = np.flatnonzero(data.split == 0)
        doubled = x.copy()
        doubled[rows[1::2]] = doubled[rows[::2]]
        return {"image_features": doubled, "image_ids": np.arange(len(x))}
    return {"text_features": y[:, :1].copy()}


@pytest.mark.parametrize(
    "name",
    ["constant column", "duplicated columns", "fewer pairs than dimensions", "duplicated rows", "one text dimension"],
)
def test_odd_features_start_train_and_load(name: str, features_file: Path, tmp_path: Path) -> None:
    path = changed(features_file, tmp_path / "odd.safetensors", **odd_features(name, load_features(features_file)))
    result = varalign.train(small(path, tmp_path / "run"), say=quiet)
    lines = RunFolder.open(tmp_path / "run").read_metrics()
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert varalign.load(tmp_path / "run", device="cpu").evaluate("test") == result.test


def test_features_without_anything_in_common_are_refused(features_file: Path, tmp_path: Path) -> None:
    path = changed(features_file, tmp_path / "odd.safetensors", text_features=np.ones((320, 10), np.float32))
    with pytest.raises(ConfigError, match="nothing in common"):
        varalign.train(small(path, tmp_path / "run"), say=quiet)
    assert not (tmp_path / "run").exists()
    varalign.train(small(path, tmp_path / "run", start="random"), say=quiet)


def test_a_feature_that_is_not_finite_is_named(features_file: Path, tmp_path: Path) -> None:
    config, data = open_data(small(features_file, tmp_path / "run"), quiet)
    config = recipe.fill(config, 120)
    assert isinstance(data, FeatureSet)
    data.image_features[5, 3] = np.nan
    with pytest.raises(DataError, match="image features of row 5 hold NaN"):
        starts.begin(config, data, CPU, quiet)


def test_random_heads_take_noise_in_deviations_of_each_feature(features_file: Path, tmp_path: Path) -> None:
    varalign.train(small(features_file, tmp_path / "run", start="random", input_noise=0.5), say=quiet)
    model = varalign.load(tmp_path / "run", device="cpu").model
    data = load_features(features_file)
    train = data.split[data.text_image_ids] == 0
    wanted = data.text_features[train].astype(np.float64).std(0)
    assert model.text_head.deviation.numpy() == pytest.approx(wanted, rel=1e-5)
    features = torch.from_numpy(data.text_features[:4])
    assert torch.equal(model.project_texts(features), model.project_texts(features))
    model.train()
    assert not torch.equal(model.project_texts(features), model.project_texts(features))


def test_the_maps_have_a_rate_of_their_own(features_file: Path, tmp_path: Path) -> None:
    from varalign.training.optimiser import build_optimiser

    config, data = open_data(small(features_file, tmp_path / "run", lr=1e-2, map_lr=0.1), quiet)
    config = recipe.fill(config, 120)
    parts = starts.begin(config, data, CPU, quiet).parts
    rates = {group["name"]: group["lr"] for group in build_optimiser(parts.model, parts.config).param_groups}
    assert rates["maps"] == pytest.approx(1e-3) and rates["heads"] == pytest.approx(1e-2)
    still = starts.begin(replace(config, map_lr=0.0), data, CPU, quiet).parts
    groups = build_optimiser(still.model, still.config).param_groups
    assert "maps" not in {group["name"] for group in groups}


def test_pairs_of_a_split_are_all_its_captions(features_file: Path, tmp_path: Path) -> None:
    config, data = open_data(small(features_file, tmp_path / "run"), quiet)
    config = recipe.fill(config, 120)
    parts = open_sources(config, data, new_towers(config, data), CPU, quiet)
    found = all_pairs(parts, parts.train_rows[::-1].copy(), training=True)
    assert found.rows.tolist() == list(range(119, -1, -1)) and len(found.captions) == 240
    assert found.rows[found.owner].tolist() == data.caption_owner[found.captions].tolist()


def test_word_vectors_that_are_not_there_are_refused_before_the_data_are_opened(tmp_path: Path) -> None:
    config = TrainConfig(data=str(tmp_path / "nowhere"), word_vectors=str(tmp_path / "glove.txt"))
    with pytest.raises(DataError, match=r"glove\.txt: cannot be read: No such file"):
        varalign.train(config, say=quiet)
