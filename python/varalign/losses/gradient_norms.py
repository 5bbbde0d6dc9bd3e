"""Norm of each direction's gradient with respect to the embeddings, for schedules that weight by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def gradient_norms(
    losses: Tensor, embeddings: Sequence[Tensor], *, runs: bool = False, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Norms of each direction's gradient by the embeddings, for schedules with `by_gradients`.

    Args:
        losses: (2,), or with `runs` (R, 2) of runs that share nothing, with their graph, which is kept.
        embeddings: the images' and the texts', (..., D), with `runs` (R, ..., D); those without gradient are left out.
        runs: whether there is a leading run axis.
        group: ranks over which the embeddings are spread.

    Returns:
        As `losses`, without gradient; ones where nothing has a gradient (in evaluation).
    """
    trained = [tensor for tensor in embeddings if tensor.requires_grad]
    if not losses.requires_grad or not trained:
        return torch.ones_like(losses)
    squares = []
    for direction in (0, 1):
        loss = losses[..., direction].sum()
        found = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        parts = [gradient.float().square() for gradient in found if gradient is not None]
        squares.append(torch.stack([part.flatten(1).sum(1) if runs else part.sum() for part in parts]).sum(0))
    norms = torch.stack(squares, dim=-1)
    if group is not None:
        dist.all_reduce(norms, group=group)
    return norms.sqrt()
