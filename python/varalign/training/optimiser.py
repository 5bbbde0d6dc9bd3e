"""The optimiser and the learning rate as a pure function of the step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import torch

from varalign.encoders.dual_encoder import DualEncoder
from varalign.options.config import TrainConfig

_step: Callable[..., Any] = inspect.unwrap(torch.optim.AdamW.step)


class AdamW(torch.optim.AdamW):
    """torch's AdamW without the wrappers that torch.compile needs: each imports torch._dynamo, as long as torch takes.

    Results, state and file names are torch's; inside torch.compile torch's own class is to be used.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step from the gradients."""
        return _step(self, closure)


def build_optimiser(model: DualEncoder, config: TrainConfig) -> AdamW:
    """AdamW over the trainable parameters in the groups of `DualEncoder.parameter_groups`."""
    groups = model.parameter_groups(
        lr=config.lr,
        tower_lr=config.tower_lr,
        weight_decay=config.weight_decay,
        map_lr=1.0 if config.map_lr is None else config.map_lr,
    )
    for group in groups:
        group["base_lr"] = group["lr"]
    # The fused kernel passes over the weights once instead of ten times. It reads from a tensor whether to skip a step,
    # so the host need not decide (see `step_guard`).
    fused = bool(groups) and all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    return AdamW(groups, fused=True if fused else None)


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
