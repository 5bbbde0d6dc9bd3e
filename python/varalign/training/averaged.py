"""Averaged weights: the exponential moving average of a model's weights over its steps, by which it is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    """The moving average of the weights that train, and of the statistics of batch norms.

    After n steps were made, the average keeps min(decay, (1 + n) / (10 + n)) of itself, so that a short run forgets its
    first weights. A step that was skipped does not count. torch's `AveragedModel` copies the whole model, frozen towers
    included, and counts every step.

    Args:
        model: on its device; its weights now are the first average.
        decay: share of the average that a step keeps, within [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._live: dict[str, Tensor] = trained | {n: b for n, b in model.named_buffers() if b.is_floating_point()}
        self._other = {name: value.detach().clone() for name, value in self._live.items()}
        self._steps = torch.zeros((), device=next(model.parameters()).device)

    @torch.no_grad()
    def update(self, sound: Tensor) -> None:
        """Take the weights after a step into the average; `sound` () bool says whether the step was made."""
        kept = ((1 + self._steps) / (10 + self._steps)).clamp(max=self.decay)
        weight = torch.where(sound, 1 - kept, 0.0)
        for name, average in self._other.items():
            average.lerp_(self._live[name], weight.to(average.dtype))
        self._steps += sound

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within, the model has the averaged weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, other in self._other.items():
            live = self._live[name].clone()
            self._live[name].copy_(other)  # in place: the weights of an LSTM lie in one piece on a GPU
            other.copy_(live)

    def state(self) -> dict[str, Tensor]:
        """The weights that the optimiser changes, by name, and the steps; for a checkpoint whose model is averaged."""
        return {"steps": self._steps, **{f"weights.{name}": value.detach() for name, value in self._live.items()}}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take the model's weights as the average, and put those of `state` in their place.

        Raises:
            KeyError, RuntimeError: the state is of another model.
        """
        self._steps.copy_(state["steps"])
        for name, live in self._live.items():
            self._other[name].copy_(live)
            live.copy_(state[f"weights.{name}"])
