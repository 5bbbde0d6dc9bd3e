"""Bars on a pseudo-terminal of 80 columns, and plain lines where there is no terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

import pytest
from varalign.data import bar as module
from varalign.data.bar import Bar, duration
from varalign.data.waiting import counted, silent, waiting

pty = pytest.importorskip("pty", reason="pseudo-terminals are of Unix")
termios = pytest.importorskip("termios")

RUN = """
import sys
from varalign.data import live_bar
from varalign.data.waiting import waiting
from varalign.runs.progress import ProgressLine

live_bar.SHOWN_AFTER = 0.0
line = ProgressLine(epochs=1000, steps_per_epoch=2)
step = {"loss": 12.3456, "w_i2t": 0.5, "w_t2i": 0.5, "seconds": 9999.0, "data_wait": 1.0}
for epoch in range(2):
    for _ in range(2):
        line.advance(1)
        line.step(step, 12345)
        with waiting("encoding images [bold]of[/bold] a description that does not fit into a line", 7) as bar:
            bar.advance(3)
            live_bar.LiveBar._display.refresh()
    figures = {"loss": 9.8765, "i2t_recall@1": 1, "t2i_recall@1": 1, "images": 8, "texts": 9}
    line.epoch_done({"split": "dev", "epoch": epoch + 1, **figures})
with waiting("t-SNE", 1):
    live_bar.LiveBar._display.refresh()
line.close()
print("result")
"""


def on_terminal(columns: int = 80, **environment: str) -> str:
    """What the run above writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns)) if hasattr(termios, "tcsetwinsize") else _set_size(theirs, columns)
    unset = {"NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
    known = {name: value for name, value in os.environ.items() if name not in unset}
    known |= {"TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    written: list[bytes] = []

    def read() -> None:
        while True:
            try:
                written.append(os.read(ours, 1 << 16))
            except OSError:  # as Linux ends it
                return
            if not written[-1]:
                return

    reader = threading.Thread(target=read)
    reader.start()
    code = subprocess.run([sys.executable, "-c", RUN], stdout=theirs, stderr=theirs, env=known, check=False).returncode
    os.close(theirs)
    reader.join()
    os.close(ours)
    shown = b"".join(written).decode()
    assert code == 0, shown
    return shown


def _set_size(handle: int, columns: int) -> None:
    import fcntl
    import struct

    fcntl.ioctl(handle, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


def lines_of(shown: str) -> list[str]:
    return [line.rstrip() for line in re.split("[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)) if line.strip()]


def test_every_line_fits_80_columns_and_the_time_left_comes_first() -> None:
    lines = lines_of(on_terminal())
    assert max(map(len, lines)) <= 80
    bars = [line for line in lines if "━" in line]
    assert all(re.match(r"(\? left|\d.* (left|so far)) ", line) for line in bars)
    assert all(text in "".join(bars) for text in ("epoch 1/1000", "encoding images [bold]of[/bold]"))
    assert any("43%" in line for line in bars), "three of seven"
    assert any(re.match(r"\d+ s so far .* t-SNE$", line) for line in bars), "a single unit has no time left"
    assert "dev: 8 images, 9 texts; recall in percent" in lines
    wanted = r"epoch 2/1000  loss 12.3456  dev loss 9.8765  i2t R@1 100.0  t2i R@1 100.0"
    assert wanted in lines, "the time left, 230 h 40 min, does not fit"
    assert lines[-1] == "result"


def test_no_color_is_obeyed_and_a_terminal_without_a_cursor_has_plain_lines() -> None:
    coloured = r"\x1b\[[0-9;]*3[0-9]"
    assert re.search(coloured, on_terminal())
    assert not re.search(coloured, on_terminal(NO_COLOR="1"))
    assert lines_of(on_terminal(40))[-1] == "result"


def test_plain_lines_come_at_ten_seconds_and_whenever_the_time_has_doubled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([0.0, 4.0, 12.0, 13.0, 23.0, 30.0, 60.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))
    with waiting("recall", 12_000, 2_000) as bar:
        for done in (1_000, 1_000, 500, 500, 2_000):
            bar.advance(done)
        bar.advance(5_000)
    assert capsys.readouterr() == (
        "",
        "48 s left: recall: 4,000 of 12,000\n30 s left: recall: 7,000 of 12,000\n",
    )


def test_work_without_a_total_says_how_much_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([0.0, 11.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))
    waiting("captions").advance(1_500, "captions of b.tsv")
    assert capsys.readouterr().err == "captions of b.tsv: 1,500\n"


def test_nothing_is_shown_where_it_is_silent_or_in_another_thread(capsys: pytest.CaptureFixture[str]) -> None:
    found: list[Bar] = []
    with silent():
        found.append(waiting("a"))
    thread = threading.Thread(target=lambda: found.append(waiting("b")))
    thread.start()
    thread.join()
    assert [type(bar) for bar in found] == [Bar, Bar] and type(waiting("c")) is not Bar
    assert list(counted([3, 1], "d")) == [3, 1]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (float("inf"), "?")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
