"""One optimiser step, from a batch of images to the numbers that are written of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varalign.data.ranks import world
from varalign.encoders.batch_rows import BatchRows, batch_rows
from varalign.encoders.specs import Side
from varalign.evaluation.pair_moments import PairMoments
from varalign.inputs.parts import Parts
from varalign.inputs.sources import ImageInputs, Rows
from varalign.losses.contrastive import ContrastiveLoss, ContrastiveOutput
from varalign.losses.distributed import gather_rows
from varalign.options.config import TrainConfig
from varalign.runs.metrics import FIGURES
from varalign.runs.profile import part
from varalign.runs.signals import StopSignals
from varalign.training.losses import show_step
from varalign.training.optimiser import rate_factor, set_learning_rate
from varalign.training.state import TrainingState
from varalign.training.steps.feature_mixup import FeatureMixup
from varalign.training.steps.passes import Gradients, Random, TowerPass, draws_otherwise, seeding
from varalign.training.steps.step_guard import StepGuard
from varalign.training.steps.step_texts import Relation, StepTexts

_Ids = tuple[Tensor, Tensor, Tensor, Tensor]  # embeddings of images and texts, ids of images and texts


@dataclass
class StepRecord:
    """What a step gives, its numbers still on the device, so that the step makes no GPU wait for the host.

    Attributes:
        line: what the host knows of its line of metrics.
        images: size of the batch.
        figures: (7,) `FIGURES`, and 1 where the step was made, 0 where it was skipped.
        captions: (C,) caption rows of the step.
        pair_values: (C, 2) positive probability and margin of each.
    """

    line: dict[str, Any]
    images: int
    figures: Tensor
    captions: Rows
    pair_values: Tensor


class TrainingStep:
    """Makes the steps of a run.

    Args:
        config: the options.
        parts: data, model and sources.
        state: what a step changes; its position says which step is next, and is left for the caller to move.
        total: steps of the whole run.
    """

    def __init__(self, config: TrainConfig, parts: Parts, state: TrainingState, total: int) -> None:
        self.config, self.parts, self.state, self.total = config, parts, state, total
        self.ranks = world()
        self._stop, self._stopped = StopSignals(), 0
        self._image_ids = torch.from_numpy(parts.data.image_ids)
        self._guard = StepGuard(parts.model, state.loss, state.optimiser, state.scaler, config.clip_grad)
        # Features that are there already need no memory of a tower: such a step has one part.
        self._split = 1 if parts.images.cached and parts.texts.cached else config.accumulate
        self._gradients = Gradients(parts.model, self.ranks, self._split)
        self._is_whole = self.ranks.size == 1 and self._split == 1
        self._before: Random | None = None  # of a step that may break off
        self._ended = time.perf_counter()
        # Losses to compare with see an ensemble's members as one space.
        by_member = parts.model.shape.members > 0 and isinstance(state.loss, ContrastiveLoss)
        self._members = {"members": parts.model.shape.members} if by_member else {}

    def begin_epoch(self, stop: StopSignals) -> None:
        """Start the clock: the time since the last step is not the next step's. `stop` receives the signals."""
        self._stop, self._ended = stop, time.perf_counter()

    @property
    def stopped(self) -> int:
        """The signal after which the run ends, 0 for none: on every rank the same."""
        return (self._stop.received or 0) if self.ranks.size == 1 else self._stopped

    def undo(self) -> None:
        """Put back the state before a step that another rank's end has interrupted, so that it can be saved."""
        if self._before is not None:
            self._guard.undo()
            self._before.restore()
            self._before = None

    def __call__(self, inputs: ImageInputs) -> StepRecord:
        """Make the next step, or skip it whole where its loss or gradient is not finite."""
        config, parts, state, model = self.config, self.parts, self.state, self.parts.model
        position = state.position
        factor = rate_factor(position.step, self.total, warmup=config.warmup, schedule=config.lr_schedule)
        set_learning_rate(state.optimiser, factor * position.rate)
        total = inputs.total or len(inputs.rows)
        rows, (self._stopped,) = self.ranks.rows_and_flags(inputs.rows, total, [self._stop.received or 0])
        draw = {"seed": config.seed, "epoch": position.epoch}
        of_all = StepTexts.draw(parts.data, rows, count=config.captions_per_step, use=config.captions_as, **draw)
        shares = self.ranks.shares(total)
        of_each = [of_all.part(share) for share in shares]
        images, (texts, text_rows, captions) = shares[self.ranks.rank], of_each[self.ranks.rank]
        each = None  # a weight per caption
        if state.pair_weights is not None:
            each = state.pair_weights[self._sent(texts.captions)]
        self._guard.begin()
        self._before = None if self.ranks.size == 1 else Random.now()
        image_pass = self._image_pass(inputs, images, total)
        text_pass = self._text_pass(of_all, captions)
        mixup = None
        if config.feature_mixup:
            mixup = FeatureMixup.draw(parts.data.image_ids[rows], config.feature_mixup, **draw)

        def forward() -> tuple[Tensor, ...]:
            with parts.step_autocast():
                image_features = image_pass.features(self._is_whole)
                text_features = texts.join(text_pass.features(self._is_whole), each)
                if mixup is not None:
                    image_features, text_features = mixup(image_features), mixup(text_features)
                whole = self.ranks.size == 1
                with batch_rows(None if whole else BatchRows(images.start, total)):
                    image_embeddings = model.project_images(image_features)
                with batch_rows(None if whole else BatchRows(text_rows.start, len(of_all.owner))):
                    text_embeddings = model.project_texts(text_features)
            return image_features, text_features, image_embeddings, text_embeddings, model.logit_scale

        with part("towers"):
            image_features, text_features, image_embeddings, text_embeddings, scale = self._gradients.forward(forward)
        ids = of_all.pair_ids(parts.data, rows)
        own_ids = (
            self._image_ids[torch.from_numpy(inputs.rows)] if ids is None else torch.from_numpy(ids.images[images])
        )
        image_ids = own_ids.to(parts.device, non_blocking=True)
        text_ids = image_ids[self._sent(texts.owner)] if ids is None else self._sent(ids.texts[text_rows])
        image_weights, text_weights = texts.weights(each)
        if mixup is not None and image_weights is not None and text_weights is not None:
            image_weights, text_weights = mixup(image_weights), mixup(text_weights)
        with part("loss"):
            show_step(state.loss, parts, inputs, texts, image_features, text_features)
            output = state.loss(
                image_embeddings.float(),
                text_embeddings.float(),
                scale,
                image_ids,
                text_ids,
                image_weights=image_weights,
                text_weights=text_weights,
                **self._members,
            )
        alpha = scale.detach()
        embeddings = image_embeddings.detach().float(), text_embeddings.detach().float()
        several = None if ids is None else (*embeddings, image_ids, text_ids)
        pair_values = self._pair_values(output, [share for share, _, _ in of_each], alpha, several)

        def further() -> None:
            image_pass.backward(parts.step_autocast)
            text_pass.backward(parts.step_autocast)
            self._gradients.mean()

        self._guard.further = further
        sound = self._guard.step(output.loss)
        self._before = None  # no process waits for another from here to the end of the step
        model.clamp_logit_scale_()
        if state.averaged is not None:
            state.averaged.update(sound)

        with torch.no_grad():
            figures = [output.loss, output.loss_i2t, output.loss_t2i, *output.weights, alpha, sound.float()]
            stacked = torch.stack(figures).detach()
        now = time.perf_counter()
        line = {
            "kind": "step",
            "step": position.step + 1,
            "epoch": position.epoch + 1,
            "lr": state.optimiser.param_groups[0]["lr"],
            "seconds": now - self._ended,
            "data_wait": inputs.wait,
        }
        self._ended = now
        return StepRecord(line, total, stacked, of_all.captions, pair_values)

    def _image_pass(self, inputs: ImageInputs, rows: slice, total: int) -> TowerPass:
        source = self.parts.images

        def run(part: slice) -> Tensor:
            return source.features(self.parts.model, inputs.tensor[part])

        return self._pass("image", run, rows, total, None, source.cached)

    def _text_pass(self, texts: StepTexts, captions: slice) -> TowerPass:
        source, epoch, tokens = self.parts.texts, self.state.position.epoch, None
        if source.cached or self._is_whole:
            own = source.inputs(texts.captions[captions], epoch)
        else:  # of the whole batch, whose longest text decides what dropout draws
            whole = source.inputs(texts.captions, epoch)
            tokens = max(1, int(whole[1].max()))
            own = tuple(part[captions] for part in whole)

        def run(part: slice) -> Tensor:
            return source.features(self.parts.model, tuple(some[part] for some in own))

        return self._pass("text", run, captions, len(texts.captions), tokens, source.cached)

    def _pass(
        self, side: Side, run: Callable[[slice], Tensor], rows: slice, total: int, tokens: int | None, cached: bool
    ) -> TowerPass:
        # As many parts on every rank as the smallest share allows.
        split = 1 if cached else min(self._split, max(1, total // self.ranks.size))
        seeds = None
        if not self._is_whole and draws_otherwise(self.parts.model, side):
            seeds = seeding(self.config.seed, self.state.position.step, 2 * self.ranks.rank + (side == "text"))
        trains = not cached and not self.parts.model.fully_frozen(side)
        return TowerPass(run, rows, total, tokens, split, trains, seeds, self.parts.model)

    def _pair_values(
        self, output: ContrastiveOutput, shares: list[StepTexts], alpha: Tensor, ids: _Ids | None
    ) -> Tensor:
        """(C, 2) of the captions of the whole batch.

        Args:
            shares: the texts of each rank. ids: given where a text belongs to several images.
        """
        with torch.no_grad():
            sizes = None if self.ranks.size == 1 else [len(share.owner) for share in shares]
            relation = None if ids is None else Relation(*ids, sizes, self.ranks.group)
            own = shares[self.ranks.rank]
            values = own.pair_values(output.stats_i2t, output.stats_t2i, alpha, relation)
            if self.ranks.size == 1:
                return values
            return gather_rows(values, [len(share.captions) for share in shares], self.ranks.group)

    def _sent(self, rows: Rows) -> Tensor:
        return torch.from_numpy(rows).to(self.parts.device, non_blocking=True)


def fetched(records: list[StepRecord], moments: PairMoments) -> list[dict[str, Any]]:
    """The lines of metrics of some steps, in order; `skipped` is true in those of steps that were not made.

    Args:
        records: of the steps; the host waits for the GPU here.
        moments: told the pair values of the steps that were made.
    """
    table = torch.stack([record.figures for record in records]).cpu().tolist()
    lines = []
    for record, (*figures, sound) in zip(records, table, strict=True):
        line = record.line | dict(zip(FIGURES, figures, strict=True))
        if sound:
            values: np.ndarray[Any, Any] = record.pair_values.cpu().double().numpy()
            moments.update(record.captions, values)
        else:
            line["skipped"] = True
        lines.append(line)
    return lines
