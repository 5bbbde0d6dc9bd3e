"""The state of a run, as checkpoints store it, and the writing and pruning of checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varalign.data.files import remove_folder
from varalign.data.ranks import world
from varalign.encoders.sharding import gathered, shard_towers, split_as
from varalign.evaluation.pair_moments import PairMoments
from varalign.inputs.parts import Parts
from varalign.options.config import TrainConfig
from varalign.options.declaration import checkpoint_interval
from varalign.options.device import pick_precision
from varalign.runs import checkpoint as checkpoints
from varalign.runs.checkpoint import Checkpoint
from varalign.runs.folder import RunFolder
from varalign.runs.metrics import MetricsLog
from varalign.runs.position import Position
from varalign.training.averaged import AveragedWeights
from varalign.training.losses import add_loss_parameters, load_loss_state, loss_state, new_loss
from varalign.training.optimiser import build_optimiser


class TrainingState:
    """All state that training changes. Only this object writes and reads the parts of a checkpoint.

    Args:
        config: the options.
        parts: data and model.
        pair_weights: (T,) float32, weight of each caption's pair in the loss; None: all 1.

    Attributes:
        model, loss, optimiser, scaler, moments, pair_weights, position: the parts of the state; all tensors are on the
            model's device.
        averaged: the averages of the model's weights, which checkpoints hold as the model; None: its own are.
    """

    def __init__(self, config: TrainConfig, parts: Parts, pair_weights: Tensor | None) -> None:
        self.model, self.device = parts.model, parts.device
        if config.shard:
            shard_towers(self.model, world(), self.device)
        self.loss = new_loss(config, parts.data).to(self.device)
        self.averaged = AveragedWeights(self.model, config.average_weights) if config.average_weights else None
        self.optimiser = build_optimiser(self.model, config)
        add_loss_parameters(self.optimiser, self.loss, config.lr)
        half = pick_precision(config.precision, self.device) == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.moments = PairMoments(len(parts.data.caption_owner))
        self.pair_weights = None if pair_weights is None else pair_weights.to(self.device)
        self.position = Position()

    def has_stepped(self) -> bool:
        """Whether the optimiser has made a step, or has nothing to train."""
        steps = [float(values["step"]) for values in self.optimiser.state.values()]  # the host waits for the GPU here
        return any(steps) or not any(p.requires_grad for group in self.optimiser.param_groups for p in group["params"])

    def measured(self) -> AbstractContextManager[None]:
        """Within, the model has the weights that are measured and stored: their averages, where there are some."""
        return nullcontext() if self.averaged is None else self.averaged.shown()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, by their names in the file.

        Where towers are split over processes, all of them call it, and the writer alone gets the tensors.
        """
        moments = {name: torch.from_numpy(np.asarray(values)) for name, values in self.moments.state().items()}
        with self.measured():
            model = self.model.checkpoint_state()
            if self.averaged is not None:
                model = {name: tensor.clone() for name, tensor in model.items()}
        found = {
            **checkpoints.named(checkpoints.MODEL, model),
            **checkpoints.named(checkpoints.OPTIMISER, _flattened(self.optimiser)),
            **checkpoints.named(checkpoints.SCHEDULE, self.loss.schedule.state_dict()),
            **checkpoints.named(checkpoints.LOSS, loss_state(self.loss)),
            **checkpoints.named(checkpoints.PAIRS, moments),
            checkpoints.RANDOM_CPU: torch.get_rng_state(),
        }
        if self.averaged is not None:
            found |= checkpoints.named(checkpoints.AVERAGED, self.averaged.state())
        if self.pair_weights is not None:
            found[checkpoints.PAIR_WEIGHTS] = self.pair_weights
        if self.device.type == "cuda":
            found[checkpoints.RANDOM_CUDA] = torch.cuda.get_rng_state(self.device)
        return gathered(found, keep=world().is_writer) if self.model.sharded else found

    def values(self) -> dict[str, Any]:
        """The plain values of a checkpoint, by part."""
        return {checkpoints.POSITION: asdict(self.position), checkpoints.SCALER: self.scaler.state_dict()}

    def load(self, found: Checkpoint) -> None:
        """Restore every part, and torch's random states, from a checkpoint.

        Raises:
            CheckpointError: its tensors do not fit this model, loss or data.
        """
        with found.fitting():
            found.fill(self.model)
            if self.averaged is not None:
                self.averaged.load_state(found.part(checkpoints.AVERAGED))
            _restore(self.optimiser, found.part(checkpoints.OPTIMISER))
            self.loss.schedule.load_state_dict(found.part(checkpoints.SCHEDULE))
            load_loss_state(self.loss, found.part(checkpoints.LOSS))
            moments = found.part(checkpoints.PAIRS)
            self.moments = PairMoments.from_state({name: tensor.numpy() for name, tensor in moments.items()})
            weights = found.tensors.get(checkpoints.PAIR_WEIGHTS)
            if weights is not None:
                self.pair_weights = weights.to(self.device)
            self.scaler.load_state_dict(found.state[checkpoints.SCALER])
            torch.set_rng_state(found.tensors[checkpoints.RANDOM_CPU])
            if self.device.type == "cuda" and checkpoints.RANDOM_CUDA in found.tensors:
                torch.cuda.set_rng_state(found.tensors[checkpoints.RANDOM_CUDA], self.device)
        self.position = found.position


