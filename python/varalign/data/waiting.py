"""Progress of work that may take more than a moment, on standard error: the one interface for every command.

    with waiting("image features", 8091) as bar:
        for batch in batches:
            ...
            bar.advance(len(batch))

On a terminal it is a bar that moves (`varalign.data.live_bar`). Elsewhere it is a plain line after ten seconds, and
further ones each time the elapsed time has doubled. Results go to standard output, so that the two never mix.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from multiprocessing import parent_process
from typing import TypeVar

from varalign.data.bar import Bar, PlainBar
from varalign.data.ranks import world
from varalign.data.terminal import underlying

_SILENT: ContextVar[bool] = ContextVar("silent", default=False)
T = TypeVar("T")


def waiting(what: str, total: int | None = None, done: int = 0) -> Bar:
    """Begin to show a piece of work; the bar is a context manager.

    Bars may stand within each other. Nothing is shown within `silent`, outside the main thread of the first process,
    and of work that takes less than a second.

    Args:
        what: a few words, such as `image features`.
        total: how many units there are; None where nobody knows.
        done: units that were done before.
    """
    is_main = parent_process() is None and threading.current_thread() is threading.main_thread()
    if _SILENT.get() or sys.stderr is None or not is_main or not world().is_writer:
        return Bar()
    if on_terminal():
        from varalign.data.live_bar import LiveBar

        return LiveBar(what, total, done)
    return PlainBar(what, total, done)


def counted(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items one after the other, each counted as done when the next one is asked for."""
    with waiting(what, total) as bar:
        for item in items:
            yield item
            bar.advance()


@contextmanager
def silent() -> Iterator[None]:
    """Within it no work is shown."""
    before = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(before)


def on_terminal() -> bool:
    """Whether standard error is a terminal that can move its cursor."""
    return underlying(sys.stderr).isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
