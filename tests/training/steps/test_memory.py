"""A GPU whose memory runs out in training: the message names the options that help this run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from varalign.cli import main
from varalign.training.steps.step import TrainingStep

SAID = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 4 GiB"


@pytest.mark.parametrize(
    ("options", "words", "silent"),
    [
        (
            ["--text-encoder", "BERT"],
            "--accumulate 2 passes each batch through the encoders in 2 parts; an --image-size below 32 makes fewer",
            "--gradient-checkpointing",
        ),
        (
            ["--text-encoder", "BERT", "--freeze", "none", "--accumulate", "8"],
            "--accumulate 16 passes each batch through the encoders in 16 parts; --gradient-checkpointing keeps fewer",
            "--batch-size",
        ),
        (
            ["--text-encoder", "BERT", "--freeze", "both"],
            "set a smaller --batch-size than 20, or fewer --members",
            "--accumulate",
        ),
    ],
)
def test_the_next_options_to_try_are_named(
    image_folder: Path,
    bert_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
    silent: str,
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError(SAID)

    monkeypatch.setattr(TrainingStep, "__call__", full)
    folders = ["--data", str(image_folder), "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    given = [f"bert:{bert_folder}" if option == "BERT" else option for option in options]
    fixed = ["--image-size", "32", "--batch-size", "20", "--start", "random", "--epochs", "1", "--device", "cpu"]
    assert main(["train", *folders, *fixed, *given]) == 1
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if "error" in line]
    assert line.startswith("varalign: error: the memory of the GPU has run out (CUDA out of memory): ")
    assert words in line and silent not in line
    remark = "--accumulate 8: batch norms take their statistics from a part of each batch, 2 of its 20 rows"
    assert (remark in said) == ("8" in options)


def test_parts_too_small_for_batch_norms_are_refused_before_anything_is_written(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = f"train --data {image_folder} --out {out} --cache {tmp_path / 'cache'} --image-size 32 --batch-size 20"
    assert main([*words.split(), "--epochs", "1", "--device", "cpu", "--accumulate", "50"]) == 2
    said = capsys.readouterr().err
    assert "a part of a batch of 20 images has 1, and batch norms need 2: pass at most 10" in said
    assert not out.exists()
