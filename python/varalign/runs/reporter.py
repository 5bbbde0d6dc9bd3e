"""How a run reports: the progress line on standard error, and the trackers that `--report-to` names beside it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from varalign.data.errors import how_to_install
from varalign.data.terminal import without_colours
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.runs.progress import ProgressLine, to_stderr

_PROJECT = "varalign"
_STEP_FIGURES = ("loss", "loss_i2t", "loss_t2i", "w_i2t", "w_t2i", "logit_scale", "lr")


class ProgressReporter:
    """Receives progress events during training, and shows them.

    Args:
        config: the options.
        steps_per_epoch: steps of an epoch.
        first_step: steps that are done already.
        run: the run folder, whose name is the run's in every tracker.
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
        with redirect_stdout(sys.stderr):  # trackers print; standard output is for results
            self._trackers = [_opened(name, run, config) for name in config.reporters]
        self._line = ProgressLine(
            epochs=config.epochs, steps_per_epoch=steps_per_epoch, first_step=first_step, quiet=say is not None
        )
        self.remark = say or to_stderr
        """Called with a text that a person should know; it is printed on a line of its own."""

    def advance(self, steps: int) -> None:
        """Count steps that were begun; a negative number where the run goes back."""
        self._line.advance(steps)

    def step(self, line: dict[str, Any], images: int) -> None:
        """A step's line of metrics, some steps late, and the size of its batch."""
        self._line.step(line, images)
        self._track("train", {name: line[name] for name in _STEP_FIGURES}, line["step"])

    def evaluation(self, line: dict[str, Any]) -> None:
        """The metrics of an evaluation on dev, or on the folds where no dev split is held out."""
        self._line.epoch_done(line)
        figures = {name: value for name, value in line.items() if isinstance(value, float)}
        self._track(line["split"], figures, line["step"])

    def close(self) -> None:
        """Finish the line, and wait until every tracker has what it was told."""
        self._line.close()
        with redirect_stdout(sys.stderr):
            for tracker in self._trackers:
                tracker.close()

    def _track(self, part: str, figures: Mapping[str, float], step: int) -> None:
        if not self._trackers:
            return
        with redirect_stdout(sys.stderr):
            for tracker in self._trackers:
                tracker.log({f"{part}/{name}": value for name, value in figures.items()}, step)


def check_reporters(config: TrainConfig) -> None:
    """Refuse a tracker whose package is missing.

    Raises:
        ConfigError: naming the extra.
    """
    for name in config.reporters:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"--report-to {name} needs its package: {how_to_install(name)}")


class _Tracker(NamedTuple):
    """One other program that keeps metrics: `log` takes figures by name and their step."""

    log: Callable[[Mapping[str, float], int], object]
    close: Callable[[], object]


def _opened(name: str, run: Path, config: TrainConfig) -> _Tracker:
    try:
        return _OPEN[name](run, config.as_dict())
    except Exception as error:  # each has errors of its own, such as for a server that does not answer
        raise ConfigError(f"--report-to {name} could not be opened: {without_colours(str(error))}") from error


def _tensorboard(run: Path, options: Mapping[str, Any]) -> _Tracker:
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(run / "tensorboard"))

    def log(figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            board.add_scalar(name, value, step)

    return _Tracker(log, board.close)


def _wandb(run: Path, options: Mapping[str, Any]) -> _Tracker:
    import wandb

    found = wandb.init(project=_PROJECT, name=run.name, dir=str(run), config=dict(options))
    # Steps are told some steps late, after the evaluation at their end; wandb's own counter may not go back.
    found.define_metric("*", step_metric="step")
    return _Tracker(lambda figures, step: found.log({**figures, "step": step}), found.finish)


def _trackio(run: Path, options: Mapping[str, Any]) -> _Tracker:
    import trackio

    found = trackio.init(project=_PROJECT, name=run.name, config=dict(options), embed=False)
    return _Tracker(lambda figures, step: found.log(dict(figures), step=step), trackio.finish)


def _mlflow(run: Path, options: Mapping[str, Any]) -> _Tracker:
    import mlflow

    mlflow.set_experiment(_PROJECT)
    found = mlflow.start_run(run_name=run.name).info.run_id
    mlflow.log_params(dict(options))

    def log(figures: Mapping[str, float], step: int) -> None:
        named = {name.replace("@", "_at_"): value for name, value in figures.items()}  # it takes no @
        mlflow.log_metrics(named, step=step, run_id=found, synchronous=False)

    def close() -> None:
        mlflow.flush_async_logging()
        mlflow.end_run()

    return _Tracker(log, close)


_OPEN: dict[str, Callable[[Path, Mapping[str, Any]], _Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}
"""One entry for each of `REPORTERS`."""
