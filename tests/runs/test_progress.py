"""The lines of training without a terminal, to the letter; tests/data/test_waiting.py shows them on one."""

from __future__ import annotations

from typing import Any

import pytest
from varalign.runs.progress import ProgressLine

STEP = {"loss": 1.9, "w_i2t": 0.49, "w_t2i": 0.51, "seconds": 1.0, "data_wait": 0.25}
DEV: dict[str, Any] = {"split": "dev", "loss": 2.5, "i2t_recall@1": 0.1, "i2t_recall@5": 0.2, "t2i_recall@1": 0.05}
DEV |= {"images": 1000, "texts": 5000}


def test_one_plain_line_an_epoch_below_what_recall_is_among(capsys: pytest.CaptureFixture[str]) -> None:
    shown = ProgressLine(epochs=2, steps_per_epoch=2)
    shown.epoch_done({"epoch": 0, **DEV})  # an evaluation before the first step
    for epoch in (1, 2):
        for _ in range(2):
            shown.advance(1)
            shown.step(STEP, 64)
        shown.epoch_done({"epoch": epoch, **DEV})
    shown.close()
    assert capsys.readouterr().err.splitlines() == [
        "dev: 1,000 images, 5,000 texts; recall in percent",
        "epoch 0/2  dev loss 2.5000  i2t R@1 10.0  t2i R@1 5.0",
        "epoch 1/2  2 s left  loss 1.9000  dev loss 2.5000  i2t R@1 10.0  t2i R@1 5.0",
        "epoch 2/2  0 s left  loss 1.9000  dev loss 2.5000  i2t R@1 10.0  t2i R@1 5.0",
    ]


def test_the_folds_of_a_cross_validation_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    shown = ProgressLine(epochs=0, steps_per_epoch=2)
    shown.epoch_done({"epoch": 0, **DEV, "split": "cross-validation", "images": 8, "texts": 16, "folds": 5})
    assert capsys.readouterr().err.splitlines() == [
        "cross-validation: 8 images, 16 texts of each of 5 folds; recall in percent",
        "epoch 0/0  held-out loss 2.5000  i2t R@1 10.0  t2i R@1 5.0",
    ]


def test_quiet_and_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine(epochs=3, steps_per_epoch=4, first_step=8)
    assert line._epoch() == "epoch 2/3"
    line.advance(1)
    assert line._epoch() == "epoch 3/3"
    line.advance(-5)  # back to a checkpoint
    assert line._epoch() == "epoch 1/3"
    quiet = ProgressLine(epochs=1, steps_per_epoch=1, quiet=True)
    quiet.advance(1)
    quiet.step(STEP, 64)
    quiet.epoch_done({"epoch": 1, **DEV})
    quiet.close()
    assert capsys.readouterr().err == ""
