"""A study from its file to its tables: interrupted or not, in one process or two, the same CSV byte for byte."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from varalign.data.features import FeatureSet, load_features, save_features
from varalign.data.sampler import epoch_batches
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.runs.folder import RunFolder
from varalign.runs.run_errors import RunError
from varalign.study import packs
from varalign.study.grid import Cell
from varalign.study.runner import batches, run_part, run_study
from varalign.study.spec import StudyError, make_study
from varalign.training.run import train


@pytest.fixture(scope="module")
def features_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 images (80/20/20) with two texts each, noisy views of 6 common factors."""
    random = np.random.default_rng(5)
    common = random.normal(size=(120, 6))
    owner = np.repeat(np.arange(120), 2)
    images = common @ random.normal(size=(6, 12)) + random.normal(size=(120, 12))
    texts = common[owner] @ random.normal(size=(6, 10)) + random.normal(size=(240, 10))
    split = np.repeat([0, 1, 2], [80, 20, 20]).astype(np.int8)
    path = tmp_path_factory.mktemp("features") / "features.safetensors"
    save_features(path, FeatureSet(images.astype("f4"), texts.astype("f4"), owner, split, np.arange(120)), "float32")
    return path


def small(features_file: Path, **changes: object) -> dict[str, object]:
    return {
        "features": str(features_file),
        "evaluations": 2,
        "tune_seeds": 1,
        "runs_at_once": 4,
        "options": {"epochs": 2, "batch_size": 32, "embedding_dim": 8, "hidden_dim": 16},
        "axes": {"start": ["random"], "fraction": [50, 100], "noise": ["none", "swap-images=0.4"], "seed": [1]},
        "tune": [{"lr": [1e-3, 1e-2]}],
        **changes,
    }


def quiet(_: str) -> None:
    pass


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


def test_a_study_half_lost_and_started_again_gives_the_same_tables(features_file: Path, tmp_path: Path) -> None:
    study = make_study(small(features_file))
    report = run_study(study, tmp_path / "whole", workers=1, device="cpu", say=quiet)
    whole = files(tmp_path / "whole")
    assert len(report.cells) == 2 * 2 * 4 * 1  # variance, fixed, random, replay: no weight is tuned
    assert {row["noise"] for row in report.cells} == {"none", "swap-images=0.4"}
    cells = sorted((tmp_path / "whole" / "cells").iterdir())
    for path in cells[::2]:
        path.unlink()
    lines: list[str] = []
    run_study(study, tmp_path / "whole", workers=1, device="cpu", say=lines.append)
    assert lines, "nothing was run again"
    assert files(tmp_path / "whole") == whole
    lines.clear()
    run_study(study, tmp_path / "whole", workers=1, device="cpu", say=lines.append)
    assert not lines, "a study that is done runs nothing"
    rows = list(csv.DictReader((tmp_path / "whole" / "results.csv").open()))
    by_name = {(row["fraction"], row["noise"], row["schedule"], row["seed"]): row for row in rows}
    fixed, replayed = by_name["50.0", "none", "variance", "1"], by_name["50.0", "none", "replay", "1"]
    assert fixed["w_i2t_max"] == replayed["w_i2t_max"] and fixed["w_i2t_min"] == replayed["w_i2t_min"]
    assert by_name["100.0", "none", "fixed", "1"]["w_i2t_mean"] == "0.5"


def test_parts_run_together_give_the_tables_of_the_whole(features_file: Path, tmp_path: Path) -> None:
    study = make_study(small(features_file))
    for part in (3, 1, 2):
        run_part(study, tmp_path / "parts", part, 3, workers=1, device="cpu", say=quiet)
    lines: list[str] = []
    run_study(study, tmp_path / "parts", workers=1, device="cpu", say=lines.append)
    assert not lines, "the parts left cells to run"
    run_study(study, tmp_path / "whole", workers=1, device="cpu", say=quiet)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    names = {path.name for path in (tmp_path / "parts" / "cells").iterdir()}
    assert names == {path.name for path in (tmp_path / "whole" / "cells").iterdir()}
    run_part(study, tmp_path / "parts", 9, 9, workers=1, device="cpu", say=lines.append)
    assert not lines, "more parts than conditions leave some with nothing to do"


