"""Bars on a terminal, drawn by rich: the time left, the bar, the share done, and a description cut at the last column.

All bars that are open stand below each other in one display. What is printed on standard error meanwhile appears above
them. A bar shows once its work has taken `SHOWN_AFTER` seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from varalign.data.bar import Bar, duration

SHOWN_AFTER = 1.0
_RATE_OVER = 600.0  # seconds of past work that the time left is estimated from; steps may take minutes each


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text(f"{duration(task.elapsed or 0)} so far" if left is None else f"{duration(left)} left")


class _Share(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.percentage:.0f}%")


class _Display(Progress):
    """The bars of this process that are open."""

    def __init__(self) -> None:
        def column(ratio: int | None = None, min_width: int | None = None) -> Column:
            return Column(no_wrap=True, overflow="ellipsis", ratio=ratio, min_width=min_width)

        super().__init__(
            _TimeLeft(column(min_width=18)),
            BarColumn(16),
            _Share(column(min_width=4)),
            TextColumn("{task.description}", markup=False, table_column=column(1)),
            console=Console(file=sys.stderr, force_terminal=True, force_jupyter=False, highlight=False),
            transient=True,
            redirect_stdout=False,
            speed_estimate_period=_RATE_OVER,
            expand=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """A line for each bar whose work has taken a while."""
        shown = [task for task in self.tasks if (task.elapsed or 0) >= SHOWN_AFTER]
        if shown:
            yield self.make_tasks_table(shown)


class LiveBar(Bar):
    """A line of the display, which is up as long as one of them is open."""

    _display: _Display | None = None

    def __init__(self, what: str, total: int | None, done: int) -> None:
        if LiveBar._display is None:
            LiveBar._display = _Display()
            LiveBar._display.start()
        self._rows: _Display | None = LiveBar._display
        # A total of one unit says nothing of how far it is: that bar moves to and fro.
        self._task = self._rows.add_task(what, total=total if total != 1 else None, completed=done)

    def advance(self, done: int = 1, what: str = "") -> None:
        if self._rows is not None:
            self._rows.update(self._task, advance=done, description=what or None)

    def close(self) -> None:
        rows, self._rows = self._rows, None
        if rows is None:
            return
        rows.remove_task(self._task)
        if not rows.tasks and rows is LiveBar._display:
            LiveBar._display = None
            rows.stop()
