"""The trainer: the loop over the epochs and steps of a run, with its error handling.

The results of a step are copied to the host in blocks of `FLUSH_EVERY` steps, so that no step makes the GPU wait for
the host.

- After a signal the trainer finishes the step, writes a checkpoint and ends the run.
- It skips a step whose loss or gradient is not finite. After many such steps in a row it goes back to the checkpoint
  before them, with a lower learning rate; the second time it ends the run.
- If the disk refuses a write, it ends the run; earlier checkpoints are intact.

A run resumed from any checkpoint ends with the same result as an uninterrupted one.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from varalign.aligner.evaluate import evaluate
from varalign.data.ranks import is_lost, world
from varalign.data.sampler import epoch_batches
from varalign.encoders.ensemble import trained_in
from varalign.encoders.rank_norm import share_batch_norms
from varalign.evaluation.retrieval import mean_recall
from varalign.inputs.live import LiveImages
from varalign.inputs.parts import Parts
from varalign.options.config import TrainConfig
from varalign.options.device import members_products
from varalign.runs.checkpoint import newest_checkpoint
from varalign.runs.folder import RunFolder
from varalign.runs.metrics import CROSS_VALIDATION, MetricsLog
from varalign.runs.position import Position
from varalign.runs.profile import part, step_done, waited_for
from varalign.runs.quarantine import Quarantine
from varalign.runs.reporter import ProgressReporter
from varalign.runs.run_errors import RunFailed
from varalign.runs.signals import Interrupted, StopSignals
from varalign.training.fusion import Fusion
from varalign.training.pair_weights import moment_weights
from varalign.training.state import Saver, TrainingState
from varalign.training.steps.memory import check_batch
from varalign.training.steps.step import StepRecord, TrainingStep, fetched

FLUSH_EVERY = 20
LOWER_RATE = 0.1  # factor on the learning rate after going back; strong, because the run goes back only once


class Diverged(RunFailed):
    """Losses or gradients are not finite for many steps in a row, or for all; the message says what to do."""


class _Streak(Exception):
    """`max_nonfinite` steps in a row were skipped."""


class Trainer:
    """Trains a dual encoder under a loss schedule, into a run folder.

    Args:
        config: the options.
        parts: the data, the model and its sources, as `inputs.assemble` makes them.
        run: the run folder.
        pair_weights: (T,) float32, weight of each caption's pair in the loss; None: all 1, until
            `--pair-weighting moments` sets them.
        look: figures of the start's cross-validation: those of epoch 0, where no dev split is held out.
    """

    reporter: ProgressReporter

    def __init__(
        self,
        config: TrainConfig,
        parts: Parts,
        run: RunFolder,
        *,
        pair_weights: Tensor | None = None,
        look: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.parts, self.run = config, parts, run
        self._look = look
        self.state = TrainingState(config, parts, pair_weights)
        self._ranks = world()
        check_batch(parts)
        share_batch_norms(parts.model, self._ranks)
        trained_in(parts.model, members_products(config.precision, parts.device))
        self.log = MetricsLog(run.metrics)
        self.saver = Saver(config, run, self.state, self.log)
        self.steps_per_epoch = len(self._order(0))
        self._step = TrainingStep(config, parts, self.state, self.steps_per_epoch * config.epochs)
        self._quarantine = Quarantine(run.quarantine)
        self._pending: list[StepRecord] = []
        self._stop = StopSignals()
        self._fusion = Fusion.of(parts, config.batch_size) if parts.model.shape.members else None

    @property
    def position(self) -> Position:
        """The current position of the run."""
        return self.state.position

    def resume(self, say: Callable[[str], None]) -> bool:
        """Restore the run's newest intact checkpoint; False if it has none yet.

        Args:
            say: called with a line for each damaged checkpoint.

        Raises:
            CheckpointError: there are checkpoints, but all are damaged.
        """
        found = newest_checkpoint(self.run.checkpoints, say)
        if found is None:
            self.log.cut(-1)
            return False
        self.state.load(found)
        self.log.cut(self.position.step, evaluations=self.position.evaluated)
        self.saver.point()  # the process may have been killed between a checkpoint and its links
        if isinstance(self.parts.images, LiveImages):
            rows = {name: row for row, name in enumerate(self.parts.images.names)}
            known = self._quarantine.found.items()
            self.parts.images.unreadable.update({rows[name]: reason for name, reason in known if name in rows})
        return True

    def fit(self, reporter: ProgressReporter, stop: StopSignals | None = None) -> Position:
        """Train to the end, or until dev has not improved for `patience` epochs.

        Args:
            reporter: receives progress events.
            stop: receives signals; None: signals are not handled.

        Returns:
            The last position; `checkpoints/best` holds the best weights.

        Raises:
            Diverged: no step had a finite loss and gradient, or many in a row had not, even after going back.
            TooManyBadImages: the share of unreadable images exceeds `max_bad`.
            Interrupted: a signal came; a checkpoint of the current position is written.
            RunFailed: the disk refused a write; earlier checkpoints are intact.
        """
        self.reporter, self._stop = reporter, stop or self._stop
        try:
            with self._stop.held(), closing(self.log):
                while True:
                    try:
                        self._train()
                        self._check_steps()
                        if not self.saver.is_saved():
                            self._save()
                        return self.position
                    except _Streak:
                        self._go_back()
                    except RuntimeError as error:
                        if self._ranks.size == 1 or not is_lost(error):
                            raise
                        self._lose(error)
                    finally:
                        self._quarantine.add(self.parts.bad_images())
        except OSError as error:
            if str(self.run.path) not in str(error.filename):
                raise
            raise RunFailed(
                f"{error.filename}: cannot be written: {error.strerror or error}; the checkpoints before are whole: "
                f"make room, then `varalign train --resume {self.run.path}`"
            ) from None

    def _lose(self, error: RuntimeError) -> NoReturn:
        """End the run after another process has ended; the writer saves the state before the step that broke off."""
        self._step.undo()
        saved = "go on from the last checkpoint"
        if not self.parts.model.sharded:  # the weights that the other process had are here too
            if self._stop.received is not None:
                self._leave()
            self._flush()
            if not self.saver.is_saved():
                self._save()
            if self._ranks.is_writer:
                saved = f"the checkpoint of step {self.position.step} is written: go on"
        raise RunFailed(
            f"another process of this run has ended, or does not answer ({str(error).splitlines()[0][:120]}); {saved} "
            f"with `train --resume {self.run.path}`, on as many processes as you like"
        ) from None

    def _train(self) -> None:
        if not self.position.evaluated and self.position.step == 0:
            self._end_epoch(0)  # epoch 0, before the first step, is evaluated like every other epoch
        while self.position.epoch < self.config.epochs and not self._is_stale():
            self._run_epoch()
            if self.position.epoch + 1 in self.config.evaluated_epochs:
                self._end_epoch(1)
            else:
                self.position.count_epochs(1)
                if self.saver.is_due():
                    self._save()

    def _check_steps(self) -> None:
        if self.position.step and not self.state.has_stepped():
            raise Diverged(
                f"none of the {self.position.step} steps was made, because the loss or its gradient was not finite in "
                f"any of them: nothing was learnt; {self._mend()}"
            )

    def _mend(self) -> str:
        half = self.parts.step_dtype != torch.float32
        return f"lower --lr{' or set --precision fp32' if half else ''}"

    def _is_stale(self) -> bool:
        """Whether dev has not improved for `patience` epochs; only ever true right after an evaluation."""
        late = bool(self.config.patience) and self.position.stale >= self.config.patience
        return late and self.position.epoch in self.config.evaluated_epochs

    def _order(self, epoch: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
        config, parts = self.config, self.parts
        shuffled: dict[str, Any] = {"shards": parts.data.image_shards, "buffer": config.shuffle_buffer or 0}
        shuffled |= {"seed": config.seed, "epoch": epoch, "image_ids": parts.data.image_ids}
        return epoch_batches(parts.train_rows, config.batch_size, **shuffled)

    def _run_epoch(self) -> None:
        """Make the remaining steps of the current epoch."""
        self.parts.model.train()
        position, config = self.position, self.config
        weighs = config.pair_weighting == "moments" and position.epoch >= round(config.pair_warmup * config.epochs)
        if weighs and position.batch == 0 and position.epoch > 0:
            self.state.pair_weights = moment_weights(self.state.moments, self.parts).to(self.parts.device)
        self._step.begin_epoch(self._stop)
        whole = self._order(position.epoch)[position.batch :]
        order = [self._ranks.share(batch) for batch in whole]
        batches = self.parts.images.batches(order, epoch=position.epoch, whole=whole)
        for batch, inputs in zip(whole, waited_for("data", batches), strict=True):
            inputs.total = len(batch)
            self._pending.append(self._step(inputs))
            step_done()
            position.step, position.batch = position.step + 1, position.batch + 1
            self.reporter.advance(1)
            if len(self._pending) >= FLUSH_EVERY:
                self._flush()
            if self._step.stopped:
                self._leave()
            if position.batch < self.steps_per_epoch and self.saver.is_due():
                self._flush()
                self._save()
        self._flush()

    def _flush(self) -> None:
        """Write the metrics of the pending steps, and count the skipped ones.

        Raises:
            _Streak: too many steps in a row were skipped.
        """
        if not self._pending:
            return
        records, self._pending = self._pending, []
        lines = fetched(records, self.state.moments)
        longest = 0
        for line, record in zip(lines, records, strict=True):
            self.position.nonfinite = self.position.nonfinite + 1 if "skipped" in line else 0
            longest = max(longest, self.position.nonfinite)
            if "skipped" in line:
                self.reporter.remark(f"step {line['step']}: loss or gradient is not finite, the step is skipped")
            self.reporter.step(line, record.images)
        self.log.write(lines)
        if longest >= self.config.max_nonfinite:
            raise _Streak

    def _go_back(self) -> None:
        """Restore the newest checkpoint before the skipped steps and lower the rate; the second time raise Diverged."""
        before = self.position
        streak = f"loss or gradient is not finite, {before.nonfinite} steps in a row up to step {before.step}"
        if before.gone_back:
            raise Diverged(f"{streak}, after going back once with a lower rate: {self._mend()}")
        if not self.saver.go_back(self.reporter.remark):
            raise Diverged(f"{streak}, and there is no checkpoint from before to go back to")
        position = self.position
        position.rate, position.gone_back = position.rate * LOWER_RATE, position.gone_back + 1
        self.log.cut(position.step)
        self.reporter.advance(position.step - before.step)
        line = {"kind": "rollback", "step": position.step, "epoch": position.epoch, "from_step": before.step}
        self.log.write([{**line, "nonfinite": before.nonfinite, "rate": position.rate}])
        self.reporter.remark(
            f"{before.nonfinite} steps in a row up to step {before.step} were not finite: "
            f"back to step {position.step}, with the learning rate times {position.rate:g}"
        )
        self._save()
        if not self._ranks.everywhere(self._stop.received is None):
            self._leave()

    def _end_epoch(self, epochs: int) -> None:
        """Evaluate on dev and count `epochs` more epochs; write a checkpoint of the best weights so far, or by time."""
        position, judged = self.position, "dev" if self._look is None else CROSS_VALIDATION
        try:
            # Processes that hold parts of the weights leave together: not in the middle of an evaluation.
            with nullcontext() if self.parts.model.sharded else self._stop.at_once(), part("looks"):
                if self._fusion is not None:
                    self._fusion.choose(trained=position.step > 0)
                with self.state.measured():
                    result = dict(self._look or evaluate(self.parts, "dev", statistics=False))
                    if self._fusion is not None:
                        result["choice_loss"] = self._fusion.loss
                    result = self._ranks.agreed(result)
        except Interrupted:
            self._leave()  # with a checkpoint before the evaluation, which a resumed run makes
        position.count_epochs(epochs)
        # A loss tells epochs apart that recall does not; exp(−loss) is above 0 as a recall is.
        position.take_score(math.exp(-result["choice_loss"]) if self._fusion is not None else mean_recall(result))
        line = {"kind": "eval", "step": position.step, "epoch": position.epoch, "split": judged, **result}
        self.log.write([line])
        self.reporter.evaluation(line)
        if position.best_step == position.step or self.saver.is_due():
            self._save()
        if not self._ranks.everywhere(self._stop.received is None):
            self._leave()

    def _save(self) -> None:
        self._quarantine.add(self.parts.bad_images())
        with part("saving"):
            self.saver.save()

    def _leave(self) -> NoReturn:
        """End the run after a signal: write a checkpoint of the current position, and say how to resume."""
        self._flush()
        if not self.saver.is_saved():
            self._save()
        stopped = Interrupted(self._stop.received or self._step.stopped or signal.SIGTERM)
        stopped.args = (
            f"{stopped.name}: stopped after step {self.position.step}, its checkpoint is written; "
            f"go on with `varalign train --resume {self.run.path}`",
        )
        raise stopped
