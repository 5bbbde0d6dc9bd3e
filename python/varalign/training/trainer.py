"""The trainer: order in, weights out.

One step, read aloud: rows and one caption each; the towers' features; unit vectors; one loss a direction with its
statistics; two weights from the schedule; backward, clip, step, clamp the scale; the pair statistics and one line of
metrics.
Numbers leave the device in blocks of `FLUSH_EVERY` steps, so that no step makes the GPU wait for the host.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from varalign.data.sampler import epoch_batches
from varalign.data.statistics import PairMoments
from varalign.training import checkpoint as checkpoints
from varalign.training.assess import assess, mean_recall
from varalign.training.build import Parts
from varalign.training.config import TrainConfig
from varalign.training.device import pick_precision
from varalign.training.losses import add_loss_parameters, load_loss_state, loss_state, new_loss, show_step
from varalign.training.optimiser import build_optimiser, rate_factor, set_learning_rate
from varalign.training.pair_weights import moment_weights
from varalign.training.run_folder import MetricsLog, RunFailed, RunFolder
from varalign.training.sources import ImageInputs
from varalign.training.step_texts import StepTexts

FLUSH_EVERY = 20


class Diverged(RunFailed):
    """The loss is not finite any more; the message names the step."""


class Reporter(Protocol):
    """Who is told how training goes."""

    def step(self, line: dict[str, Any], images: int) -> None:
        """A line of metrics, some steps late."""

    def evaluation(self, line: dict[str, Any]) -> None:
        """An evaluation on dev."""


@dataclass
class Progress:
    """Where a run stands: everything of it that is not a tensor.

    Attributes:
        step: optimiser steps done.
        epoch: the epoch under way, from 0.
        batch: batches of it that are done.
        best_score, best_step, best_epoch: the best mean recall on dev so far.
        stale: epochs since then.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_score: float = -1.0
    best_step: int = 0
    best_epoch: int = 0
    stale: int = 0


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
        self.image_ids = torch.from_numpy(parts.data.image_ids)
        self._pending: list[tuple[dict[str, Any], Tensor, Tensor, np.ndarray[Any, Any]]] = []
        half = pick_precision(config.precision, self.device) == torch.float16
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=half)

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
        state = found.state
        self.model.load_checkpoint_state(found.part("model"))
        checkpoints.restore_optimiser(self.optimiser, found.part("optimiser"))
        self.loss.schedule.load_state_dict(found.part("schedule"))
        load_loss_state(self.loss, found.part("loss"))
        self.moments = PairMoments.from_state({name: tensor.numpy() for name, tensor in found.part("pairs").items()})
        if "weights.pairs" in found.tensors:
            self.pair_weights = found.tensors["weights.pairs"].to(self.device)
        self._scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(found.tensors["random.cpu"])
        if self.device.type == "cuda" and "random.cuda" in found.tensors:
            torch.cuda.set_rng_state(found.tensors["random.cuda"], self.device)
        self.progress = Progress(**state["progress"])
        self.run.cut_metrics(self.progress.step)
        folder = self.run.checkpoints  # a kill between a save and its links leaves them behind
        for name, step in (("last", self.progress.step), ("best", self.progress.best_step)):
            if (folder / f"step-{step}").is_dir():
                checkpoints.point(folder, name, folder / f"step-{step}")
        return True

    def fit(self, reporter: Reporter) -> Progress:
        """Train to the end, or until dev has not got better for `patience` epochs.

        Args:
            reporter: who is told.

        Returns:
            Where the run ended; `checkpoints/best` holds the best weights.

        Raises:
            Diverged: the loss is not finite.
            TooManyBadImages: more than `max_bad` cannot be read.
        """
        self.reporter = reporter
        log = MetricsLog(self.run.metrics)
        try:
            if self.progress.step == 0 and not checkpoints.step_folders(self.run.checkpoints):
                self._close_epoch(log)  # epoch 0: before any step, evaluated like every other
            while self.progress.epoch < self.config.epochs and not self._is_stale():
                self._run_epoch(log)
                self.progress.epoch, self.progress.batch = self.progress.epoch + 1, 0
                self._close_epoch(log)
        finally:
            log.close()
        return self.progress

    def _is_stale(self) -> bool:
        return bool(self.config.patience) and self.progress.stale >= self.config.patience

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
        order = self._order(progress.epoch)[progress.batch :]
        for inputs in self._timed(self.parts.images.batches(order, epoch=progress.epoch)):
            self._step(inputs)
            progress.step, progress.batch = progress.step + 1, progress.batch + 1
            if len(self._pending) >= FLUSH_EVERY:
                self._flush(log)
            every = self.config.checkpoint_every
            if every and progress.step % every == 0 and progress.batch < self.steps_per_epoch:
                self._flush(log)
                self._save(log)
        self._flush(log)

    def _timed(self, batches: Iterator[ImageInputs]) -> Iterator[ImageInputs]:
        self._step_started = time.perf_counter()
        yield from batches

    def _step(self, inputs: ImageInputs) -> None:
        config, progress = self.config, self.progress
        factor = rate_factor(progress.step, self.total_steps, warmup=config.warmup, schedule=config.lr_schedule)
        set_learning_rate(self.optimiser, factor)
        texts = StepTexts(
            self.parts.data,
            inputs.rows,
            seed=config.seed,
            epoch=progress.epoch,
            count=config.captions_per_step,
            use=config.captions_as,
        )
        each = None  # a weight a caption
        if self.pair_weights is not None:
            each = self.pair_weights[torch.from_numpy(texts.captions).to(self.device, non_blocking=True)]
        with self.parts.autocast():
            image_features = self.parts.images.features(self.model, inputs.tensor)
            text_features = self.parts.texts.features(self.model, self.parts.texts.inputs(texts.captions))
            text_features = texts.join(text_features, each)
            image_embeddings = self.model.project_images(image_features)
            text_embeddings = self.model.project_texts(text_features)
        ids = self.image_ids[torch.from_numpy(inputs.rows)].to(self.device, non_blocking=True)
        scale = self.model.logit_scale
        owner = torch.from_numpy(texts.owner).to(self.device, non_blocking=True)
        image_weights, text_weights = texts.weights(each)
        show_step(self.loss, self.parts, inputs, texts, image_features, text_features)
        output = self.loss(
            image_embeddings.float(),
            text_embeddings.float(),
            scale,
            ids,
            ids[owner],
            image_weights=image_weights,
            text_weights=text_weights,
        )

        self.optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(output.loss).backward()
        if config.clip_grad:
            self._scaler.unscale_(self.optimiser)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        self._scaler.step(self.optimiser)
        self._scaler.update()
        self.model.clamp_logit_scale_()

        with torch.no_grad():
            alpha = scale.detach()
            seen = texts.pair_values(output.stats_i2t, output.stats_t2i, alpha)
            values = torch.stack([output.loss, output.loss_i2t, output.loss_t2i, *output.weights, alpha]).detach()
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

    def _flush(self, log: MetricsLog) -> None:
        if not self._pending:
            return
        table = (
            torch.stack([values for _, values, _, _ in self._pending]).cpu().tolist()
        )  # the host waits for the GPU here
        lines = []
        for (line, _, seen, captions), row in zip(self._pending, table, strict=True):
            names = ("loss", "loss_i2t", "loss_t2i", "w_i2t", "w_t2i", "logit_scale")
            images = line.pop("images")
            line |= dict(zip(names, row, strict=True))
            self.moments.update(captions, seen.cpu().double().numpy())
            self.reporter.step(line, images)
            lines.append(line)
        self._pending.clear()
        log.write(lines)
        bad = next((line for line in lines if not math.isfinite(line["loss"])), None)
        if bad:
            raise Diverged(
                f"the loss is not finite at step {bad['step']} (epoch {bad['epoch']}): lower --lr, or set --precision "
                f"fp32; the checkpoints before it are in {self.run.checkpoints}"
            )

    def _close_epoch(self, log: MetricsLog) -> None:
        progress = self.progress
        result = assess(self.parts, "dev", batch_size=self.config.batch_size)
        score = mean_recall(result)
        if score > progress.best_score:
            progress.best_score, progress.best_step, progress.best_epoch = score, progress.step, progress.epoch
            progress.stale = 0
        else:
            progress.stale += 1
        line = {"kind": "eval", "step": progress.step, "epoch": progress.epoch, "split": "dev", **result}
        log.write([line])
        self.reporter.evaluation(line)
        self._save(log)

    def _save(self, log: MetricsLog) -> None:
        progress, folder = self.progress, self.run.checkpoints
        log.sync()
        tensors = {f"model.{name}": tensor for name, tensor in self.model.checkpoint_state().items()}
        tensors |= {f"optimiser.{name}": t for name, t in checkpoints.flatten_optimiser(self.optimiser).items()}
        tensors |= {f"schedule.{name}": tensor for name, tensor in self.loss.schedule.state_dict().items()}
        tensors |= loss_state(self.loss)
        tensors |= {f"pairs.{name}": torch.from_numpy(np.asarray(v)) for name, v in self.moments.state().items()}
        if self.pair_weights is not None:
            tensors["weights.pairs"] = self.pair_weights
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        state = {"progress": vars(progress), "scaler": self._scaler.state_dict()}
        try:
            target = checkpoints.save_checkpoint(folder, progress.step, tensors, state)
            checkpoints.point(folder, "last", target)
            if progress.best_step == progress.step:
                checkpoints.point(folder, "best", target)
            checkpoints.prune(folder, self.config.keep, progress.best_step)
        except OSError as error:
            raise RunFailed(
                f"{error.filename or folder}: the checkpoint cannot be written: {error.strerror or error}"
            ) from None
