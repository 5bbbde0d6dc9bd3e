"""Towers whose weights are split over the processes of a command, by torch's fully sharded data parallel (FSDP2).

Each process keeps a part of every weight, of its gradient and of the optimiser's state. A pass of training gathers the
weights of one block at a time, which all processes do together; its backward pass leaves each process its part of the
mean gradient. Where processes have different numbers of batches, as in evaluation, `whole` gathers a tower for all of
its passes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from varalign.data.ranks import Ranks
from varalign.encoders.base import Encoder
from varalign.encoders.specs import SIDES, Side, SpecError
from varalign.encoders.towers import Towers


def shard_towers(model: Towers, ranks: Ranks, device: torch.device) -> None:
    """Split both towers over the processes, block by block; heads and logit scale stay whole on each.

    Raises:
        SpecError: a tower has a weight that cannot be split.
    """
    if ranks.size == 1:
        return
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    # No tower changes the output of a block in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = DeviceMesh.from_group(ranks.group, device.type)
    for side in SIDES:
        encoder = model.encoder(side)
        if encoder is None:
            continue
        if any(parameter.ndim == 0 for parameter in encoder.parameters()):
            raise SpecError(f"'{encoder.spec}': --shard splits weights by rows, and one of its weights is a number")
        parts = [*_blocks(encoder), encoder]
        for part in parts:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)  # type: ignore[arg-type]
        model.sharded[side] = parts


def _blocks(encoder: Encoder) -> list[nn.Module]:
    try:
        return encoder.blocks()
    except SpecError:  # none that varalign knows: the tower is gathered as one
        return []


@contextmanager
def whole(model: Towers, side: Side) -> Iterator[None]:
    """Within, every process has the whole weights of a side's tower, for passes without gradient; all enter it."""
    parts: list[Any] = model.sharded.get(side, [])
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def is_split(tensor: Tensor) -> bool:
    """Whether this process has a part of a tensor alone."""
    return hasattr(tensor, "full_tensor")  # of DTensor, whose import takes long


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Tensors by name, those that are split as whole ones on the CPU; all processes call it, and some keep nothing."""
    found = {}
    for name, tensor in tensors.items():
        value = tensor.full_tensor().cpu() if is_split(tensor) else tensor  # type: ignore[attr-defined]
        if keep:
            found[name] = value
    return found


def split_as(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor where `like` is split, else the tensor."""
    if not is_split(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    given: Any = like
    return distribute_tensor(value.to(like.device), given.device_mesh, given.placements, src_data_rank=None)


def clip_gradients(model: nn.Module, largest: float) -> Tensor:
    """torch's `clip_grad_norm_` of a model, whose towers may be split; the norm () is the same on all processes."""
    if not getattr(model, "sharded", None):
        return torch.nn.utils.clip_grad_norm_(model.parameters(), largest)
    import torch.distributed as dist

    gradients: list[Any] = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    split = [gradient.to_local() for gradient in gradients if is_split(gradient)]
    plain = [gradient for gradient in gradients if not is_split(gradient)]
    squares = [torch.stack(torch._foreach_norm(some)).square().sum() if some else None for some in (split, plain)]
    device = gradients[0].device
    ours, theirs = (torch.zeros((), device=device) if value is None else value for value in squares)
    dist.all_reduce(ours)
    norm = (ours + theirs).sqrt()
    torch._foreach_mul_([*split, *plain], (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm
