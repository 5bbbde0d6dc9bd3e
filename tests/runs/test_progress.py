"""The live line on a made-up clock and terminal, and the final table to the letter."""

from __future__ import annotations

import io

import pytest
from varalign.runs.progress import ProgressLine, duration, final_table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream: io.StringIO, **options: object) -> str:
    now = iter(range(1000))
    with ProgressLine(epochs=2, steps_per_epoch=2, stream=stream, clock=lambda: float(next(now)), **options) as line:
        for epoch in range(2):
            for step in range(2):
                line.step(images=64, data_wait=0.25, loss=2.0 - epoch - step / 10, w_i2t=0.49, w_t2i=0.51)
            line.epoch_done(
                epoch + 1,
                {"i2t_recall@1": 0.1, "i2t_recall@5": 0.2, "t2i_recall@1": 0.05, "images": 1000, "texts": 5000},
                note="best",
            )
    return stream.getvalue()


def test_one_plain_line_an_epoch_where_there_is_no_terminal():
    assert run(io.StringIO()).splitlines() == [
        "epoch 1/2  loss 1.9000  i2t 0.490 t2i 0.510  64 images/s  data wait 25.0%  2 s left  "
        "i2t R@1/5 10.0/20.0  t2i R@1 5.0  1,000 images, 5,000 texts  best",
        "epoch 2/2  loss 0.9000  i2t 0.490 t2i 0.510  64 images/s  data wait 25.0%  0 s left  "
        "i2t R@1/5 10.0/20.0  t2i R@1 5.0  1,000 images, 5,000 texts  best",
    ]


def test_a_bar_on_a_terminal_and_the_epochs_above_it():
    shown = run(Terminal())
    assert "\r" in shown and "epoch 1/2" in shown and "best\n" in shown
    assert shown.rstrip(" ").endswith("\r")  # the bar itself is taken away


def test_quiet_and_resumed():
    assert run(io.StringIO(), quiet=True) == ""
    stream = io.StringIO()
    line = ProgressLine(epochs=3, steps_per_epoch=4, first_step=8, stream=stream)
    line.epoch_done(2)  # an evaluation before the first step
    line.step(images=1)  # no figures fetched yet
    line.epoch_done(3)
    assert stream.getvalue().splitlines()[0] == "epoch 2/3" and "loss nan" in stream.getvalue()
    assert line._epoch() == 3


def test_steps_told_in_blocks_bring_their_own_seconds():
    """Twenty at a time, as the trainer tells them: the window of 50 holds two and a half blocks."""
    stream = io.StringIO()
    now = iter(20.0 * (call // 20) for call in range(100))
    with ProgressLine(epochs=1, steps_per_epoch=60, stream=stream, clock=lambda: next(now)) as line:
        for _ in range(60):
            line.step(images=64, seconds=1.0, data_wait=0.003)
        line.epoch_done(1)
    assert "64 images/s  data wait 0.3%  0 s left" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (float("inf"), "?")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


ROWS = [
    {"model": "resnet18 + lstm", "epochs": 30, "loss": 0.51234, "cosine_similarity": 0.6}
    | {"t2i_recall@10": 0.5, "i2t_recall@10": 0.45, "i2t_recall@1": 0.125, "images": 1000, "texts": 5000},
    {"model": "chance", "i2t_recall@1": 0.001, "i2t_recall@10": 0.01, "t2i_recall@10": 0.01}
    | {"images": 1000, "texts": 5000, "loss": None},
]


def test_the_table():
    assert final_table(ROWS).splitlines() == [
        "model            epochs    loss  cosine similarity  i2t R@1  i2t R@10  t2i R@10",
        "───────────────  ──────  ──────  ─────────────────  ───────  ────────  ────────",
        "resnet18 + lstm      30  0.5123             0.6000     12.5      45.0      50.0",
        "chance                –       –                  –      0.1       1.0       1.0",
        "Recall in percent, among 1,000 images, 5,000 texts.",
    ]
    assert final_table(ROWS, markdown=True).splitlines() == [
        "| model           | epochs |   loss | cosine similarity | i2t R@1 | i2t R@10 | t2i R@10 |",
        "| --------------- | -----: | -----: | ----------------: | ------: | -------: | -------: |",
        "| resnet18 + lstm |     30 | 0.5123 |            0.6000 |    12.5 |     45.0 |     50.0 |",
        "| chance          |      – |      – |                 – |     0.1 |      1.0 |      1.0 |",
        "",
        "Recall in percent, among 1,000 images, 5,000 texts.",
    ]


def test_candidates_become_a_column_where_they_differ():
    table = final_table([ROWS[0], {**ROWS[1], "images": 100, "texts": 500}, {"model": "a|b"}], markdown=True)
    lines = table.splitlines()
    assert "100 images, 500 texts" in lines[3] and lines[4].startswith("| a\\|b") and "among" not in table
    with pytest.raises(ValueError, match="at least one"):
        final_table([])
