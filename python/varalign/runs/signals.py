"""SIGINT and SIGTERM during a run: the first one ends it in order, the second one at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A run that a signal has ended; the message says what is saved and how to go on.

    Attributes:
        number: the signal.
        exit_code: what the program leaves with, 128 + number: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number, self.exit_code = number, 128 + number

    @property
    def name(self) -> str:
        """`SIGINT` or `SIGTERM`."""
        return signal.Signals(self.number).name


class StopSignals:
    """While entered, holds the handlers of SIGINT and SIGTERM; the ones before come back at the end.

    The first signal raises `Interrupted` where the program stands, or, within `held`, is only noted in `received` for
    the program to look at when it can stop in order. A second one ends the process at once, every thread with it.
    Outside the main thread, where Python lets nobody handle signals, nothing is ever received.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._raises = True
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @contextmanager
    def held(self) -> Iterator[None]:
        """The first signal is only noted within."""
        before, self._raises = self._raises, False
        try:
            yield
        finally:
            self._raises = before

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """The first signal raises `Interrupted` within, in a part of `held` too; one that was noted raises now."""
        before, self._raises = self._raises, True
        try:
            if self.received is not None:
                raise Interrupted(self.received)
            yield
        finally:
            self._raises = before

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            _tell(f"varalign: {signal.Signals(number).name} again: leaving at once\n")
            os._exit(128 + number)  # nothing may delay it: no clean-up, no waiting for threads
        self.received = number
        if self._raises:
            self._raises = False
            raise Interrupted(number)
        _tell(
            f"varalign: {signal.Signals(number).name}: finishing the step and writing a checkpoint; "
            "once more to leave at once\n"
        )


def _tell(text: str) -> None:
    with suppress(OSError):  # nobody listens any more
        os.write(2, text.encode())  # not through sys.stderr, which may be in the middle of a line of its own