class Saver:
    """Writes the checkpoints of a run, updates the links `best` and `last`, and deletes old checkpoints.

    Args:
        config: the options.
        run: the run folder.
        state: the state to save.
        log: the metrics; they are synced to disk before each checkpoint.
    """

    def __init__(self, config: TrainConfig, run: RunFolder, state: TrainingState, log: MetricsLog) -> None:
        self.folder, self.state, self.log = run.checkpoints, state, log
        self._keep, self._keeps_start = config.keep, config.wise_ft
        self._every_steps, self._every_seconds = checkpoint_interval(config.checkpoint_every)
        self._saved: tuple[int, int, int] | None = None
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether a checkpoint is due by `checkpoint_every`."""
        if self._every_steps:
            return self.state.position.step % self._every_steps == 0
        due = bool(self._every_seconds) and time.monotonic() - self._saved_at >= self._every_seconds
        return world().agreed(due) if self.state.model.sharded and self._every_seconds else due

    def is_saved(self) -> bool:
        """Whether the newest checkpoint has the current position."""
        return self._saved == self._place()

    def save(self) -> None:
        """Write a checkpoint of the current position.

        Raises:
            OSError: the disk refused a write; earlier checkpoints are intact.
        """
        position = self.state.position
        self._saved, self._saved_at = self._place(), time.monotonic()
        if not world().is_writer:
            if self.state.model.sharded:
                self.state.tensors()  # the writer gathers them
            return
        self.log.sync()
        checkpoints.save_checkpoint(self.folder, position.step, self.state.tensors(), self.state.values())
        self.point()
        kept = {position.best_step, checkpoints.START_STEP} if self._keeps_start else {position.best_step}
        checkpoints.prune(self.folder, self._keep, kept)

    def point(self) -> None:
        """Link `last` to the checkpoint of the current position, which is saved, and `best` to that of the best one."""
        position = self.state.position
        self._saved = self._place()
        if not world().is_writer:
            return
        for name, step in (("last", position.step), ("best", position.best_step)):
            if (self.folder / f"step-{step}").is_dir():
                checkpoints.point(self.folder, name, self.folder / f"step-{step}")

    def go_back(self, say: Callable[[str], None]) -> bool:
        """Restore the newest checkpoint before the skipped steps and delete later ones; False if there is none.

        Args:
            say: called with a line for each damaged checkpoint.

        Raises:
            CheckpointError: there are checkpoints, but all are damaged.
        """
        world().wait()
        found = checkpoints.newest_checkpoint(self.folder, say, lambda position: not position.nonfinite)
        if found is None:
            return False
        self.state.load(found)
        world().wait()  # every process has read it
        position = self.state.position
        for step, path in checkpoints.step_folders(self.folder) if world().is_writer else ():
            if step > position.step:
                remove_folder(path)
        world().wait()
        if not (self.folder / f"step-{position.best_step}").is_dir():  # pruned when a later one was better
            position.best_score, position.best_step, position.best_epoch = -1.0, position.step, position.epoch
        return True

    def _place(self) -> tuple[int, int, int]:
        position = self.state.position
        return position.step, position.epoch, position.batch


def _flattened(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as tensors by name: `<index of the parameter>.<key>`."""
    state = optimiser.state_dict()["state"]
    return {
        f"{index}.{key}": torch.as_tensor(value) for index, values in state.items() for key, value in values.items()
    }


def _restore(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `_flattened`; the hyperparameters of `optimiser` do not change."""
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = split_as(tensor, parameters[int(index)])
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
