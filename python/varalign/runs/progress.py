"""What a person sees while training and after it: one live line, one plain line an epoch, and the final table."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

_WINDOW = 50  # steps that the shown rates are taken over: long enough to be calm, short enough to show a change


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


class ProgressLine:
    """A live line with loss, both weights, images a second, share of time waiting for data, and time left.

    On a terminal it is a tqdm bar over all steps of the run. Elsewhere (a log file, CI) nothing is drawn but one plain
    line an epoch, from `epoch_done`. Everything goes to standard error: standard output is for results.

        with ProgressLine(epochs=30, steps_per_epoch=46) as line:
            for epoch in range(30):
                for batch in batches:
                    …
                    line.step(loss=…, w_i2t=…, w_t2i=…, images=128, data_wait=batch.wait)
                line.epoch_done(epoch + 1, figures)

    Args:
        epochs, steps_per_epoch: of the whole run, at least 1.
        first_step: steps done before, by the run that is resumed.
        stream: None: standard error.
        quiet: print nothing at all.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        *,
        epochs: int,
        steps_per_epoch: int,
        first_step: int = 0,
        stream: TextIO | None = None,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        self._stream = stream or sys.stderr
        self._quiet, self._clock = quiet, clock
        self._done = first_step
        self._shown = {"loss": math.nan, "w_i2t": math.nan, "w_t2i": math.nan}
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=_WINDOW)  # seconds, images, seconds waited
        self._last = clock()
        terminal = not quiet and self._stream.isatty()
        self._bar: Any = None
        if terminal:
            self._bar = tqdm(
                total=epochs * steps_per_epoch,
                initial=first_step,
                file=self._stream,
                bar_format="{desc} {percentage:3.0f}%|{bar:12}| {postfix}",
                dynamic_ncols=True,
                leave=False,
            )

    def step(
        self,
        *,
        images: int,
        seconds: float | None = None,
        data_wait: float = 0.0,
        loss: float | None = None,
        w_i2t: float | None = None,
        w_t2i: float | None = None,
    ) -> None:
        """Count one step; figures that are None (not fetched from the GPU this time) stay as they were shown last.

        `images` is the batch's size, `seconds` what the step took (None: the time since the last call; steps that are
        told of in blocks need it), `data_wait` how many of them it waited for its batch.
        """
        now = self._clock()
        self._recent.append((now - self._last if seconds is None else seconds, images, data_wait))
        self._last = now
        self._done += 1
        for name, value in (("loss", loss), ("w_i2t", w_i2t), ("w_t2i", w_t2i)):
            if value is not None:
                self._shown[name] = value
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {self._epoch()}/{self._epochs}", refresh=False)
            self._bar.set_postfix_str(self._figures(), refresh=False)
            self._bar.update(1)

    def epoch_done(self, epoch: int, figures: Mapping[str, float] | None = None, *, note: str = "") -> None:
        """Print one lasting line for the epoch, above the bar: its last figures and the dev recall in `figures`.

        `figures` holds keys of `eval --json`; those with `_recall@` are shown, with the numbers of candidates. Time
        since the last step (the evaluation) does not count in the next step's rate.
        """
        parts = [f"epoch {epoch}/{self._epochs}"]
        if self._recent:
            parts.append(self._figures())
        if figures:
            for direction in ("i2t", "t2i"):
                found = {k: v for k, v in figures.items() if k.startswith(f"{direction}_recall@")}
                if found:
                    at = "/".join(key.rpartition("@")[2] for key in found)
                    parts.append(f"{direction} R@{at} " + "/".join(f"{100 * value:.1f}" for value in found.values()))
            if "images" in figures and "texts" in figures:
                parts.append(candidates(figures))
        self.message("  ".join(parts) + (f"  {note}" if note else ""))
        self._last = self._clock()

    def message(self, text: str) -> None:
        """Print a lasting line without tearing the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Take the bar away; what was printed stays."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

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


def candidates(row: Mapping[str, Any]) -> str:
    """`1,000 images, 5,000 texts`: what stands beside every recall."""
    return f"{row['images']:,} images, {row['texts']:,} texts"


def final_table(rows: Sequence[Mapping[str, Any]], *, markdown: bool = False) -> str:
    """The table at the end of a run: model, epochs, loss, cosine similarity, Recall@K both ways in percent.

    Args:
        rows: one mapping a line, with `model` (text), and where known `epochs`, `loss`, `cosine_similarity` and the
            keys of `eval --json`. What is missing or None is shown as `–`. The chance row is
            `{"model": "chance", **varalign.evaluation.retrieval.chance(…)}`.
        markdown: a Markdown table; else plain text, aligned.

    Returns:
        Lines without a newline at the end. The numbers of candidates stand once below the table if they are the same
        in all rows, else as a column.

    Raises:
        ValueError: no row.
    """
    if not rows:
        raise ValueError("rows: wanted at least one, got none")
    recalls: list[str] = []
    for direction in ("i2t", "t2i"):
        keys = {key for row in rows for key in row if key.startswith(f"{direction}_recall@")}
        recalls += sorted(keys, key=lambda key: int(key.rpartition("@")[2]))
    header = ["model", "epochs", "loss", "cosine similarity"]
    header += [f"{key[:3]} R@{key.rpartition('@')[2]}" for key in recalls]
    counted = [candidates(row) if "images" in row and "texts" in row else None for row in rows]
    known = {count for count in counted if count is not None}
    body = [
        [
            str(row.get("model", "–")),
            _cell(row.get("epochs"), "d"),
            _cell(row.get("loss"), ".4f"),
            _cell(row.get("cosine_similarity"), ".4f"),
            *(_cell(row.get(key), ".1f", factor=100.0) for key in recalls),
        ]
        for row in rows
    ]
    if len(known) > 1:
        header.append("candidates")
        body = [[*line, count or "–"] for line, count in zip(body, counted, strict=True)]
    if markdown:
        body = [[cell.replace("|", "\\|") for cell in line] for line in body]
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]
    left = [column == 0 or name == "candidates" for column, name in enumerate(header)]

    def aligned(line: list[str]) -> list[str]:
        return [c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(line, widths, left, strict=True)]

    if markdown:
        rule = ["-" * w if to_left else "-" * (w - 1) + ":" for w, to_left in zip(widths, left, strict=True)]
        lines = ["| " + " | ".join(line) + " |" for line in [aligned(header), rule, *map(aligned, body)]]
    else:
        rule = ["─" * width for width in widths]
        lines = ["  ".join(line).rstrip() for line in [aligned(header), rule, *map(aligned, body)]]
    if len(known) == 1 and recalls:
        lines += [""] * markdown + [f"Recall in percent, among {known.pop()}."]
    return "\n".join(lines)


def _cell(value: Any, form: str, *, factor: float | None = None) -> str:
    if value is None:
        return "–"
    return format(value if factor is None else factor * value, form)
