"""What a person sees during training: one live line and one plain line per epoch."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

from varalign.data.bar import Bar, duration
from varalign.data.ranks import world
from varalign.data.terminal import print_lines
from varalign.data.waiting import waiting
from varalign.runs.result_table import candidates

_WINDOW = 50  # steps over which the shown rates are averaged: long enough to be calm, short enough to show a change
_COLUMNS = 80


def to_stderr(text: str) -> None:
    """Print a remark on standard error; of several processes only the writer does."""
    if world().is_writer:
        print_lines(text, sys.stderr)


class ProgressLine:
    """A bar over all steps of the run with the time left, loss, images a second, share of time waiting for data and
    both weights; and a lasting line per epoch.

    Args:
        epochs, steps_per_epoch: of the whole run, at least 1.
        first_step: steps that the run had done before it was resumed.
        quiet: print nothing at all.
    """

    def __init__(self, *, epochs: int, steps_per_epoch: int, first_step: int = 0, quiet: bool = False) -> None:
        self._epochs, self._steps_per_epoch, self._quiet = epochs, steps_per_epoch, quiet
        self._done, self._loss, self._headed = first_step, math.nan, False
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=_WINDOW)  # seconds, images, seconds waited
        self._bar = Bar() if quiet else waiting(self._epoch(), epochs * steps_per_epoch, first_step)

    def advance(self, steps: int) -> None:
        """Count steps that were begun; a negative number where the run goes back."""
        self._done += steps
        self._bar.advance(steps)

    def step(self, line: Mapping[str, Any], images: int) -> None:
        """Show the figures of a step, some steps late.

        Args:
            line: `loss`, `w_i2t` and `w_t2i`; `seconds` that the step took, `data_wait` of them for its batch.
            images: size of the batch.
        """
        self._recent.append((line["seconds"], images, line["data_wait"]))
        self._loss = line["loss"]
        seconds, pictures, waited = (sum(entry[at] for entry in self._recent) for at in range(3))
        parts = [self._epoch(), f"loss {self._loss:.4f}"]
        if seconds > 0:
            parts += [f"{pictures / seconds:,.0f} images/s", f"data wait {100 * min(1.0, waited / seconds):.1f}%"]
        parts.append(f"weights i2t {line['w_i2t']:.3f} t2i {line['w_t2i']:.3f}")
        self._bar.advance(0, "  ".join(parts))

    def epoch_done(self, line: Mapping[str, Any]) -> None:
        """Print one lasting line for an epoch, of at most 80 columns; `metrics.jsonl` has all figures.

        Args:
            line: an `eval` line of the metrics, on dev or on the folds of a cross-validation.
        """
        if self._quiet:
            return
        if not self._headed:
            to_stderr(f"{line['split']}: {candidates(line)}; recall in percent")
            self._headed = True
        said = [f"epoch {line['epoch']}/{self._epochs}"]
        if self._recent:
            seconds = sum(entry[0] for entry in self._recent) / len(self._recent)
            said += [f"{duration((self._epochs * self._steps_per_epoch - self._done) * seconds)} left"]
            said += [f"loss {self._loss:.4f}"]
        said.append(f"{'dev' if line['split'] == 'dev' else 'held-out'} loss {line['loss']:.4f}")
        said += [f"{way} R@1 {100 * line[f'{way}_recall@1']:.1f}" for way in ("i2t", "t2i")]
        while len("  ".join(said)) > _COLUMNS:
            del said[1]  # of a run of a thousand epochs: the time left, which the bar shows
        to_stderr("  ".join(said))

    def close(self) -> None:
        """Take the bar away; what was printed stays."""
        self._bar.close()

    def _epoch(self) -> str:
        return f"epoch {min(self._epochs, (max(self._done, 1) - 1) // self._steps_per_epoch + 1)}/{self._epochs}"
