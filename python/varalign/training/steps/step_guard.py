"""Skips steps whose loss or gradient is not finite, without a wait of the GPU for the host."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from varalign.encoders.sharding import clip_gradients
from varalign.runs.profile import part


class StepGuard:
    """Makes a step (backward, clipping, optimiser) as a whole, or skips it as a whole.

    A skipped step changes no weight, no optimiser state, no running statistic of a batch norm and no state of the loss
    and its schedule. A finite step gives, bit for bit, the result of a step without the guard.

    The fused optimiser kernel reads the decision from a tensor (`found_inf`, made for torch's GradScaler): the host
    waits for no GPU. Without a fused kernel (Apple's GPU) the host reads it.

    Args:
        model: the gradients of its parameters are clipped.
        loss: the loss with its schedule; each step changes its buffers.
        optimiser: over the parameters of both.
        scaler: disabled unless the precision is float16.
        clip_grad: largest norm of the gradient; 0: no clipping.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        clip_grad: float,
    ) -> None:
        self.model, self.loss, self.optimiser, self.scaler = model, loss, optimiser, scaler
        self.largest = clip_grad or math.inf  # an infinite bound multiplies by exactly 1
        self._on_device = bool(optimiser.defaults.get("fused"))
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self._statistics = [buffer for module in norms for buffer in module.buffers()]
        self._groups: list[list[Tensor]] = []
        self._copies: list[Tensor] = []
        self.further: Callable[[], None] = lambda: None
        """Called after the backward pass, for what is left of the gradients."""

    def begin(self) -> None:
        """Copy the buffers that the forward pass changes; call it before the forward pass."""
        groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for buffer in (*self._statistics, *self.loss.buffers()):
            groups.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        self._groups = list(groups.values())
        self._copies = [_joined(group) for group in self._groups]

    def undo(self) -> None:
        """Put back what a step has changed that ends before its optimiser's part."""
        for group, copy in zip(self._groups, self._copies, strict=True):
            _fill(group, copy)

    def step(self, value: Tensor) -> Tensor:
        """Backward from the loss's value (), clip, and step if everything is finite.

        Returns:
            () bool on the device: whether the step was made.
        """
        with part("backward"):
            self.optimiser.zero_grad(set_to_none=True)
            self.scaler.scale(value).backward()
            self.further()
        with part("optimiser"):
            return self._make(value)

    def _make(self, value: Tensor) -> Tensor:
        """`step` after the backward pass."""
        self.scaler.unscale_(self.optimiser)
        norm = clip_gradients(self.model, self.largest)
        sound = torch.isfinite(value.detach()) & torch.isfinite(norm)
        if self._on_device:
            self.optimiser.found_inf = sound.logical_not().float()  # type: ignore[attr-defined]
            self.optimiser.grad_scale = None  # type: ignore[attr-defined]
            self.scaler.step(self.optimiser)
            for group, copy in zip(self._groups, self._copies, strict=True):
                _fill(group, torch.where(sound, _joined(group), copy))
        elif sound:  # Apple's GPU waits for the host here
            self.scaler.step(self.optimiser)
        else:
            self.undo()
        self.scaler.update()
        return sound


def _joined(buffers: list[Tensor]) -> Tensor:
    """(M,) the values of all buffers in one tensor: a GPU takes 60 buffers in the time of one."""
    return torch.cat([buffer.flatten() for buffer in buffers])


@torch.no_grad()
def _fill(buffers: list[Tensor], values: Tensor) -> None:
    """Give the buffers the values (M,) of `_joined`."""
    parts = values.split([buffer.numel() for buffer in buffers])
    torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(parts, buffers, strict=True)])
