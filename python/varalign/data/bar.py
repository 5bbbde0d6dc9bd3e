"""One piece of work as a person sees it: not at all, or in plain lines; `varalign.data.live_bar` draws it."""

from __future__ import annotations

import math
import sys
import time

from varalign.data.terminal import print_lines

FIRST_LINE = 10.0
"""Seconds of work before the first plain line."""


class Bar:
    """One piece of work, counted as it is done; this class shows nothing."""

    def advance(self, done: int = 1, what: str = "") -> None:
        """Count more work as done.

        Args:
            done: units of the work's total.
            what: from now on the description; "" leaves it.
        """

    def close(self) -> None:
        """Take the bar away; the work has ended or failed."""

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PlainBar(Bar):
    """A line on standard error after `FIRST_LINE` seconds, and further ones each time the elapsed time has doubled."""

    def __init__(self, what: str, total: int | None, done: int) -> None:
        self._what, self._total, self._done, self._before = what, total, done, done
        self._began = time.monotonic()
        self._next = FIRST_LINE

    def advance(self, done: int = 1, what: str = "") -> None:
        self._done, self._what = self._done + done, what or self._what
        elapsed = time.monotonic() - self._began
        if elapsed < self._next or self._done == self._total:
            return
        self._next = 2 * elapsed
        line = f"{self._what}: {self._done:,}"
        if self._total is not None and self._done > self._before:
            left = elapsed * (self._total - self._done) / (self._done - self._before)
            line = f"{duration(left)} left: {line} of {self._total:,}"
        print_lines(line, sys.stderr)


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
