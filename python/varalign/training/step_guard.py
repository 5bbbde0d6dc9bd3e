"""A step whose loss or gradient is not finite is skipped whole, and the GPU does not wait for the host to see it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class StepGuard:
    """Backward, clip, step: or nothing at all.

    A skipped step changes no weight, no optimiser state, no running statistic of a batch norm and no state of the loss
    schedule. A step with finite numbers is the one that there would be without the guard, bit for bit.

    On a GPU the optimiser is torch's fused one, whose kernel takes the decision from a tensor (`found_inf`, made for
    torch's GradScaler). On the CPU there is no queue to wait for, and the host looks.

    Args:
        model: all that is trained.
        schedule: the loss schedule, whose buffers move with each step.
        optimiser: over the model's parameters.
        scaler: disabled for everything but float16.
        clip_grad: largest norm of the gradient; 0 leaves it alone.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: nn.Module,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        clip_grad: float,
    ) -> None:
        self.model, self.schedule, self.optimiser, self.scaler = model, schedule, optimiser, scaler
        self.largest = clip_grad or math.inf  # an infinite bound multiplies by exactly 1
        self._on_device = bool(optimiser.defaults.get("fused"))
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self._statistics = [buffer for module in norms for buffer in module.buffers()]
        self._copies: list[tuple[Tensor, Tensor]] = []

    def begin(self) -> None:
        """Remember what the forward pass changes; call it before."""
        moving: Iterable[Tensor] = [*self._statistics, *self.schedule.buffers()]
        self._copies = [(buffer, buffer.clone()) for buffer in moving]

    def step(self, loss: Tensor) -> Tensor:
        """Backward from `loss`, clip, and step where everything is finite.

        Returns:
            () bool on the device: whether the step was made.
        """
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.largest)
        sound = torch.isfinite(loss.detach()) & torch.isfinite(norm)
        if self._on_device:
            self.optimiser.found_inf = sound.logical_not().float()  # type: ignore[attr-defined]
            self.optimiser.grad_scale = None  # type: ignore[attr-defined]
            self.scaler.step(self.optimiser)
            for buffer, copy in self._copies:
                buffer.copy_(torch.where(sound, buffer, copy))
        elif sound:  # the CPU computes as it is told, so nothing waits here; Apple's GPU does
            self.scaler.step(self.optimiser)
        else:
            for buffer, copy in self._copies:
                buffer.copy_(copy)
        self.scaler.update()
        return sound
