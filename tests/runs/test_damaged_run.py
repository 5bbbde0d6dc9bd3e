"""A run folder whose files were changed: refused in one sentence that names the file, or used as it is."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import varalign
from varalign.cli import main
from varalign.options.config import TrainConfig
from varalign.runs.checkpoint import _opened, _sealed
from varalign.runs.folder import RunFolder
from varalign.runs.schema import FORMAT


@pytest.fixture(scope="module")
def whole(features_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    small: dict[str, Any] = {"embedding_dim": 8, "hidden_dim": 8, "batch_size": 24, "device": "cpu", "epochs": 1}
    varalign.train(TrainConfig(**small, features=str(features_file), out=str(out)), say=lambda _: None)
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a JSON value with another entry at a path; `...` takes the entry away."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return copy


def paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, inner in value.items():
        yield (*before, key)
        if isinstance(inner, dict):
            yield from paths(inner, (*before, key))


@pytest.mark.parametrize(
    ("path", "new", "said"),
    [
        (("options", "batch_size"), None, "--batch-size needs a value"),
        (("options",), None, "options is null, but must be an object"),
        (("model", "embedding_dim"), -1, "model.embedding_dim is -1, but must be a whole number, at least 1"),
        (("model", "head"), "nonsense", "no model can be built as it says"),
        (("model", "frozen"), [], r"model.frozen is \[\], but must be an object"),
        (("model",), ..., "model is missing"),
        (("data", "fingerprint"), 7, "data.fingerprint is 7, but must be a text"),
        (("format",), FORMAT + 1, f"format is {FORMAT + 1}, and this version .* reads no later one than {FORMAT}"),
    ],
)
@pytest.mark.parametrize("command", ["eval", "train"])
def test_config(
    command: str, run: Path, path: tuple[str, ...], new: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "config.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), path, new)))
    words = ["eval", str(run)] if command == "eval" else ["train", "--resume", str(run)]
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(said, error) and str(file) in error


def test_a_named_pipe_in_the_place_of_a_file_is_not_waited_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("checkpoints/best/tensors.safetensors", "checkpoints/best/state.json", "config.json"):
        (run / name).unlink()
        os.mkfifo(run / name)
        assert main(["eval", str(run)]) == 2
        assert f"{run / name}: not a file but a named pipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "new", "said"),
    [
        (("progress",), ..., "progress is missing"),
        (("progress", "epoch"), None, "progress.epoch is null, but must be a whole number"),
        (("format",), FORMAT + 1, "update varalign"),
    ],
)
def test_a_sealed_state(
    run: Path, path: tuple[str, ...], new: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = (run / "checkpoints" / "best").resolve() / "state.json"
    file.write_bytes(_sealed(changed(_opened(file.read_bytes(), file.parent), path, new)))
    assert main(["eval", str(run)]) == 2
    error = capsys.readouterr().err
    assert said in error and "best/state.json" in error


def test_a_checkpoint_of_another_run(run: Path, features_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small: dict[str, Any] = {"embedding_dim": 4, "hidden_dim": 4, "batch_size": 24, "device": "cpu", "epochs": 1}
    other = run.parent / "other"
    varalign.train(TrainConfig(**small, features=str(features_file), out=str(other)), say=lambda _: None)
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints", symlinks=True)
    for words in (["eval", str(run)], ["train", "--resume", str(run)]):
        assert main(words) == 2
        assert "does not fit the run's config.json or data" in capsys.readouterr().err


@pytest.mark.parametrize("line", [{"kind": "step", "step": 1}, {"kind": "eval", "step": 1, "epoch": 1}, {"step": 1}])
def test_metrics(run: Path, line: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "metrics.jsonl"
    file.write_text(json.dumps(line) + "\n" + file.read_text())
    assert main(["train", "--resume", str(run)]) == 2
    assert f"{file} line 1: " in capsys.readouterr().err


def test_whatever_one_entry_of_config_is_the_run_opens_or_says_why(run: Path) -> None:
    """Each entry of config.json in turn becomes each of these values, or is gone."""
    file = run / "config.json"
    config = json.loads(file.read_text())
    refused = 0
    for path in list(paths(config)):
        for new in (..., None, -1, 1e300, "x", [], {}, True):
            file.write_text(json.dumps(changed(config, path, new)))
            try:
                varalign.load(run)
            except (ValueError, FileNotFoundError) as error:
                assert str(error), (path, new)
                refused += 1
    assert refused > 400
    file.write_text(json.dumps(config))
    assert RunFolder.open(run).options()
