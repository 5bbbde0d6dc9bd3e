"""Whole runs: what they write, that they learn, and that an interrupted one ends as if it had not been."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import varalign
from varalign.data.errors import DataError
from varalign.data.images import Augment
from varalign.evaluation.retrieval import RECALL_KEYS
from varalign.inputs.assemble import open_sources
from varalign.inputs.live import LiveImages, TooManyBadImages
from varalign.inputs.models import new_towers
from varalign.inputs.open_data import open_data
from varalign.options.config import TrainConfig
from varalign.runs.checkpoint import load_checkpoint
from varalign.runs.folder import RunFolder
from varalign.runs.run_errors import RunError
from varalign.training import run as runs

CPU = torch.device("cpu")
SMALL = {"embedding_dim": 16, "hidden_dim": 16, "batch_size": 16, "device": "cpu", "threads": 1, "warmup": 0.0}


def quiet(_: str) -> None:
    pass


def config_for(kind: str, features_file: Path, image_folder: Path, out: Path, **options: Any) -> TrainConfig:
    """Small heads on features, or towers from random weights on images; the image tower is a small one unless told."""
    images = {"data": str(image_folder), "image_encoder": "timm:test_resnet", "image_size": 32}
    place = {"features": str(features_file)} if kind == "features" else images
    return TrainConfig(**{**SMALL, **place, "out": str(out), "cache": str(out.parent / "cache"), **options})


def without_clock(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in {"seconds", "data_wait"}} for line in lines]


@pytest.fixture(params=["features", "images"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_run_writes_its_contract_and_learns(
    kind: str, features_file: Path, image_folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"epochs": 15, "start": "random"}
    if kind == "images":
        options = {"epochs": 6, "image_encoder": None}  # the default encoders
    config = config_for(kind, features_file, image_folder, tmp_path / "run", **options)
    result = varalign.train(config, say=quiet)
    folder = RunFolder.open(tmp_path / "run")
    lines = folder.read_metrics()
    steps = [line for line in lines if line["kind"] == "step"]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    per_epoch = (120 if kind == "features" else 60) // 16
    assert [line["step"] for line in steps] == list(range(1, per_epoch * config.epochs + 1))
    assert {
        "epoch",
        "loss",
        "loss_i2t",
        "loss_t2i",
        "w_i2t",
        "w_t2i",
        "logit_scale",
        "lr",
        "seconds",
        "data_wait",
    } <= set(steps[0])
    assert all(line["w_i2t"] + line["w_t2i"] == pytest.approx(1) for line in steps)
    assert [line["epoch"] for line in evaluations] == list(range(config.epochs + 1))
    assert {*RECALL_KEYS, "images", "texts", "cosine_similarity", "loss", "split"} <= set(evaluations[0])
    assert steps[-1]["loss"] < steps[0]["loss"]
    if kind == "features":
        assert result.best_epoch > 0
        assert result.test["t2i_recall@1"] > 10 * result.chance["t2i_recall@1"]
    best = load_checkpoint(folder.checkpoints / "best")
    assert best.state["progress"]["best_epoch"] == result.best_epoch
    assert {path.name for path in folder.path.iterdir()} >= {"config.json", "metrics.jsonl", "checkpoints", "pictures"}
    assert json.loads(json.dumps(result.as_dict()))["test"] == result.test
    assert set(result.test["intervals"]) == set(RECALL_KEYS)
    assert all(low <= result.test[key] <= high for key, (low, high) in result.test["intervals"].items())
    assert "chance" in result.table()


def test_training_batches_from_the_decoded_cache_are_those_of_the_files_where_images_are_kept_whole(
    features_file: Path, image_folder: Path, tmp_path: Path
) -> None:
    batches, said = {}, []
    for decoded in ("off", "disk"):
        said.clear()
        options = {"decoded_cache": decoded, "dropout": 0.0, "input_noise": 0.0, "color_jitter": 0.2, "crop_area": 0.1}
        config = config_for("images", features_file, image_folder, tmp_path / "run", **options)
        config, data = open_data(config, said.append)
        parts = open_sources(config, data, new_towers(config, data), CPU, said.append)
        assert isinstance(parts.images, LiveImages)
        assert parts.images.augment == Augment((0.1, 1.0), jitter=(0.2, 0.2, 0.2))
        order = [data.rows("train")[:5], data.rows("train")[5:9]]
        batches[decoded] = [inputs.tensor for epoch in (0, 1) for inputs in parts.images.batches(order, epoch=epoch)]
        told = {"off": 0, "disk": 1}[decoded]
        assert sum("decoded cache: 60 images" in line for line in said) == told, "made by the first batch, once"
    for plain, cropped in zip(*batches.values(), strict=True):
        torch.testing.assert_close(cropped, plain, rtol=0, atol=0)


def test_an_image_that_cannot_be_decoded_is_replaced_the_same_way_however_images_come(
    features_file: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(image_folder, folder)
    (folder / "Images" / "003.jpg").write_bytes(b"not a picture")
    found = []
    for decoded in ("off", "disk", "levels"):
        if decoded == "levels":  # as batches travel to a GPU, which normalises them
            monkeypatch.setattr(LiveImages, "_dtype", lambda self, kind: "uint8")
            decoded = "off"
        options = {"decoded_cache": decoded, "dropout": 0.0, "input_noise": 0.0, "max_bad": 0.5}
        config = config_for("images", features_file, folder, tmp_path / "run", **options)
        config, data = open_data(config, quiet)
        parts = open_sources(config, data, new_towers(config, data), CPU, quiet)
        order = [data.rows("train")[:6], data.rows("train")[6:9]]
        found.append([*parts.images.batches(order, epoch=1), *parts.images.plain(order[0], 4)])
        assert [data.image_names[row] for row in parts.images.unreadable] == ["003.jpg"]
    for plain, *others in zip(*found, strict=True):
        for other in others:
            np.testing.assert_array_equal(plain.rows, other.rows)
            torch.testing.assert_close(other.tensor, plain.tensor, rtol=0, atol=0)


INTERRUPTED: dict[str, dict[str, Any]] = {
    kind: {"epochs": 4, "checkpoint_every": 2, "dropout": 0.3, "schedule": "variance", **others}
    for kind, others in {
        "images": {"word_dropout": 0.2, "decoded_cache": "disk", "average_weights": 0.9},
        "features": {"evaluations": 2},
    }.items()
}


@pytest.fixture(scope="module")
def uninterrupted(
    features_file: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[RunFolder, dict[str, float]]]:
    """Gives the run folder and the test metrics of a run of a kind that nothing interrupted; it is trained once."""

    @functools.cache
    def whole(kind: str) -> tuple[RunFolder, dict[str, float]]:
        out = tmp_path_factory.mktemp(kind) / "whole"
        result = varalign.train(config_for(kind, features_file, image_folder, out, **INTERRUPTED[kind]), say=quiet)
        return RunFolder.open(out), result.test

    return whole


@pytest.mark.parametrize("stop_at", [1, 5, 9])
def test_an_interrupted_run_resumes_bit_for_bit(
    kind: str,
    stop_at: int,
    features_file: Path,
    image_folder: Path,
    tmp_path: Path,
    killed_after: Any,
    uninterrupted: Callable[[str], tuple[RunFolder, dict[str, float]]],
) -> None:
    theirs, whole_test = uninterrupted(kind)
    with killed_after(stop_at):
        config = config_for(kind, features_file, image_folder, tmp_path / "cut", **INTERRUPTED[kind])
        varalign.train(config, say=quiet)
    torch.rand(7)  # another process has another random state
    resumed = runs.resume(tmp_path / "cut", {}, say=quiet)

    ours = RunFolder.open(tmp_path / "cut")
    assert without_clock(ours.read_metrics()) == without_clock(theirs.read_metrics())
    a, b = (load_checkpoint(folder.checkpoints / "last") for folder in (ours, theirs))
    assert a.tensors.keys() == b.tensors.keys()
    for name, tensor in a.tensors.items():
        assert torch.equal(tensor, b.tensors[name]), name
    assert a.state["progress"] == b.state["progress"] and resumed.test == whole_test


def test_thread_count_does_not_change_a_run(features_file: Path, image_folder: Path, tmp_path: Path) -> None:
    for threads in (1, 3):
        config = config_for("images", features_file, image_folder, tmp_path / str(threads), epochs=1, threads=threads)
        varalign.train(config, say=quiet)
    one, three = (RunFolder.open(tmp_path / name).read_metrics() for name in ("1", "3"))
    assert without_clock(one) == without_clock(three)


@pytest.mark.parametrize("schedule", ["entropy", "spread", "fixed", "random"])
def test_every_schedule_trains(schedule: str, features_file: Path, image_folder: Path, tmp_path: Path) -> None:
    config = config_for(
        "features", features_file, image_folder, tmp_path / "run", epochs=2, schedule=schedule, fixed_weight=0.3
    )
    varalign.train(config, say=quiet)
    weights = [line["w_i2t"] for line in RunFolder.open(tmp_path / "run").read_metrics() if line["kind"] == "step"]
    assert all(0.05 <= weight <= 0.95 for weight in weights)
    if schedule == "fixed":
        assert weights == pytest.approx([0.3] * len(weights))


def test_replay_shuffles_another_runs_weights(features_file: Path, image_folder: Path, tmp_path: Path) -> None:
    first = config_for("features", features_file, image_folder, tmp_path / "first", epochs=2, schedule="random")
    varalign.train(first, say=quiet)
    varalign.train(
        replace(first, out=str(tmp_path / "second"), schedule="replay", replay_run=str(tmp_path / "first")), say=quiet
    )
    a, b = (
        [line["w_i2t"] for line in RunFolder.open(tmp_path / name).read_metrics() if line["kind"] == "step"]
        for name in ("first", "second")
    )
    assert sorted(a) == pytest.approx(sorted(b)) and a != b


def test_early_stopping_and_the_best_checkpoint(features_file: Path, image_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 50, "evaluations": 50, "patience": 2, "lr": 0.05}
    config = config_for("features", features_file, image_folder, tmp_path / "run", **options)
    result = varalign.train(config, say=quiet)
    evaluations = [line for line in RunFolder.open(tmp_path / "run").read_metrics() if line["kind"] == "eval"]
    scores = [np.mean([line[key] for key in RECALL_KEYS]) for line in evaluations]
    assert result.epochs < 50 and result.best_epoch == int(np.argmax(scores)) and result.epochs == result.best_epoch + 2


def test_dev_is_evaluated_as_often_as_told(features_file: Path, image_folder: Path, tmp_path: Path) -> None:
    """Three evaluations in ten epochs, and patience is asked right after an evaluation."""
    options: dict[str, Any] = {"epochs": 10, "evaluations": 3, "dropout": 0.3, "checkpoint_every": 2}
    config = config_for("features", features_file, image_folder, tmp_path / "whole", **options)
    whole = varalign.train(config, say=quiet)
    lines = RunFolder.open(tmp_path / "whole").read_metrics()
    assert [line["epoch"] for line in lines if line["kind"] == "eval" and line["split"] == "dev"] == [0, 3, 7, 10]
    assert len({line["epoch"] for line in lines if line["kind"] == "step"}) == 10
    assert whole.epochs == 10 and whole.best_epoch in (0, 3, 7, 10)
    patient = replace(config, out=str(tmp_path / "patient"), lr=0.0, patience=4)
    assert varalign.train(patient, say=quiet).epochs == 7  # after an evaluation: 3 epochs are too few, 7 are enough


def test_checkpoints_are_of_the_best_weights_and_the_end_and_dev_lines_are_short(
    features_file: Path, image_folder: Path, tmp_path: Path
) -> None:
    config = config_for("features", features_file, image_folder, tmp_path / "run", epochs=8, lr=0.05, keep=99)
    result = varalign.train(config, say=quiet)
    lines = [line for line in RunFolder.open(tmp_path / "run").read_metrics() if line["kind"] == "eval"]
    scores = [np.mean([line[key] for key in RECALL_KEYS]) for line in lines]
    best = [line["step"] for at, line in enumerate(lines) if scores[at] > max(scores[:at], default=-1)]
    saved = {int(path.name[5:]) for path in (tmp_path / "run" / "checkpoints").glob("step-*")}
    assert saved == {*best, lines[-1]["step"]} and len(saved) < len(lines)
    assert "image_uniformity" in result.test and not any("image_uniformity" in line for line in lines)


def test_an_unreadable_image_is_replaced_in_training_and_left_out_of_evaluation(
    features_file: Path, image_folder: Path, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "data"
    shutil.copytree(image_folder, folder)
    train_name = (folder / "Flickr_8k.trainImages.txt").read_text().split()[0]
    test_name = (folder / "Flickr_8k.testImages.txt").read_text().split()[0]
    for name in (train_name, test_name):
        (folder / "Images" / name).write_bytes(b"no image")
    config = config_for("images", features_file, folder, tmp_path / "run", epochs=1, max_bad=0.05)
    said: list[str] = []
    result = varalign.train(config, say=said.append)
    assert result.test["images"] == 9 and result.test["unreadable"] == 1
    assert any(train_name in line or test_name in line for line in said)
    listed = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert {test_name} <= {line["image"] for line in listed} <= {train_name, test_name}  # a batch is left out
    assert all("text file" in line["reason"] for line in listed)
    with pytest.raises(TooManyBadImages, match="more than --max-bad 0 allows"):
        varalign.train(replace(config, out=str(tmp_path / "strict"), max_bad=0.0), say=quiet)


def test_resume_refuses_other_data(features_file: Path, image_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "data"
    shutil.copytree(image_folder, folder)
    varalign.train(config_for("images", features_file, folder, tmp_path / "run", epochs=1), say=quiet)
    with open(folder / "captions.txt", "a") as file:
        file.write("000.jpg,one more\n")
    with pytest.raises(RunError, match="have changed since"):
        runs.resume(tmp_path / "run", {}, say=quiet)


def test_a_finished_run_resumes_to_the_same_result(features_file: Path, image_folder: Path, tmp_path: Path) -> None:
    config = config_for("features", features_file, image_folder, tmp_path / "run", epochs=2)
    first = varalign.train(config, say=quiet)
    assert runs.resume(tmp_path / "run", {}, say=quiet).test == first.test


def test_resuming_says_where_threads_differ(features_file: Path, image_folder: Path, tmp_path: Path) -> None:
    config = config_for("features", features_file, image_folder, tmp_path / "run", epochs=1)
    varalign.train(config, say=quiet)
    threads, said = torch.get_num_threads(), []
    assert RunFolder.open(tmp_path / "run").config()["machine"]["torch_threads"] == threads
    try:
        torch.set_num_threads(threads + 1)
        runs.resume(tmp_path / "run", {}, say=said.append)
    finally:
        torch.set_num_threads(threads)
    told = [line for line in said if "torch_threads" in line]
    assert told and f"torch_threads was {threads} and is {threads + 1} (OMP_NUM_THREADS={threads} sets" in told[0]
    said.clear()
    runs.resume(tmp_path / "run", {}, say=said.append)
    assert not any("torch_threads" in line for line in said)


def test_noise_swaps_training_pairs_only(features_file: Path, image_folder: Path, tmp_path: Path) -> None:
    clean = varalign.train(config_for("features", features_file, image_folder, tmp_path / "a", epochs=8), say=quiet)
    noisy = varalign.train(
        config_for("features", features_file, image_folder, tmp_path / "b", epochs=8, noise="swap-images=0.8"),
        say=quiet,
    )
    assert noisy.test["texts"] == clean.test["texts"]
    assert noisy.test["t2i_recall@5"] < clean.test["t2i_recall@5"]
    with pytest.raises(DataError, match="neither words nor pixels"):
        varalign.train(config_for("features", features_file, image_folder, tmp_path / "c", noise="blur=0.5"), say=quiet)
