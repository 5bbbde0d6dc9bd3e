"""Where a run's time went (`--profile`): a table of its parts, and a trace of a few steps.

Code that a part's time is counted for stands in `with part(NAME):`. While no profile is taken, that does nothing.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from varalign.data.files import read_bytes, write_atomically
from varalign.runs.run_errors import RunError

PARTS = {
    "start": "data, model, closed form",
    "data": "waiting for batches",
    "towers": "encoders and heads, forward",
    "loss": "loss and schedule, forward",
    "backward": "gradients of loss, heads and encoders",
    "optimiser": "clipping and the step",
    "looks": "evaluations on dev",
    "saving": "checkpoints",
    "test": "hub correction and the last evaluation",
}
OTHER = "other"
TRACED_STEPS = (3, 5)
"""Steps before the trace, the last of them to warm it up, and steps in it."""
_LARGEST = 1 << 20
_NOTHING: AbstractContextManager[None] = nullcontext()
T = TypeVar("T")


class Profile:
    """Counts the time of parts of the code; the time of a part within another counts once, for the inner one.

    Each part waits for the GPU, if there is one at work, so that what it queued counts for it.
    """

    def __init__(self) -> None:
        self.seconds, self.times = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0)
        self.trace: bytes | None = None
        self._began = time.perf_counter()
        self._inner = [0.0]  # for each part that is entered: the time of the parts within it
        self._tracer: Any = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time within for a part."""
        import torch
        from torch.autograd.profiler import record_function

        began = time.perf_counter()
        self._inner.append(0.0)
        try:
            with record_function(name):
                yield
                if torch.cuda.is_initialized():
                    torch.cuda.synchronize()
        finally:
            spent = time.perf_counter() - began
            self.seconds[name] += spent - self._inner.pop()
            self.times[name] += 1
            self._inner[-1] += spent

    def step(self) -> None:
        """Count a step for the trace, which begins and ends between steps."""
        from torch.profiler import profile, schedule

        before, steps = TRACED_STEPS
        if self._tracer is None:
            plan = schedule(wait=before - 1, warmup=1, active=steps, repeat=1)
            self._tracer = profile(schedule=plan, on_trace_ready=self._keep)
            self._tracer.start()
        self._tracer.step()

    def _keep(self, tracer: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "trace.json")
            tracer.export_chrome_trace(str(file))
            self.trace = file.read_bytes()

    def finish(self) -> dict[str, Any]:
        """End the trace, of however many steps, and give the table's figures."""
        if self._tracer is not None:
            self._tracer.stop()
            self._tracer = None
        total = time.perf_counter() - self._began
        parts = {name: [self.seconds[name], self.times[name]] for name in PARTS if self.times[name]}
        rest = total - sum(seconds for seconds, _ in parts.values())
        return {"seconds": total, "parts": {**parts, OTHER: [rest, 1]}}


_active: Profile | None = None


def part(name: str) -> AbstractContextManager[None]:
    """To be entered around the code of a part of `PARTS`."""
    return _NOTHING if _active is None else _active.part(name)


def waited_for(name: str, items: Iterable[T]) -> Iterator[T]:
    """The items; the time that each is waited for counts for a part."""
    each = iter(items)
    while True:
        with part(name):
            try:
                item = next(each)
            except StopIteration:
                return
        yield item


def step_done() -> None:
    """To be called after each training step."""
    if _active is not None:
        _active.step()


@contextmanager
def profiling(wanted: bool) -> Iterator[Profile | None]:
    """While entered, a profile is taken if it is wanted."""
    global _active
    if not wanted:
        yield None
        return
    _active = Profile()
    try:
        yield _active
    finally:
        _active.finish()
        _active = None


def write_profile(profile: Profile, file: Path, trace: Path) -> list[str]:
    """Write the figures, and the trace where a step was made; returns the table's lines."""
    figures = profile.finish()
    write_atomically(file, json.dumps(figures).encode())
    if profile.trace is not None:
        write_atomically(trace, profile.trace)
    return table(figures)


def read_table(file: Path) -> list[str]:
    """The lines of the table that a run folder keeps; none without a profile.

    Raises:
        RunError: the file is damaged.
    """
    if not file.is_file():
        return []
    try:
        return table(json.loads(read_bytes(file, _LARGEST)))
    except (ValueError, TypeError, LookupError, AttributeError):
        raise RunError(f"{file}: damaged: delete it, the run is whole without it") from None


def table(figures: Mapping[str, Any]) -> list[str]:
    """A line for each part: its time, its share and how often it was entered."""
    total = figures["seconds"]
    lines = [f"{'part':10}{'seconds':>10}{'share':>8}{'times':>9}"]
    for name, (seconds, times) in sorted(figures["parts"].items(), key=lambda entry: -entry[1][0]):
        about = PARTS.get(name, "the rest")
        lines.append(f"{name:10}{seconds:10.2f}{100 * seconds / total:7.1f}%{times:9,}  {about}")
    return [*lines, f"{'in all':10}{total:10.2f}"]
