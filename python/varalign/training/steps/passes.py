"""The passes of a step through towers and heads: split over processes, and into parts where memory is short.

In parts (`--accumulate`) the towers that train run twice, after GradCache: first without gradient, for the features of
all rows; then, when heads and loss have given the features' gradient, part by part with it. The gradient is that of the
whole batch, and the memory that of a part. Towers that do not train run once.

B images, C captions of this rank; N of the whole batch.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from varalign.data.draws import TOWERS, hash_draws
from varalign.data.ranks import Ranks, even_parts
from varalign.encoders.batch_rows import BatchRows, batch_rows
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.sharding import is_split
from varalign.encoders.specs import SIDES, Side

T = TypeVar("T")
OWN_DRAWS = ("lstm", "resnet18")
"""Kinds of towers whose draws `varalign.encoders.batch_rows` makes, and those that draw nothing."""


@dataclass
class TowerPass:
    """A tower's features of this rank's rows, and the way of their gradient back.

    Attributes:
        run: from some of the rows to their features (rows, D).
        rows: place of this rank's rows in the whole batch.
        total, tokens: as of `BatchRows`.
        parts: number of parts.
        trains: whether the tower has a gradient.
        seeds: sets torch's generator before a part, where the tower draws numbers that do not go by rows; what heads
            draw afterwards does not depend on it. Else None.
        towers: whose batch norms must not count a first pass.
    """

    run: Callable[[slice], Tensor]
    rows: slice
    total: int
    tokens: int | None
    parts: int
    trains: bool
    seeds: Callable[[int], None] | None
    towers: nn.Module
    _leaf: Tensor | None = field(default=None, init=False)
    _before: Random | None = field(default=None, init=False)

    def features(self, whole: bool) -> Tensor:
        """(rows, D); `whole` says that these are the rows of the whole batch, in one part."""
        if whole:
            return self.run(slice(0, self.rows.stop - self.rows.start))
        self._before = Random.now()
        if self.parts == 1:
            found = self._part(0, *self._slices())
        else:
            with torch.no_grad(), _uncounted(self.towers):
                found = torch.cat([self._part(place, part) for place, part in enumerate(self._slices())])
        if self.seeds is not None:
            self._before.restore()
        if not self.trains or self.parts == 1:
            return found
        self._leaf = found.requires_grad_()
        return self._leaf

    def backward(self, arithmetic: Callable[[], Any]) -> None:
        """Take the features' gradient, which the loss has left, back through the tower, part by part."""
        if self._leaf is None or self._leaf.grad is None:
            return
        after = Random.now()
        for place, part in enumerate(self._slices()):
            with arithmetic():
                found = self._part(place, part)
            if found.requires_grad:
                found.backward(self._leaf.grad[part].to(found.dtype))
        after.restore()
        self._leaf = None

    def _part(self, place: int, part: slice) -> Tensor:
        if self.seeds is not None:
            self.seeds(place)
        else:
            assert self._before is not None
            self._before.restore()
        with batch_rows(self._rows(part)):
            return self.run(part)

    def _rows(self, part: slice) -> BatchRows:
        return BatchRows(self.rows.start + part.start, self.total, self.tokens)

    def _slices(self) -> list[slice]:
        return even_parts(self.rows.stop - self.rows.start, self.parts)


class Gradients:
    """Makes the gradients of all ranks their mean: by torch's DistributedDataParallel, while they are computed; where a
    step has parts, or towers are split over the ranks, afterwards. Those of split towers are means already.

    Args:
        model: whose parameters train.
        ranks: the processes.
        parts: number of parts of a step.
    """

    def __init__(self, model: DualEncoder, ranks: Ranks, parts: int) -> None:
        self.model, self.ranks = model, ranks
        self._parallel: nn.Module | None = None
        self._afterwards = ranks.size > 1 and (parts > 1 or bool(model.sharded))

    def forward(self, call: Callable[[], T]) -> T:
        """What `call` returns: tensors, from which the backward pass begins."""
        if self.ranks.size == 1 or self._afterwards:
            return call()
        if self._parallel is None:
            from torch.nn.parallel import DistributedDataParallel

            known = inspect.signature(DistributedDataParallel).parameters
            buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            # A tower of another library may have parameters that its output does not depend on.
            unused = any(draws_otherwise(self.model, side) for side in SIDES)
            settings: dict[str, Any] = {buffers: False, "find_unused_parameters": unused}
            # Gradients of 1 x 1 convolutions: their strides differ in name alone.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            self._parallel = DistributedDataParallel(_Called(self.model), process_group=self.ranks.group, **settings)
        return self._parallel(call)  # type: ignore[no-any-return]

    def mean(self) -> None:
        """After the backward pass of all parts."""
        if not self._afterwards:
            return
        import torch.distributed as dist

        trained = [p for p in self.model.parameters() if p.requires_grad and not is_split(p)]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None])
        dist.all_reduce(flat, group=self.ranks.group)
        flat /= self.ranks.size
        for parameter, mean in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(mean.view_as(parameter))


class _Called(nn.Module):
    """The model, as a module whose forward pass is any function of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[], Any]) -> Any:
        return call()


def draws_otherwise(model: DualEncoder, side: Side) -> bool:
    """Whether a side's tower trains and is of another library, whose dropout knows nothing of the rows of a batch."""
    encoder = None if model.fully_frozen(side) else model.encoder(side)
    return encoder is not None and encoder.spec.partition("@")[0] not in OWN_DRAWS


def has_batch_norms(model: DualEncoder) -> bool:
    """Whether the towers that train take statistics of what passes through them together."""
    parts = [part for side in SIDES for part in model.training_parts(side) if isinstance(part, nn.Module)]
    return any(isinstance(module, _BatchNorm) for part in parts for module in part.modules())


def seeding(seed: int, step: int, rank: int) -> Callable[[int], None]:
    """What sets torch's generators before a part of a step, from (seed, step, rank, part)."""

    def begin(part: int) -> None:
        (drawn,) = hash_draws(np.array([rank << 16 | part]), seed, step, TOWERS)
        torch.manual_seed(int(drawn >> np.uint64(1)))

    return begin


@dataclass(frozen=True)
class Random:
    """The state of torch's generators."""

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def now(cls) -> Random:
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state() if on_gpu else None)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


@contextmanager
def _uncounted(model: nn.Module) -> Iterator[None]:
    """Within, batch norms in training leave their running statistics as they are."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
