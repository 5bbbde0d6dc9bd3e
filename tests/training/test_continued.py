"""`--continue-from`: a new run from the best weights of another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import varalign
from varalign.cli import main
from varalign.data.tokens.tokenizers import load_tokenizer
from varalign.options.config import TrainConfig
from varalign.options.layers import continued
from varalign.runs.folder import RunFolder
from varalign.training import run as runs


def quiet(_: str) -> None:
    pass


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [line for line in RunFolder.open(run).read_metrics() if line["kind"] == "eval"]


def first_run(features_file: Path, out: Path, **options: Any) -> Any:
    settings: dict[str, Any] = {"features": str(features_file), "batch_size": 16, "epochs": 2, "device": "cpu"}
    return varalign.train(TrainConfig(**{**settings, "out": str(out), **options}), say=quiet, progress=False)


@pytest.mark.parametrize("options", [{}, {"start": "random"}, {"members": 0, "voices": "none"}])
def test_the_new_run_begins_where_the_other_was_best(
    features_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    first = first_run(features_file, tmp_path / "a", **options)
    line = ["train", "--continue-from", str(tmp_path / "a"), "--out", str(tmp_path / "b"), "--epochs", "3"]
    assert main([*line, "--batch-size", "40", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["epochs"] == 3
    old, new = (RunFolder.open(tmp_path / name).options() for name in "ab")
    assert {name for name in old if old[name] != new[name]} == {"epochs", "batch_size", "out", "continue_from"}
    best = next(line for line in evaluations(tmp_path / "a") if line["epoch"] == first.best_epoch)
    start = evaluations(tmp_path / "b")[0]
    assert start["epoch"] == 0
    assert [start[key] for key in start if "recall" in key] == [best[key] for key in start if "recall" in key]
    assert runs.resume(tmp_path / "b", {}, say=quiet).test == result["test"]


def test_other_data_are_read_as_they_are(image_folder: Path, tmp_path: Path) -> None:
    """The words of the first run stay: the new run's captions are cut with its vocabulary."""
    shared: dict[str, Any] = {"image_encoder": "timm:test_resnet", "image_size": 32, "batch_size": 16, "device": "cpu"}
    settings = {"data": str(image_folder), "out": str(tmp_path / "a"), "epochs": 1, "dataset_size": 20, **shared}
    varalign.train(TrainConfig(**settings), say=quiet, progress=False)
    said = {"continue_from": str(tmp_path / "a"), "data": str(image_folder), "out": str(tmp_path / "b"), "epochs": 1}
    saved = RunFolder.open(tmp_path / "a").options()
    options = {**continued(saved, said), **said}
    assert "dataset_size" not in options
    result = varalign.train(TrainConfig(**options), say=quiet, progress=False)
    assert result.epochs == 1
    assert load_tokenizer(RunFolder.open(tmp_path / "a").assets) == load_tokenizer(
        RunFolder.open(tmp_path / "b").assets
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--members", "0"], "--members 0: --continue-from takes the model of "),
        (["--embedding-dim", "7"], "which was built with "),
        (["--data", "x"], "that model was trained on features, and takes no --data"),
        (["--wise-ft"], "--wise-ft"),
        (["--continue-from", "/no/such"], "/no/such"),
    ],
)
def test_what_does_not_fit_the_other_run_is_refused(
    features_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    first_run(features_file, tmp_path / "a", epochs=1)
    assert main(["train", "--continue-from", str(tmp_path / "a"), "--out", str(tmp_path / "b"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