def test_a_study_killed_in_the_middle_goes_on_to_the_same_tables(features_file: Path, tmp_path: Path) -> None:
    values = small(features_file, axes={"start": ["random"], "fraction": [100], "seed": 2})
    words = ["--features", str(features_file), "--axis", "start", "random", "--axis", "fraction", "100", "--seeds", "2"]
    words += ["--tune-seeds", "1", "--tune", "lr", "1e-3", "1e-2"]
    for name, value in values["options"].items():  # type: ignore[attr-defined]
        words += ["--option", name, str(value)]
    line = [sys.executable, "-m", "varalign", "study", *words, "--out", str(tmp_path / "killed"), "--json"]
    with subprocess.Popen(
        [*line, "--workers", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        while process.poll() is None and not list((tmp_path / "killed").glob("cells/*.json")):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    done = subprocess.run([*line, "--workers", "2"], capture_output=True, check=True, timeout=120)
    assert json.loads(done.stdout)["cells"] == 8
    del values["evaluations"], values["runs_at_once"]
    run_study(make_study(values), tmp_path / "whole", workers=1, device="cpu", say=quiet)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.mark.parametrize("members", [0, 2])
def test_a_batched_cell_equals_the_ordinary_trainer(features_file: Path, tmp_path: Path, members: int) -> None:
    """Without random draws inside the heads (dropout, input noise): recall to one query, weights to 1e-4."""
    options = {"epochs": 3, "batch_size": 32, "dropout": 0.0, "input_noise": 0.0, "lr": 1e-2}
    axes = {"start": ["random", "closed-form"], "noise": ["swap-images=0.2"], "seed": [3]}
    given = {**options, "members": members}
    values = small(features_file, options=given, axes=axes, tune=[{"fixed_weight": [0.5]}], evaluations=3)
    report = run_study(make_study(values), tmp_path / "study", workers=1, device="cpu", say=quiet)
    for start, count in (("random", 0), ("closed-form", members)):
        cell = next(row for row in report.cells if (row["schedule"], row["start"]) == ("variance", start))
        config = TrainConfig(
            features=str(features_file), start=start, members=count, noise="swap-images=0.2", seed=3, device="cpu",
            out=str(tmp_path / start), hub_correction="off", voices="none", **options,  # type: ignore[arg-type]
        )  # fmt: skip
        alone = train(config, say=quiet)
        steps = [json.loads(line) for line in (alone.run / "metrics.jsonl").read_text().splitlines()]
        weights = [line["w_i2t"] for line in steps if line["kind"] == "step"]
        assert cell["w_i2t_mean"] == pytest.approx(np.mean(weights), abs=1e-4)
        assert cell["w_i2t_max"] == pytest.approx(np.max(weights), abs=1e-4)
        assert cell["best_epoch"] == alone.best_epoch
        for key, queries in (("i2t_recall@1", 20), ("t2i_recall@5", 40)):
            assert cell[key] == pytest.approx(alone.test[key], abs=1.01 / queries)


@pytest.mark.parametrize("start,members", [("random", 0), ("closed-form", 2)])
def test_epochs_that_copies_make_shorter(features_file: Path, tmp_path: Path, start: str, members: int) -> None:
    """A copy that waits for a batch without its image may leave the last one short: some epochs have a step less."""
    data = load_features(features_file)
    train, ids = data.rows("train"), data.image_ids.copy()
    ids[train[1:10:2]] = ids[train[0:9:2]]
    path = tmp_path / "twins.safetensors"
    save_features(path, dataclasses.replace(data, image_ids=ids), "float32")
    steps = [len(epoch_batches(train, 20, seed=1, epoch=epoch, image_ids=ids)) for epoch in range(12)]
    assert set(steps) == {3, 4}
    options = {"epochs": 12, "batch_size": 20, "members": members, "hidden_dim": 8}
    axes = {"start": [start], "fraction": [100], "seed": [1]}
    study = make_study(small(path, options=options, axes=axes, tune=[]))
    run_study(study, tmp_path / "study", workers=1, device="cpu", say=quiet)
    cells = [json.loads(path.read_text()) for path in (tmp_path / "study" / "cells").iterdir()]
    assert cells and all(len(cell["w_i2t"]) == sum(steps) for cell in cells)


def test_options_that_no_batch_knows_go_through_the_ordinary_trainer(
    features_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"epochs": 2, "batch_size": 32, "duplicates": "ignore"}
    values = small(features_file, options=options, axes={"start": ["random"], "seed": 1}, tune=[{"lr": [1e-2]}])
    report = run_study(make_study(values), tmp_path / "study", workers=1, device="cpu", say=quiet)
    assert len(report.cells) == 4
    assert capsys.readouterr().err == ""  # nor do the cells speak for themselves
    assert not list((tmp_path / "study").glob("runs/*/checkpoints"))


@pytest.mark.parametrize(
    "axes,options,tune,message",
    [
        (
            {"start": ["random", "closed-form"], "members": [0, 2]},
            {},
            [],
            "start=random, members=2, .*--members 2 needs",
        ),
        ({"loss": ["gce", "nt-xent"]}, {"loss_strength": 0.7}, [], "loss=nt-xent, .*no number of its own"),
        ({"noise": ["none", "blur=0.5"]}, {}, [], "noise=blur=0.5, .*neither words nor pixels"),
        ({"start": ["random"]}, {}, [{"lr": [1e-3]}, {"members": [0, 4]}], "start=random, .*members=4: --members 4"),
    ],
)
def test_options_that_do_not_go_together_stop_a_study_before_its_first_cell(
    features_file: Path, tmp_path: Path, axes: dict[str, object], options: dict[str, object], tune: object, message: str
) -> None:
    study = make_study(small(features_file, axes=axes, options={"epochs": 1, **options}, tune=tune))
    with pytest.raises(StudyError, match=f"no run can be made of .*{message}"):
        run_study(study, tmp_path / "study", workers=1, device="cpu", say=quiet)
    assert not list((tmp_path / "study" / "cells").iterdir())


def test_siglip_is_trained_under_fixed_weights_alone(features_file: Path, tmp_path: Path) -> None:
    options = {"epochs": 1, "batch_size": 32}
    axes = {"start": ["random"], "loss": ["clip", "siglip"], "seed": 1}
    values = small(features_file, options=options, axes=axes, tune=[{"fixed_weight": [0.4, 0.6]}])
    said: list[str] = []
    report = run_study(make_study(values), tmp_path / "study", workers=1, device="cpu", say=said.append)
    by_loss = {loss: [row["schedule"] for row in report.cells if row["loss"] == loss] for loss in ("clip", "siglip")}
    assert by_loss["clip"] == ["variance", "fixed", "fixed-tuned", "random", "replay"]
    assert by_loss["siglip"] == ["fixed", "fixed-tuned"]
    assert "siglip has no two directions to weight" in said[0]
    assert said[-1].startswith("[11/11]")
    compared = {(row["loss"], row["schedule"]) for row in report.comparisons}
    assert ("siglip", "fixed") in compared and ("siglip", "variance") not in compared


def test_conditions_that_tune_no_weight_are_compared_with_fixed(features_file: Path, tmp_path: Path) -> None:
    axes = {"start": ["random"], "noise": ["none", "swap-images=0.4"], "seed": 1}
    tune = [{"noise": "none", "fixed_weight": [0.4]}]
    study = make_study(small(features_file, options={"epochs": 1, "batch_size": 32}, axes=axes, tune=tune))
    report = run_study(study, tmp_path / "study", workers=1, device="cpu", say=quiet)
    baselines = {(row["noise"], row["against"]) for row in report.comparisons}
    assert baselines == {("none", "schedule=fixed-tuned"), ("swap-images=0.4", "schedule=fixed")}


def test_a_report_of_nothing_says_what_to_do(
    features_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from varalign.cli import main

    assert main(["study", "--features", str(features_file), "--out", str(tmp_path / "study"), "--report"]) == 0
    assert capsys.readouterr().out == (
        f"{tmp_path / 'study'}: no cell is done yet; run the same line without --report\n"
    )


def test_a_broken_study_is_one_line(tmp_path: Path) -> None:
    from varalign.cli import main

    (tmp_path / "study.toml").write_text('features = "f"\n[axes]\nshedule = ["variance"]\n')
    assert main(["study", str(tmp_path / "study.toml"), "--out", str(tmp_path / "out")]) == 2
    (tmp_path / "study.toml").write_text('features = "absent.safetensors"\n')
    assert main(["study", str(tmp_path / "study.toml"), "--out", str(tmp_path / "out")]) == 2


def test_draws_whose_closed_forms_have_other_dimensions_train_apart(
    features_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = packs.cell_config

    def by_seed(cell: Cell, train_images: int) -> TrainConfig:
        return dataclasses.replace(made(cell, train_images), embedding_dim=4 + cell.seed % 2)

    monkeypatch.setattr(packs, "cell_config", by_seed)
    axes = {"start": ["closed-form"], "fraction": [100], "seed": [1]}
    study = make_study(small(features_file, options={"epochs": 1, "batch_size": 32}, axes=axes, tune_seeds=2))
    assert len(run_study(study, tmp_path / "study", workers=1, device="cpu", say=quiet).cells) == 4


def test_other_peoples_weightings_are_schedules_of_a_study(features_file: Path, tmp_path: Path) -> None:
    options = {"epochs": 2, "batch_size": 32, "dropout": 0.0, "lr": 1e-2}
    axes = {"start": ["random"], "schedule": ["famo", "imtl-g"], "seed": [3]}
    values = small(features_file, options=options, axes=axes, tune=[{"fixed_weight": [0.5]}])
    report = run_study(make_study(values), tmp_path / "study", workers=1, device="cpu", say=quiet)
    for name in ("famo", "imtl-g"):
        cell = next(row for row in report.cells if row["schedule"] == name)
        config = TrainConfig(
            features=str(features_file), start="random", seed=3, schedule=name, device="cpu", **options,  # type: ignore[arg-type]
            out=str(tmp_path / name),
        )  # fmt: skip
        steps = [json.loads(line) for line in (train(config, say=quiet).run / "metrics.jsonl").read_text().splitlines()]
        weights = [line["w_i2t"] for line in steps if line["kind"] == "step"]
        assert np.ptp(weights) > 1e-4
        assert cell["w_i2t_mean"] == pytest.approx(np.mean(weights), abs=1e-4)


def test_splits_that_nothing_can_be_measured_on_stop_a_study(features_file: Path, tmp_path: Path) -> None:
    data = load_features(features_file)
    path = tmp_path / "nodev.safetensors"
    save_features(path, dataclasses.replace(data, split=np.where(data.split == 1, 0, data.split).astype(np.int8)))
    with pytest.raises(ConfigError, match="the dev split has 0 images; training needs at least 1"):
        run_study(make_study(small(path)), tmp_path / "study", workers=1, device="cpu", say=quiet)


def test_a_folder_of_a_study_that_runs_is_refused(features_file: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    with RunFolder(tmp_path / "study").locked(), pytest.raises(RunError, match="in use by process"):
        run_study(make_study(small(features_file)), tmp_path / "study", workers=1, device="cpu", say=quiet)


@pytest.mark.parametrize(
    "given",
    [{"options": {"pair_weighting": {"1": "moments"}}}, {"tune": [{"pair_weighting": ["none", "moments"]}]}],
)
def test_moments_are_never_trained_in_a_batch(features_file: Path, given: dict[str, object]) -> None:
    study = make_study({"features": str(features_file), "axes": {"schedule": ["variance"], "fraction": [50]}, **given})
    assert not batches(study, {"fraction": 50.0, "noise": "none"})
    assert batches(make_study({"features": str(features_file)}), {"fraction": 50.0, "noise": "none"})


def test_one_seed_has_no_p_and_a_comparison_both_ways_counts_once(features_file: Path, tmp_path: Path) -> None:
    baselines = [{"schedule": "fixed"}, {"schedule": "variance"}]
    values = small(features_file, axes={"fraction": [100], "seed": [1]}, tune=[], baseline=baselines)
    report = run_study(make_study(values), tmp_path / "one", workers=1, device="cpu", say=quiet)
    assert all(row["p"] is None and row["p_holm"] is None for row in report.comparisons)
    assert "one seed" in report.table()
    first = report.summary[0]
    assert first["mean_recall@1_low"] < first["mean_recall@1"] < first["mean_recall@1_high"]  # over images
    values = small(features_file, axes={"fraction": [100], "seed": [1, 2]}, tune=[], baseline=baselines)
    report = run_study(make_study(values), tmp_path / "two", workers=1, device="cpu", say=quiet)
    rows = {(row["schedule"], row["against"]): row for row in report.comparisons if row["metric"] == "mean_recall@1"}
    ours, theirs = rows["variance", "schedule=fixed"], rows["fixed", "schedule=variance"]
    assert ours["difference"] == -theirs["difference"]
    assert (ours["p"], ours["p_holm"]) == (theirs["p"], theirs["p_holm"])
