"""The loss that the options name, what it is given of a step, and its state in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varalign.data.ranks import world
from varalign.inputs.open_data import Data
from varalign.inputs.parts import Parts
from varalign.inputs.sources import ImageInputs
from varalign.losses.comparison import ComparisonLoss
from varalign.losses.contrastive import ContrastiveLoss
from varalign.losses.others import build_objective
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.runs.folder import RunFolder
from varalign.runs.metrics import read_metrics
from varalign.schedules import LossSchedule, build_schedule
from varalign.training.steps.step_texts import StepTexts

Loss = ContrastiveLoss | ComparisonLoss


def new_loss(config: TrainConfig, data: Data | None) -> Loss:
    """The loss under the schedule that the options name; without data, only to check that there is one.

    Raises:
        ConfigError: a strength that the loss does not take.
    """
    schedule = new_schedule(config)
    if config.loss == "clip":
        return ContrastiveLoss(schedule, duplicates=config.duplicates, group=world().group)
    images, captions = (0, 0) if data is None else (len(data.split), len(data.caption_owner))
    try:
        objective = build_objective(
            config.loss, images=images, captions=captions, strength=config.loss_strength, steps=config.attack_steps
        )
    except ValueError as error:
        raise ConfigError(f"--loss-strength {config.loss_strength:g}: {error}") from None
    return ComparisonLoss(objective, schedule)


def new_schedule(config: TrainConfig) -> LossSchedule:
    """The loss schedule that the options name.

    Raises:
        RunError: `replay_run` is no run, or has no step.
    """
    replay = None
    if config.replay_run is not None:
        lines = read_metrics(RunFolder.open(Path(config.replay_run)).metrics)
        steps = [line.get("w_i2t") for line in lines if line.get("kind") == "step"]
        replay = [float(weight) for weight in steps if isinstance(weight, float)]
        if not replay or len(replay) < len(steps):
            raise ConfigError(f"--replay-run {config.replay_run}: that run's metrics.jsonl has no steps with weights")
    return named_schedule(config.schedule, config, replay)


def named_schedule(name: str, config: TrainConfig, replay: Sequence[float] | None = None) -> LossSchedule:
    """A schedule under the options' floor, decay, power, fixed weight and seed.

    Args:
        name: one of `varalign.schedules.SCHEDULES`.
        config: the options; their own `schedule` is not looked at.
        replay: w_i2t of every step that `replay` shuffles.
    """
    return build_schedule(
        name,
        floor=config.schedule_floor,
        beta=config.schedule_beta,
        gamma=config.schedule_gamma,
        fixed_weight=config.fixed_weight,
        seed=config.seed,
        replay=replay or (),
    )


def add_loss_parameters(optimiser: torch.optim.Optimizer, loss: Loss, lr: float) -> None:
    """Let the optimiser train the parameters of the loss (SigLIP's bias), without decay."""
    parameters = list(loss.objective.parameters()) if isinstance(loss, ComparisonLoss) else []
    if parameters:
        optimiser.add_param_group({"name": "loss", "params": parameters, "lr": lr, "base_lr": lr, "weight_decay": 0.0})


def show_step(
    loss: Loss, parts: Parts, inputs: ImageInputs, texts: StepTexts, image_features: Tensor, text_features: Tensor
) -> None:
    """Give a loss of other people what it may need of a step beside the embeddings.

    Args:
        inputs: the images. texts: the step's texts; a mean of captions is given as the image's first one.
        image_features, text_features: inputs of the heads.
    """
    if not isinstance(loss, ComparisonLoss):
        return
    model = parts.model
    each = len(texts.captions) == len(texts.owner)
    captions = texts.captions if each else parts.data.first_captions(inputs.rows)

    def embed(tensor: Tensor) -> Tensor:
        with parts.step_autocast():
            if model.image_encoder is not None and tensor.ndim == 4 and model.fully_frozen("image"):
                features = model.image_encoder(tensor)  # `encode_images` gives no gradient for the pixels
            else:
                features = parts.images.features(model, tensor)
            return model.project_images(features).float()

    loss.see(
        image_rows=torch.from_numpy(inputs.rows).to(parts.device, non_blocking=True),
        caption_rows=torch.from_numpy(captions).to(parts.device, non_blocking=True),
        image_features=image_features.float(),
        text_features=text_features.float(),
        inputs=inputs.tensor,
        embed=embed,
    )


def loss_state(loss: Loss) -> dict[str, Tensor]:
    """What a loss learns and keeps, without its schedule's state."""
    return dict(loss.objective.state_dict()) if isinstance(loss, ComparisonLoss) else {}


def load_loss_state(loss: Loss, state: Mapping[str, Any]) -> None:
    """The inverse of `loss_state`."""
    if isinstance(loss, ComparisonLoss):
        loss.objective.load_state_dict(dict(state))
