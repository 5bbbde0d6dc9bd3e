"""`train` and `resume`: from options to a finished run folder."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from varalign import __version__
from varalign.aligner.aligner import Aligner
from varalign.inputs.build import Data, Parts, assemble, new_model, open_data, saved_model
from varalign.options.config import TrainConfig
from varalign.options.device import pick_device, pick_precision
from varalign.options.recipe import fill, filled
from varalign.pictures.run_page import write_report
from varalign.runs.checkpoint import step_folders
from varalign.runs.folder import RunError, RunFolder, to_stderr
from varalign.runs.progress import final_table
from varalign.runs.quarantine import Quarantine, summary
from varalign.runs.reporter import ProgressReporter, check_tensorboard
from varalign.runs.signals import Interrupted, StopSignals
from varalign.training.losses import new_loss
from varalign.training.pair_weights import write_pairs
from varalign.training.start import Beginning, begin
from varalign.training.trainer import Trainer
from varalign.training.wise_ft import go_part_of_the_way

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        run: the run folder.
        model: the spec strings of its encoders.
        epochs: epochs trained.
        best_epoch: the epoch whose weights are the best on dev; 0 is the start.
        seconds: wall time, set-up and evaluation included.
        test: the numbers of `eval --json` on the test split with the best weights.
        chance: what a ranking without any knowledge reaches there.
        aligner: the trained model, ready to embed and rank.
    """

    run: Path
    model: str
    epochs: int
    best_epoch: int
    seconds: float
    test: dict[str, Any]
    chance: dict[str, Any]
    aligner: Aligner

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON takes it."""
        names = ("model", "epochs", "best_epoch", "seconds", "test", "chance")
        return {"run": str(self.run), **{name: getattr(self, name) for name in names}}

    def table(self) -> str:
        """The final table with the zero-knowledge row, and where the run lies."""
        rows = [{"model": self.model, "epochs": self.epochs, **self.test}, self.chance]
        return f"{final_table(rows)}\nbest epoch {self.best_epoch}, {self.seconds:.0f} s in all; run folder: {self.run}"


def train(config: TrainConfig, *, say: Say | None = None, progress: bool = True) -> TrainResult:
    """Train from the beginning.

    Args:
        config: the options.
        say: called with each remark; standard error if None.
        progress: whether the live line and a line an epoch go to standard error.

    Returns:
        The result; everything else is in the run folder.

    Raises:
        DataError: options or data that no run can be made of.
        WeightsUnavailable: pretrained weights are neither here nor in reach.
        RunError: the output folder cannot be used.
        Interrupted: SIGINT or SIGTERM came; the message says what is saved and how to go on.
    """
    config.validate()
    say = say or to_stderr
    started = time.perf_counter()
    device = pick_device(config.device)
    out = None if config.out is None else Path(config.out)
    if out is not None:
        RunFolder.check_new(out)
    check(config, device)
    with StopSignals() as stop, _nothing_saved():
        return _train(config, out, device, say, started, stop, progress)


def check(config: TrainConfig, device: torch.device) -> None:
    """Refuse what can be refused before anything is written.

    Args:
        config: the options, validated.
        device: where the run is to train.

    Raises:
        ConfigError: a precision, a loss's number or a reporter that cannot be had.
    """
    pick_precision(config.precision, device)
    new_loss(config, None)
    check_tensorboard(config)


def _train(
    config: TrainConfig,
    out: Path | None,
    device: torch.device,
    say: Say,
    started: float,
    stop: StopSignals,
    progress: bool,
) -> TrainResult:
    opened, data = open_data(config, say)
    config = fill(opened, len(data.rows("train")))
    say(f"{config.start} start, {len(data.rows('train')):,} training images: {filled(opened, config) or 'as told'}")
    parts, start = _first_parts(config, data, device, say)
    config = parts.config
    parts.images.prepare()
    run = RunFolder.create(out)
    with run.locked():
        model = parts.save_assets(run)
        run.write_config(
            {
                "version": __version__,
                "name": parts.name,
                "options": replace(config, out=str(run.path)).as_dict(),
                "model": model,
                "start": start.as_dict(),
                "data": {"fingerprint": data.fingerprint, "images": len(data.split), "texts": len(data.caption_owner)},
                "machine": {"python": platform.python_version(), "torch": torch.__version__, "device": str(device)},
            }
        )
        return _finish(config, parts, run, say, started, start, stop, progress)


def _first_parts(config: TrainConfig, data: Data, device: torch.device, say: Say) -> tuple[Parts, Beginning]:
    """The parts of a run that begins, its weights drawn by the seed, its heads where they start."""
    torch.manual_seed(config.seed)
    parts = assemble(config, data, new_model(config, data).to(device), say)
    start = begin(parts, config, say)
    parts.config = start.config
    return parts, start


@contextmanager
def _nothing_saved() -> Iterator[None]:
    """Say so where a signal comes before there is anything to save."""
    try:
        yield
    except Interrupted as error:
        if not str(error):
            error.args = (f"{error.name}: stopped before training began, so there is nothing to save",)
        raise


def resume(path: Path, overrides: dict[str, Any], *, say: Say | None = None, progress: bool = True) -> TrainResult:
    """Go on with a run that was interrupted, from its newest whole checkpoint.

    Args:
        path: the run folder.
        overrides: options that do not change the result (device, threads, cache).
        say: called with each remark; standard error if None.
        progress: whether the live line and a line an epoch go to standard error.

    Raises:
        RunError: no such run, or its data are not what they were.
    """
    say = say or to_stderr
    started = time.perf_counter()
    run = RunFolder.open(path)
    with run.locked(), StopSignals() as stop, _nothing_saved():
        saved = run.config()
        options = {"start": "random", **run.options(say), **overrides}  # `start` is younger than the first runs
        config, data = open_data(TrainConfig(**options).validate(), say)
        config = fill(config, len(data.rows("train")))
        if data.fingerprint != saved.get("data", {}).get("fingerprint"):
            raise RunError(
                f"{path}: its data in {config.data or config.features} have changed since; train anew, or put them back"
            )
        device = pick_device(config.device)
        start = None
        if step_folders(run.checkpoints):
            torch.manual_seed(config.seed)
            parts = assemble(config, data, saved_model(run).to(device), say)
        else:
            say("no checkpoint yet: starting from the beginning")
            parts, start = _first_parts(config, data, device, say)
        parts.images.prepare()
        return _finish(parts.config, parts, run, say, started, start, stop, progress)


def _finish(
    config: TrainConfig,
    parts: Parts,
    run: RunFolder,
    say: Say,
    started: float,
    start: Beginning | None,
    stop: StopSignals,
    shows: bool,
) -> TrainResult:
    pairs = None if start is None else start.pairs
    trainer = Trainer(config, parts, run, pair_weights=pairs.weights if pairs else None)
    if start is None:
        trainer.resume(say)
        say(f"resumed at step {trainer.progress.step}")
    else:
        run.cut_metrics(-1)
        if pairs is not None:
            write_pairs(run.pairs, parts, pairs.weights, scores=pairs.scores)
    reporter = ProgressReporter(
        config,
        steps_per_epoch=trainer.steps_per_epoch,
        first_step=trainer.progress.step,
        run=run.path,
        say=None if shows else say,
    )
    try:
        progress = trainer.fit(reporter, stop)
    finally:
        reporter.close()
    if config.pair_weighting == "moments" and trainer.pair_weights is not None:
        write_pairs(run.pairs, parts, trainer.pair_weights, moments=trainer.moments)
    bad = parts.bad_images()
    if bad:
        say(f"{len(bad)} unreadable images were replaced or left out, {run.quarantine} names them: {summary(bad)}")
    try:
        with stop.at_once():
            if config.wise_ft:
                go_part_of_the_way(parts, run, say)
            aligner = Aligner(parts.model, config, name=parts.name, run=run, parts=parts)
            aligner.load_weights("best")
            test, chance = aligner.evaluate("test"), aligner.chance("test")
            Quarantine(run.quarantine).add(parts.bad_images())
            write_report(run, [{"model": parts.name, "epochs": progress.epoch, **test}, chance])
    except Interrupted as error:
        error.args = (
            f"{error.name}: training is done and saved, the last evaluation is not; "
            f"`varalign train --resume {run.path}` makes it",
        )
        raise
    return TrainResult(
        run=run.path,
        model=parts.name,
        epochs=progress.epoch,
        best_epoch=progress.best_epoch,
        seconds=time.perf_counter() - started,
        test=test,
        chance=chance,
        aligner=aligner,
    )
