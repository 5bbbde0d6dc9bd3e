"""The trainer: order in, weights out.

One step, read aloud: rows and one caption each; the towers' features; unit vectors; one loss a direction with its
statistics; two weights from the schedule; backward, clip, step, clamp the scale; the pair statistics and one line of
metrics.
Numbers leave the device in blocks of `FLUSH_EVERY` steps, so that no step makes the GPU wait for the host.

What may befall a run is met here: a signal (the step is finished, a checkpoint written), a step that is not finite
(skipped on the device; many in a row lead back to a checkpoint and a lower rate, once, then to a dump), a disk that
refuses. Every position that a checkpoint can hold leads to the same end as if nothing had happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from varalign.aligner.evaluate import assess, mean_recall
from varalign.data.files import remove_folder
from varalign.data.sampler import epoch_batches
from varalign.evaluation.pair_moments import PairMoments
from varalign.inputs.build import Parts
from varalign.inputs.sources import FeatureRows, ImageInputs, LiveImages, Rows
from varalign.losses.contrastive import ContrastiveLoss
from varalign.options.config import TrainConfig
from varalign.options.declaration import checkpoint_interval
from varalign.options.device import pick_precision
from varalign.runs import checkpoint as checkpoints
from varalign.runs.folder import MetricsLog, RunFailed, RunFolder
from varalign.runs.quarantine import Quarantine
from varalign.runs.signals import Interrupted, StopSignals
from varalign.training.feature_mixup import FeatureMixup
from varalign.training.fusion import Fusion
from varalign.training.losses import add_loss_parameters, load_loss_state, loss_state, new_loss, show_step
from varalign.training.optimiser import build_optimiser, rate_factor, set_learning_rate
from varalign.training.pair_weights import moment_weights
from varalign.training.step_guard import StepGuard
from varalign.training.step_texts import StepTexts
from varalign.training.wise_ft import START_STEP

FLUSH_EVERY = 20
LOWER_RATE = 0.1  # times the learning rate, after going back; there is one try, so it is a bold one


class Diverged(RunFailed):
    """Losses or gradients are not finite step after step, at a lower rate too; the message names step and dump."""


class _Streak(Exception):
    """`max_nonfinite` steps in a row were skipped."""


class Reporter(Protocol):
    """Who is told how training goes."""

    def step(self, line: dict[str, Any], images: int) -> None:
        """A line of metrics, some steps late."""

    def evaluation(self, line: dict[str, Any]) -> None:
        """An evaluation on dev."""

    def remark(self, text: str) -> None:
        """Something that a person should know."""


@dataclass
class Evidence:
    """A step that is not finite, as far as the weights (which it did not change) do not say it.

    Attributes:
        step, epoch: which step, from 1, and the epoch under way, from 0.
        inputs: its images.
        random: the random states before it, by checkpoint name.
        scaler: the state of float16's scaler before it.
    """

    step: int
    epoch: int
    inputs: ImageInputs
    random: dict[str, Tensor]
    scaler: dict[str, Any]


@dataclass
class Progress:
    """Where a run stands: everything of it that is not a tensor.

    Attributes:
        step: optimiser steps done.
        epoch: the epoch under way, from 0.
        batch: batches of it that are done.
        best_score, best_step, best_epoch: the best mean recall on dev so far.
        stale: epochs since then.
        nonfinite: steps skipped in a row up to here.
        rate: factor on the learning rate, below 1 after going back to a checkpoint.
        gone_back: how often that was.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_score: float = -1.0
    best_step: int = 0
    best_epoch: int = 0
    stale: int = 0
    nonfinite: int = 0
    rate: float = 1.0
    gone_back: int = 0


