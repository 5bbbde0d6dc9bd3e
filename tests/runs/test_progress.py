"""The live line on a made-up terminal, to the letter."""

from __future__ import annotations

import io
import sys

import pytest
from varalign.runs import progress
from varalign.runs.progress import ProgressLine, duration, slow_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, quiet: bool = False) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    shown = ProgressLine(epochs=2, steps_per_epoch=2, quiet=quiet)
    for epoch in range(2):
        for step in range(2):
            line = {"loss": 2.0 - epoch - step / 10, "w_i2t": 0.49, "w_t2i": 0.51, "seconds": 1.0, "data_wait": 0.25}
            shown.step(line, 64)
        figures = {"i2t_recall@1": 0.1, "i2t_recall@5": 0.2, "t2i_recall@1": 0.05, "images": 1000, "texts": 5000}
        shown.epoch_done(epoch + 1, figures, note="best")
    shown.close()
    return stream.getvalue()


def test_one_plain_line_an_epoch_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(io.StringIO(), monkeypatch).splitlines() == [
        "epoch 1/2  loss 1.9000  i2t 0.490 t2i 0.510  64 images/s  data wait 25.0%  2 s left  "
        "i2t R@1/5 10.0/20.0  t2i R@1 5.0  1,000 images, 5,000 texts  best",
        "epoch 2/2  loss 0.9000  i2t 0.490 t2i 0.510  64 images/s  data wait 25.0%  0 s left  "
        "i2t R@1/5 10.0/20.0  t2i R@1 5.0  1,000 images, 5,000 texts  best",
    ]


def test_a_bar_on_a_terminal_and_the_epochs_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run(Terminal(), monkeypatch)
    assert "\r" in shown and "epoch 1/2" in shown and "best\n" in shown
    assert shown.rstrip(" ").endswith("\r")  # the bar itself is taken away


def test_quiet_and_resumed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine(epochs=3, steps_per_epoch=4, first_step=8)
    line.epoch_done(2, {})  # an evaluation before the first step
    assert capsys.readouterr().err == "epoch 2/3\n" and line._epoch() == 2
    assert run(io.StringIO(), monkeypatch, quiet=True) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (float("inf"), "?")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_slow_work_says_how_far_it_is_and_quick_work_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    times, said = iter([0.0, 4.0, 12.0, 13.0, 30.0, 60.0]), []
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    told = slow_progress("recall, images", said.append)
    for done in (1000, 2000, 2500, 5000, 10000):
        told(done, 10000)
    assert said == [
        "recall, images: 2,000 of 10,000, 48 s left",
        "recall, images: 5,000 of 10,000, 30 s left",
    ]
