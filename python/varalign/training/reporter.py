"""How a run speaks: a progress line on a terminal, a line an epoch elsewhere, TensorBoard beside it if asked."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from varalign.training.config import TrainConfig
from varalign.training.run_folder import RunFailed, to_stderr


class ProgressReporter:
    """Shows a run on standard error.

    Args:
        config: the options.
        total: steps of the whole run.
        start: steps that are done already.
        run: the run folder, where TensorBoard events go.

    Raises:
        RunFailed: TensorBoard is asked for and not installed.
    """

    def __init__(self, config: TrainConfig, *, total: int, start: int, run: Path) -> None:
        from tqdm import tqdm

        self._epochs, self._total = config.epochs, total
        self._bar = tqdm(total=total, initial=start, unit="step", file=sys.stderr, disable=not sys.stderr.isatty(), dynamic_ncols=True)
        self._board = _tensorboard(run) if config.tensorboard else None
        self._seconds = self._waited = 0.0
        self._images = self._steps = 0
        self._done, self._started, self._start = start, time.perf_counter(), start
        self._last: dict[str, Any] = {}

    def step(self, line: dict[str, Any], images: int) -> None:
        """A line of metrics: moves the bar, and sums what the epoch's line tells."""
        self._seconds += line["seconds"]
        self._waited += line["data_wait"]
        self._images, self._steps, self._done = self._images + images, self._steps + 1, line["step"]
        self._last = line
        self._bar.update(1)
        self._bar.set_postfix_str(
            f"epoch {line['epoch']}/{self._epochs} loss {line['loss']:.3f} w {line['w_i2t']:.3f}/{line['w_t2i']:.3f} "
            f"{self._rate():.0f} images/s data wait {self._wait():.1%}",
            refresh=False,
        )
        if self._board is not None:
            for name in ("loss", "loss_i2t", "loss_t2i", "w_i2t", "w_t2i", "logit_scale", "lr"):
                self._board.add_scalar(f"train/{name}", line[name], line["step"])

    def evaluation(self, line: dict[str, Any]) -> None:
        """An evaluation on dev: one line that stays."""
        parts = [f"epoch {line['epoch']:>3}/{self._epochs}"]
        if self._last:
            parts += [f"loss {self._last['loss']:.3f}", f"w {self._last['w_i2t']:.3f}/{self._last['w_t2i']:.3f}"]
        recalls = " ".join(f"{direction} {100 * line[f'{direction}_recall@1']:.1f}/{100 * line[f'{direction}_recall@10']:.1f}" for direction in ("i2t", "t2i"))
        parts += [f"dev R@1/10 {recalls}", f"dev loss {line['loss']:.3f}"]
        if self._steps:
            parts += [f"{self._rate():.0f} images/s", f"data wait {self._wait():.1%}", f"{self._left()} left"]
        self.say("  ".join(parts))
        self._seconds = self._waited = 0.0
        self._images = self._steps = 0
        if self._board is not None:
            for name, value in line.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"dev/{name}", value, line["step"])

    def say(self, text: str) -> None:
        """A remark, above the bar."""
        if self._bar.disable:
            to_stderr(text)
        else:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Finish the bar and TensorBoard's file."""
        self._bar.close()
        if self._board is not None:
            self._board.close()

    def _rate(self) -> float:
        return self._images / max(self._seconds, 1e-9)

    def _wait(self) -> float:
        return self._waited / max(self._seconds, 1e-9)

    def _left(self) -> str:
        per_step = (time.perf_counter() - self._started) / max(1, self._done - self._start)
        minutes, seconds = divmod(round(per_step * (self._total - self._done)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}"


def _tensorboard(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise RunFailed("--tensorboard needs the package: pip install 'varalign[tensorboard]'") from None
    return SummaryWriter(str(run / "tensorboard"))