class Trainer:
    """Trains a dual encoder under a loss schedule, into a run folder.

    Args:
        config: the options.
        parts: the data, the model and its sources, as `build.assemble` makes them.
        run: the run folder.
        pair_weights: (T,) float32, how much each caption's pair counts in the loss; None: all alike, until
            `--pair-weighting moments` weighs them.
    """

    reporter: Reporter

    def __init__(
        self, config: TrainConfig, parts: Parts, run: RunFolder, *, pair_weights: Tensor | None = None
    ) -> None:
        self.config, self.parts, self.run = config, parts, run
        self.model, self.device = parts.model, parts.device
        self.loss = new_loss(config, parts.data).to(self.device)
        self.optimiser = build_optimiser(self.model, config)
        add_loss_parameters(self.optimiser, self.loss, config.lr)
        self.moments = PairMoments(len(parts.data.caption_owner))
        self.pair_weights = None if pair_weights is None else pair_weights.to(self.device)
        self.progress = Progress()
        self.train_rows = parts.train_rows
        self.steps_per_epoch = len(self._order(0))
        self.total_steps = self.steps_per_epoch * config.epochs
        self._looks = config.evaluated_epochs
        self.image_ids = torch.from_numpy(parts.data.image_ids)
        self._pending: list[tuple[dict[str, Any], Tensor, Tensor, np.ndarray[Any, Any]]] = []
        half = pick_precision(config.precision, self.device) == torch.float16
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self._guard = StepGuard(self.model, self.loss, self.optimiser, self._scaler, config.clip_grad)
        self._quarantine = Quarantine(run.quarantine)
        self._every_steps, self._every_seconds = checkpoint_interval(config.checkpoint_every)
        self._saved: tuple[int, int, int] | None = None
        self._saved_at = time.monotonic()
        self._latest: Evidence | None = None
        self._evidence: Evidence | None = None
        self._stop = StopSignals()
        self._fusion = Fusion.of(parts, config.batch_size) if self.model.head == "ensemble" else None
        # Losses to compare with see an ensemble's members as one space.
        apart = self.model.head == "ensemble" and isinstance(self.loss, ContrastiveLoss)
        self._apart = {"members": self.model.members} if apart else {}

    def resume(self, say: Callable[[str], None]) -> bool:
        """Go to the run's newest whole checkpoint; false if it has none yet.

        Args:
            say: called with a line for each checkpoint that is damaged.

        Raises:
            CheckpointError: checkpoints are there and none is whole.
        """
        found = checkpoints.newest_checkpoint(self.run.checkpoints, say)
        if found is None:
            self.run.cut_metrics(-1)
            return False
        self.load(found)
        progress = self.progress
        evaluated = progress.batch == 0 and (progress.step > 0 or progress.best_score >= 0)
        self.run.cut_metrics(progress.step, evaluations=evaluated)
        self._point()  # a kill between a save and its links leaves them behind
        if isinstance(self.parts.images, LiveImages):
            rows = {name: row for row, name in enumerate(self.parts.images.names)}
            known = self._quarantine.found.items()
            self.parts.images.bad.update({rows[name]: reason for name, reason in known if name in rows})
        return True

    def load(self, found: checkpoints.Checkpoint) -> None:
        """Take weights, states, random states and position of a checkpoint."""
        self.model.load_checkpoint_state(found.part("model"))
        checkpoints.restore_optimiser(self.optimiser, found.part("optimiser"))
        self.loss.schedule.load_state_dict(found.part("schedule"))
        load_loss_state(self.loss, found.part("loss"))
        self.moments = PairMoments.from_state({name: tensor.numpy() for name, tensor in found.part("pairs").items()})
        if "weights.pairs" in found.tensors:
            self.pair_weights = found.tensors["weights.pairs"].to(self.device)
        self._scaler.load_state_dict(found.state["scaler"])
        torch.set_rng_state(found.tensors["random.cpu"])
        if self.device.type == "cuda" and "random.cuda" in found.tensors:
            torch.cuda.set_rng_state(found.tensors["random.cuda"], self.device)
        self.progress = Progress(**found.state["progress"])

    def fit(self, reporter: Reporter, stop: StopSignals | None = None) -> Progress:
        """Train to the end, or until dev has not got better for `patience` epochs.

        Args:
            reporter: who is told.
            stop: what notes signals; None: nothing does.

        Returns:
            Where the run ended; `checkpoints/best` holds the best weights.

        Raises:
            Diverged: loss or gradient stay not finite; the message names a dump of the step.
            TooManyBadImages: more than `max_bad` cannot be read.
            Interrupted: a signal came; a checkpoint of this moment is there.
            RunFailed: the disk refused a file of the run; checkpoints written before are whole.
        """
        self.reporter, self._stop = reporter, stop or self._stop
        try:
            log = MetricsLog(self.run.metrics)
            with self._stop.held(), closing(log):
                while True:
                    try:
                        self._train(log)
                        return self.progress
                    except _Streak:
                        self._go_back(log)
                    finally:
                        self._quarantine.add(self.parts.bad_images())
        except OSError as error:
            if str(self.run.path) not in str(error.filename):
                raise
            raise RunFailed(
                f"{error.filename}: cannot be written: {error.strerror or error}; the checkpoints before are whole: "
                f"make room, then `varalign train --resume {self.run.path}`"
            ) from None

    def _train(self, log: MetricsLog) -> None:
        progress = self.progress
        if progress.step == 0 and progress.best_score < 0:
            self._close_epoch(log, 0)  # epoch 0: before any step, evaluated like every other
        while progress.epoch < self.config.epochs and not self._is_stale():
            self._run_epoch(log)
            if progress.epoch + 1 in self._looks:
                self._close_epoch(log, 1)
            else:
                self._count_epoch(1)
                if self._is_due():
                    self._save(log)

    def _is_stale(self) -> bool:
        """Whether dev has not got better for long enough, said when it has just been looked at."""
        late = bool(self.config.patience) and self.progress.stale >= self.config.patience
        return late and self.progress.epoch in self._looks

    def _count_epoch(self, epochs: int) -> None:
        progress = self.progress
        progress.epoch, progress.batch, progress.stale = progress.epoch + epochs, 0, progress.stale + 1

    def _order(self, epoch: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
        parts = self.parts
        return epoch_batches(
            self.train_rows, self.config.batch_size, seed=self.config.seed, epoch=epoch, image_ids=parts.data.image_ids
        )

    def _run_epoch(self, log: MetricsLog) -> None:
        self.model.train()
        progress, config = self.progress, self.config
        weighs = config.pair_weighting == "moments" and progress.epoch >= round(config.pair_warmup * config.epochs)
        if weighs and progress.batch == 0 and progress.epoch > 0:
            self.pair_weights = moment_weights(self.moments, self.parts).to(self.device)
        self._step_started = time.perf_counter()
        order = self._order(progress.epoch)[progress.batch :]
        batches = self.parts.images.batches(order, epoch=progress.epoch)
        for inputs in batches:
            careful = progress.gone_back > 0  # once bitten, the host looks after every step
            if careful:
                scaler = self._scaler.state_dict()
                self._latest = Evidence(progress.step + 1, progress.epoch, inputs, self._random_states(), scaler)
            self._step(inputs)
            progress.step, progress.batch = progress.step + 1, progress.batch + 1
            if careful or len(self._pending) >= FLUSH_EVERY:
                self._flush(log)
            if self._stop.received is not None:
                self._leave(log)
            if progress.batch < self.steps_per_epoch and self._is_due():
                self._flush(log)
                self._save(log)
        self._flush(log)

    def _is_due(self) -> bool:
        """Whether `checkpoint_every` asks for a checkpoint."""
        if self._every_steps:
            return self.progress.step % self._every_steps == 0
        return bool(self._every_seconds) and time.monotonic() - self._saved_at >= self._every_seconds

    def _leave(self, log: MetricsLog) -> NoReturn:
        """End the run in order, for a signal: the checkpoint of this moment, and the line that goes on from it."""
        self._flush(log)
        if self._saved != self._position():
            self._save(log)
        assert self._stop.received is not None
        stopped = Interrupted(self._stop.received)
        stopped.args = (
            f"{stopped.name}: stopped after step {self.progress.step}, its checkpoint is written; "
            f"go on with `varalign train --resume {self.run.path}`",
        )
        raise stopped

    def _position(self) -> tuple[int, int, int]:
        return self.progress.step, self.progress.epoch, self.progress.batch

    def _draw(self, rows: Rows, epoch: int) -> StepTexts:
        config = self.config
        count, use = config.captions_per_step, config.captions_as
        return StepTexts.draw(self.parts.data, rows, seed=config.seed, epoch=epoch, count=count, use=use)

    def _step(self, inputs: ImageInputs, texts: StepTexts | None = None) -> None:
        config, progress = self.config, self.progress
        factor = rate_factor(progress.step, self.total_steps, warmup=config.warmup, schedule=config.lr_schedule)
        set_learning_rate(self.optimiser, factor * progress.rate)
        texts = texts or self._draw(inputs.rows, progress.epoch)
        each = None  # a weight a caption
        if self.pair_weights is not None:
            each = self.pair_weights[torch.from_numpy(texts.captions).to(self.device, non_blocking=True)]
        self._guard.begin()
        with self.parts.autocast():
            image_features = self.parts.images.features(self.model, inputs.tensor)
            text_inputs = self.parts.texts.inputs(texts.captions, progress.epoch)
            text_features = self.parts.texts.features(self.model, text_inputs)
            text_features = texts.join(text_features, each)
            mixup = None
            if config.feature_mixup:
                ids = self.parts.data.image_ids[inputs.rows]
                mixup = FeatureMixup.draw(ids, config.feature_mixup, seed=config.seed, epoch=progress.epoch)
                image_features, text_features = mixup(image_features), mixup(text_features)
            image_embeddings = self.model.project_images(image_features)
            text_embeddings = self.model.project_texts(text_features)
        image_ids = self.image_ids[torch.from_numpy(inputs.rows)].to(self.device, non_blocking=True)
        scale = self.model.logit_scale
        owner = torch.from_numpy(texts.owner).to(self.device, non_blocking=True)
        image_weights, text_weights = texts.weights(each)
        if mixup is not None and image_weights is not None and text_weights is not None:
            image_weights, text_weights = mixup(image_weights), mixup(text_weights)
        show_step(self.loss, self.parts, inputs, texts, image_features, text_features)
        output = self.loss(
            image_embeddings.float(),
            text_embeddings.float(),
            scale,
            image_ids,
            image_ids[owner],
            image_weights=image_weights,
            text_weights=text_weights,
            **self._apart,
        )
        sound = self._guard.step(output.loss)
        self.model.clamp_logit_scale_()

        with torch.no_grad():
            alpha = scale.detach()
            seen = texts.pair_values(output.stats_i2t, output.stats_t2i, alpha)
            parts = [output.loss, output.loss_i2t, output.loss_t2i, *output.weights, alpha, sound.float()]
            values = torch.stack(parts).detach()
        now = time.perf_counter()
        line = {
            "kind": "step",
            "step": progress.step + 1,
            "epoch": progress.epoch + 1,
            "lr": self.optimiser.param_groups[0]["lr"],
            "seconds": now - self._step_started,
            "data_wait": inputs.wait,
            "images": len(inputs.rows),
        }
        self._step_started = now
        self._pending.append((line, values, seen, texts.captions))

    def try_step(self, inputs: ImageInputs, texts: StepTexts) -> dict[str, Any]:
        """One step from where the trainer stands, outside any epoch: `loss` and whether it was `skipped`."""
        self._step_started = time.perf_counter()
        self._step(inputs, texts)
        values = self._pending.pop()[1].tolist()
        return {"loss": values[0], "skipped": not values[-1]}

    def _flush(self, log: MetricsLog) -> None:
        if not self._pending:
            return
        table = (
            torch.stack([values for _, values, _, _ in self._pending]).cpu().tolist()
        )  # the host waits for the GPU here
        lines = []
        progress = self.progress
        names = ("loss", "loss_i2t", "loss_t2i", "w_i2t", "w_t2i", "logit_scale")
        longest = 0
        for (line, _, seen, captions), (*row, sound) in zip(self._pending, table, strict=True):
            images = line.pop("images")
            line |= dict(zip(names, row, strict=True))
            if sound:
                progress.nonfinite = 0
                self.moments.update(captions, seen.cpu().double().numpy())
            else:
                line["skipped"] = True
                progress.nonfinite += 1
                longest = max(longest, progress.nonfinite)
                if progress.nonfinite == 1:
                    self._evidence = self._latest
                self.reporter.remark(f"step {line['step']}: loss or gradient is not finite, the step is skipped")
            self.reporter.step(line, images)
            lines.append(line)
        self._pending.clear()
        log.write(lines)
        if longest >= self.config.max_nonfinite:
            raise _Streak

    def _go_back(self, log: MetricsLog) -> None:
        """To the newest checkpoint from before the streak, with a lower rate; the second time, dump and stop."""
        streak = self.progress
        if streak.gone_back:
            self._give_up()
        folder = self.run.checkpoints
        found = checkpoints.newest_checkpoint(
            folder, self.reporter.remark, lambda state: not state["progress"].get("nonfinite")
        )
        if found is None:
            raise Diverged(f"{self._streak_text()}, and there is no checkpoint from before to go back to")
        self.load(found)
        progress = self.progress
        progress.rate, progress.gone_back = progress.rate * LOWER_RATE, progress.gone_back + 1
        for step, path in checkpoints.step_folders(folder):
            if step > progress.step:
                remove_folder(path)
        if not (folder / f"step-{progress.best_step}").is_dir():  # it was pruned meanwhile
            progress.best_score, progress.best_step, progress.best_epoch = -1.0, progress.step, progress.epoch
        self.run.cut_metrics(progress.step)
        log.reopen()
        line = {"kind": "rollback", "step": progress.step, "epoch": progress.epoch, "from_step": streak.step}
        log.write([{**line, "nonfinite": streak.nonfinite, "rate": progress.rate}])
        self.reporter.remark(
            f"{streak.nonfinite} steps in a row up to step {streak.step} were not finite: "
            f"back to step {progress.step}, with the learning rate times {progress.rate:g}"
        )
        self._save(log)
        if self._stop.received is not None:
            self._leave(log)

    def _streak_text(self) -> str:
        streak = self.progress
        return f"loss or gradient is not finite, {streak.nonfinite} steps in a row up to step {streak.step}"

    def _give_up(self) -> NoReturn:
        """Write the first step of the streak, as it can be run again, and stop."""
        evidence = self._evidence
        assert evidence is not None
        texts = self._draw(evidence.inputs.rows, evidence.epoch)
        tensors, state = self._state()
        tensors |= evidence.random
        tensors["inputs.images"] = evidence.inputs.tensor
        tensors["inputs.image_ids"] = self.image_ids[torch.from_numpy(evidence.inputs.rows)]
        text_inputs = self.parts.texts.inputs(texts.captions, evidence.epoch)
        tensors |= {f"inputs.texts.{n}": part for n, part in enumerate(text_inputs)}
        sources = (self.parts.images, self.parts.texts)
        live = [not isinstance(source, FeatureRows) for source in sources]
        progress = {**state["progress"], "step": evidence.step - 1, "epoch": evidence.epoch, "nonfinite": 0}
        place = {"rows": evidence.inputs.rows.tolist(), "texts": texts.as_dict(), "live": live}
        state |= {"progress": progress, "scaler": evidence.scaler, "total_steps": self.total_steps, **place}
        folder = checkpoints.save_checkpoint(self.run.dumps, evidence.step, tensors, state)
        half = pick_precision(self.config.precision, self.device) != torch.float32
        raise Diverged(
            f"{self._streak_text()}, after going back once with a lower rate: lower --lr"
            f"{' or set --precision fp32' if half else ''}; the first of these steps is kept: "
            f"`python -m varalign.training.replay {folder}` runs it again and names what is not finite"
        )

    def _close_epoch(self, log: MetricsLog, epochs: int) -> None:
        """Evaluate, count `epochs` as done, save."""
        progress = self.progress
        try:
            with self._stop.at_once():
                if self._fusion is not None:
                    self._fusion.choose(trained=progress.step > 0)
                result = assess(self.parts, "dev", batch_size=self.config.batch_size)
        except Interrupted:
            self._leave(log)  # the checkpoint stands before the evaluation, which a resumed run makes
        self._count_epoch(epochs)
        score = mean_recall(result)
        if score > progress.best_score:
            progress.best_score, progress.best_step, progress.best_epoch = score, progress.step, progress.epoch
            progress.stale = 0
        line = {"kind": "eval", "step": progress.step, "epoch": progress.epoch, "split": "dev", **result}
        log.write([line])
        self.reporter.evaluation(line)
        self._save(log)
        if self._stop.received is not None:
            self._leave(log)

    def _random_states(self) -> dict[str, Tensor]:
        states = {"random.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["random.cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a checkpoint holds."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.checkpoint_state().items()}
        tensors |= {f"optimiser.{name}": t for name, t in checkpoints.flatten_optimiser(self.optimiser).items()}
        tensors |= {f"schedule.{name}": tensor for name, tensor in self.loss.schedule.state_dict().items()}
        tensors |= loss_state(self.loss)
        tensors |= {f"pairs.{name}": torch.from_numpy(np.asarray(v)) for name, v in self.moments.state().items()}
        if self.pair_weights is not None:
            tensors["weights.pairs"] = self.pair_weights
        state = {"progress": dict(vars(self.progress)), "scaler": self._scaler.state_dict()}
        return tensors | self._random_states(), state

    def _save(self, log: MetricsLog) -> None:
        progress, folder = self.progress, self.run.checkpoints
        self._quarantine.add(self.parts.bad_images())
        log.sync()
        checkpoints.save_checkpoint(folder, progress.step, *self._state())
        self._point()
        kept = {progress.best_step, START_STEP} if self.config.wise_ft else {progress.best_step}
        checkpoints.prune(folder, self.config.keep, kept)
        self._saved, self._saved_at = self._position(), time.monotonic()

    def _point(self) -> None:
        folder = self.run.checkpoints
        for name, step in (("last", self.progress.step), ("best", self.progress.best_step)):
            if (folder / f"step-{step}").is_dir():
                checkpoints.point(folder, name, folder / f"step-{step}")
