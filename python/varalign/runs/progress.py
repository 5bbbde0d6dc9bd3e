"""What a person sees during training: one live line and one plain line per epoch."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from varalign.data.terminal import print_lines, printable_lines
from varalign.runs.result_table import candidates

_WINDOW = 50  # steps over which the shown rates are averaged: long enough to be calm, short enough to show a change


def to_stderr(text: str) -> None:
    """Print a remark on standard error."""
    print_lines(text, sys.stderr)


def duration(seconds: float) -> str:
    """Seconds as `41 s`, `3 min 20 s` or `2 h 5 min`."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def slow_progress(what: str, say: Callable[[str], None], every: float = 10.0) -> Callable[[int, int], None]:
    """To be called with what is done and how much there is: says so, with the time left, every so many seconds.

    Nothing is said of work that takes less than `every`.
    """
    began = last = time.monotonic()

    def told(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every and done < total:
            last = now
            say(f"{what}: {done:,} of {total:,}, {duration((now - began) * (total - done) / done)} left")

    return told


class ProgressLine:
    """A live line with loss, both weights, images a second, share of time waiting for data, and time left.

    On a terminal it is a tqdm bar over all steps of the run. Elsewhere (a log file, CI) only one plain line per epoch
    is printed, by `epoch_done`. Everything goes to standard error: standard output is for results.

    Args:
        epochs, steps_per_epoch: of the whole run, at least 1.
        first_step: steps that the run had done before it was resumed.
        quiet: print nothing at all.
    """

    def __init__(self, *, epochs: int, steps_per_epoch: int, first_step: int = 0, quiet: bool = False) -> None:
        self._epochs, self._steps_per_epoch, self._quiet = epochs, steps_per_epoch, quiet
        self._done = first_step
        self._shown = {"loss": math.nan, "w_i2t": math.nan, "w_t2i": math.nan}
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=_WINDOW)  # seconds, images, seconds waited
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm  # late: `varalign --help` imports this file too

            self._bar = tqdm(
                total=epochs * steps_per_epoch,
                initial=first_step,
                file=sys.stderr,
                bar_format="{desc} {percentage:3.0f}%|{bar:12}| {postfix}",
                dynamic_ncols=True,
                leave=False,
            )

    def step(self, line: Mapping[str, Any], images: int) -> None:
        """Count one step.

        Args:
            line: `loss`, `w_i2t` and `w_t2i`; `seconds` that the step took, `data_wait` of them for its batch.
            images: size of the batch.
        """
        self._recent.append((line["seconds"], images, line["data_wait"]))
        self._done += 1
        self._shown = {name: line[name] for name in self._shown}
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {self._epoch()}/{self._epochs}", refresh=False)
            self._bar.set_postfix_str(self._figures(), refresh=False)
            self._bar.update(1)

    def epoch_done(self, epoch: int, figures: Mapping[str, float], *, note: str = "") -> None:
        """Print one lasting line for the epoch, above the bar: the last steps' figures and the recalls on dev.

        `figures` holds keys of `eval --json`; those with `_recall@` are shown, with the numbers of candidates.
        """
        parts = [f"epoch {epoch}/{self._epochs}"]
        if self._recent:
            parts.append(self._figures())
        for direction in ("i2t", "t2i"):
            found = {k: v for k, v in figures.items() if k.startswith(f"{direction}_recall@")}
            if found:
                at = "/".join(key.rpartition("@")[2] for key in found)
                parts.append(f"{direction} R@{at} " + "/".join(f"{100 * value:.1f}" for value in found.values()))
        if "images" in figures and "texts" in figures:
            parts.append(candidates(figures))
        self.message("  ".join(parts) + (f"  {note}" if note else ""))

    def message(self, text: str) -> None:
        """Print a lasting line without tearing the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(printable_lines(text), file=sys.stderr)
        else:
            to_stderr(text)

    def close(self) -> None:
        """Take the bar away; what was printed stays."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _epoch(self) -> int:
        return min(self._epochs, (max(self._done, 1) - 1) // self._steps_per_epoch + 1)

    def _figures(self) -> str:
        seconds = sum(entry[0] for entry in self._recent)
        images = sum(entry[1] for entry in self._recent)
        waited = sum(entry[2] for entry in self._recent)
        shown = self._shown
        rate = f"{images / seconds:,.0f}" if seconds > 0 else "?"
        share = f"{100 * min(1.0, waited / seconds):.1f}" if seconds > 0 else "?"
        left = (self._epochs * self._steps_per_epoch - self._done) * seconds / max(1, len(self._recent))
        return (
            f"loss {shown['loss']:.4f}  i2t {shown['w_i2t']:.3f} t2i {shown['w_t2i']:.3f}  "
            f"{rate} images/s  data wait {share}%  {duration(left)} left"
        )
