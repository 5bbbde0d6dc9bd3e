"""How a run reports: the progress line on standard error, and TensorBoard beside it if asked."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.runs.progress import ProgressLine


class ProgressReporter:
    """Receives progress events during training, and shows them.

    Args:
        config: the options.
        steps_per_epoch: steps of an epoch.
        first_step: steps that are done already.
        run: the run folder, where TensorBoard events go.
        say: called with the remarks, and nothing else is shown; None: everything goes to standard error.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        steps_per_epoch: int,
        first_step: int,
        run: Path,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._board = _tensorboard(run) if config.tensorboard else None
        self._line = ProgressLine(
            epochs=config.epochs, steps_per_epoch=steps_per_epoch, first_step=first_step, quiet=say is not None
        )
        self.remark = say or self._line.message
        """Called with a text that a person should know; it is printed on a line of its own."""

    def step(self, line: dict[str, Any], images: int) -> None:
        """A step's line of metrics, some steps late, and the size of its batch."""
        self._line.step(line, images)
        if self._board is not None:
            for name in ("loss", "loss_i2t", "loss_t2i", "w_i2t", "w_t2i", "logit_scale", "lr"):
                self._board.add_scalar(f"train/{name}", line[name], line["step"])

    def evaluation(self, line: dict[str, Any]) -> None:
        """The metrics of an evaluation on dev."""
        self._line.epoch_done(line["epoch"], line, note=f"dev loss {line['loss']:.4f}")
        if self._board is not None:
            for name, value in line.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"dev/{name}", value, line["step"])

    def close(self) -> None:
        """Finish the line and TensorBoard's file."""
        self._line.close()
        if self._board is not None:
            self._board.close()


def check_tensorboard(config: TrainConfig) -> None:
    """Refuse `--tensorboard` where the package is missing.

    Raises:
        ConfigError: naming the extra.
    """
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("--tensorboard needs the package: pip install 'varalign[tensorboard]'")


def _tensorboard(run: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run / "tensorboard"))
