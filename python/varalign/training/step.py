"""One optimiser step, from a batch of images to the numbers that are written of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varalign.evaluation.pair_moments import PairMoments
from varalign.inputs.parts import Parts
from varalign.inputs.sources import ImageInputs, Rows
from varalign.losses.contrastive import ContrastiveLoss
from varalign.options.config import TrainConfig
from varalign.runs.metrics import FIGURES
from varalign.runs.profile import part
from varalign.training.feature_mixup import FeatureMixup
from varalign.training.losses import show_step
from varalign.training.optimiser import rate_factor, set_learning_rate
from varalign.training.state import TrainingState
from varalign.training.step_guard import StepGuard
from varalign.training.step_texts import Relation, StepTexts


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
        self._image_ids = torch.from_numpy(parts.data.image_ids)
        self._guard = StepGuard(parts.model, state.loss, state.optimiser, state.scaler, config.clip_grad)
        self._ended = time.perf_counter()
        # Losses to compare with see an ensemble's members as one space.
        by_member = parts.model.shape.members > 0 and isinstance(state.loss, ContrastiveLoss)
        self._members = {"members": parts.model.shape.members} if by_member else {}

    def begin_epoch(self) -> None:
        """Start the clock: the time since the last step is not the next step's."""
        self._ended = time.perf_counter()

    def __call__(self, inputs: ImageInputs) -> StepRecord:
        """Make the next step, or skip it whole where its loss or gradient is not finite."""
        config, parts, state, model = self.config, self.parts, self.state, self.parts.model
        position = state.position
        factor = rate_factor(position.step, self.total, warmup=config.warmup, schedule=config.lr_schedule)
        set_learning_rate(state.optimiser, factor * position.rate)
        draw = {"seed": config.seed, "epoch": position.epoch}
        texts = StepTexts.draw(parts.data, inputs.rows, count=config.captions_per_step, use=config.captions_as, **draw)
        each = None  # a weight per caption
        if state.pair_weights is not None:
            each = state.pair_weights[self._sent(texts.captions)]
        self._guard.begin()
        with part("towers"), parts.autocast():
            image_features = parts.images.features(model, inputs.tensor)
            text_inputs = parts.texts.inputs(texts.captions, position.epoch)
            text_features = texts.join(parts.texts.features(model, text_inputs), each)
            mixup = None
            if config.feature_mixup:
                mixup = FeatureMixup.draw(parts.data.image_ids[inputs.rows], config.feature_mixup, **draw)
                image_features, text_features = mixup(image_features), mixup(text_features)
            image_embeddings = model.project_images(image_features)
            text_embeddings = model.project_texts(text_features)
        ids = texts.pair_ids(parts.data, inputs.rows)
        image_ids = self._image_ids[torch.from_numpy(inputs.rows)] if ids is None else torch.from_numpy(ids.images)
        image_ids = image_ids.to(parts.device, non_blocking=True)
        text_ids = image_ids[self._sent(texts.owner)] if ids is None else self._sent(ids.texts)
        scale = model.logit_scale
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
        sound = self._guard.step(output.loss)
        model.clamp_logit_scale_()

        with torch.no_grad():
            alpha = scale.detach()
            embeddings = image_embeddings.detach().float(), text_embeddings.detach().float()
            relation = None if ids is None else Relation(*embeddings, image_ids, text_ids)
            pair_values = texts.pair_values(output.stats_i2t, output.stats_t2i, alpha, relation)
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
        return StepRecord(line, len(inputs.rows), stacked, texts.captions, pair_values)

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
