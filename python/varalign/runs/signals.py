"""SIGINT and SIGTERM during a run: the first one ends it in order, the second one at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from varalign.data.ranks import world

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal has ended the run; the message says what is saved and how to go on.

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
    """Handles SIGINT and SIGTERM while entered; the handlers before are restored at the end.

    The first signal raises `Interrupted` in the code that runs, or, within `held`, is only noted in `received`, which
    the program reads when it can stop in order. A second one ends the process at once, every thread with it. Outside
    the main thread nothing is received: Python allows no signal handlers there.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0
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
        """Within, the first signal is only noted."""
        before, self._raises = self._raises, False
        try:
            yield
        finally:
            self._raises = before

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, the first signal raises `Interrupted`, also inside `held`; one that was noted before raises now."""
        before, self._raises = self._raises, True
        try:
            if self.received is not None:
                raise Interrupted(self.received)
            yield
        finally:
            self._raises = before

    def _handle(self, number: int, _: FrameType | None) -> None:
        # A launcher of several processes sends on what they have had from the terminal already.
        if self.received is not None and world().size > 1 and time.monotonic() - self._received_at < 5:
            return
        if self.received is not None:
            _tell(f"varalign: {signal.Signals(number).name} again: leaving at once\n")
            os._exit(128 + number)  # without clean-up or waiting for threads
        self.received, self._received_at = number, time.monotonic()
        if self._raises:
            self._raises = False
            raise Interrupted(number)
        _tell(
            f"varalign: {signal.Signals(number).name}: finishing the step and writing a checkpoint; "
            "once more to leave at once\n"
        )


def _tell(text: str) -> None:
    with suppress(OSError):  # standard error may be closed
        text = "\n" + text if os.isatty(2) else text  # the cursor stands behind ^C, or behind a bar
        os.write(2, text.encode())  # sys.stderr may be in the middle of a write
