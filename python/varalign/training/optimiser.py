"""The optimiser and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Literal

import torch

from varalign.encoders.dual_encoder import DualEncoder
from varalign.options.config import TrainConfig


def build_optimiser(model: DualEncoder, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters in the groups of `DualEncoder.parameter_groups`."""
    groups = model.parameter_groups(
        lr=config.lr,
        tower_lr=config.tower_lr,
        weight_decay=config.weight_decay,
        map_lr=1.0 if config.map_lr is None else config.map_lr,
    )
    for group in groups:
        group["base_lr"] = group["lr"]
    # The fused kernel reads from a tensor whether to skip the step (see `step_guard`), so the host need not decide.
    on_cuda = bool(groups) and all(p.is_cuda for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, fused=True if on_cuda else None)


def set_learning_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its base rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor


def rate_factor(step: int, total: int, *, warmup: float, schedule: Literal["cosine", "step", "constant"]) -> float:
    """The learning rate's factor at a step, 0 to 1.

    Args:
        step: steps done before this one, 0 to total − 1.
        total: steps of the whole run.
        warmup: share of the steps over which the factor rises linearly to 1.
        schedule: `cosine` falls to 0 at the end, `step` to a tenth at 60 % and a hundredth at 85 %, `constant` stays.

    Example:
        rate_factor(0, 100, warmup=0.1, schedule="cosine") is 0.1 and rate_factor(10, 100, …) is 1.
    """
    rising = max(1, round(total * warmup)) if warmup else 0
    if step < rising:
        return (step + 1) / rising
    progress = (step - rising) / max(1, total - rising)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if schedule == "step":
        return 1.0 if progress < 0.6 else 0.1 if progress < 0.85 else 0.01
    return 1.0
