"""Batch norm whose batch is that of all ranks: torch's SyncBatchNorm, which is for GPUs alone, on any device.

B rows of this rank, C channels, N values of a channel on all ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from varalign.data.ranks import Ranks


def share_batch_norms(model: nn.Module, ranks: Ranks) -> None:
    """Let the batch norms of a model take their statistics, in training, from the rows of all ranks.

    The modules keep their parameters, buffers and names, so that checkpoints are those of one process.
    """
    if ranks.size == 1:
        return
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if type(module) in _RANK_NORMS:
                module.__class__ = _RANK_NORMS[type(module)]
                module.group = ranks.group
            elif isinstance(module, _BatchNorm) and not isinstance(module, _OverRanks):
                raise TypeError(f"{name}: {type(module).__name__} has no form for several processes")


class _OverRanks(_BatchNorm):
    group: Any

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) normalised by mean and variance of all ranks' rows in training, else as in one process."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        weight = torch.ones(self.num_features) if self.weight is None else self.weight
        bias = torch.zeros(self.num_features) if self.bias is None else self.bias
        output, mean, variance, count = _Normalise.apply(input, weight, bias, self.eps, self.group)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():  # the running variance is that of a sample: divided by N - 1
                self.running_mean.lerp_(mean, rate)
                self.running_var.lerp_(variance * (count / (count - 1)), rate)
        return output  # type: ignore[no-any-return]


class _Norm1d(_OverRanks, nn.BatchNorm1d):
    pass


class _Norm2d(_OverRanks, nn.BatchNorm2d):
    pass


_RANK_NORMS: dict[type[nn.Module], type[_OverRanks]] = {nn.BatchNorm1d: _Norm1d, nn.BatchNorm2d: _Norm2d}


class _Normalise(torch.autograd.Function):
    """Normalise by statistics of all ranks; the gradient is that of the sum of all ranks' losses.

    Two sums over the ranks forward (means, then squared deviations from them, so that nothing cancels), one backward.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, epsilon: float, group: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [axis for axis in range(values.ndim) if axis != 1]
        own = values.numel() // values.shape[1]
        variance, mean = torch.var_mean(_wide(values), axes, correction=0)
        sums = torch.cat([mean * own, mean.new_full((1,), own)])
        dist.all_reduce(sums, group=group)
        count = sums[-1]
        everywhere = sums[:-1] / count
        squares = (variance + (mean - everywhere).square()) * own
        dist.all_reduce(squares, group=group)
        variance = squares / count
        output = nn.functional.batch_norm(values, everywhere, variance, weight, bias, False, 0.0, epsilon)
        ctx.save_for_backward(values, everywhere, torch.rsqrt(variance + epsilon), weight, count)
        ctx.axes, ctx.group = axes, group
        ctx.mark_non_differentiable(everywhere, variance, count)
        return output, everywhere, variance, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        values, mean, inverse, weight, count = ctx.saved_tensors
        shape = [1, -1] + [1] * (values.ndim - 2)
        upstream = _wide(gradient)
        centred = _wide(values) - mean.view(shape)
        biases = upstream.sum(ctx.axes)
        weights = (upstream * centred).sum(ctx.axes) * inverse
        sums = torch.stack([biases, weights])
        dist.all_reduce(sums, group=ctx.group)
        along, across = sums / count
        # dx = w/σ · (dy − mean(dy) − x̂ · mean(dy · x̂)), the means over all ranks.
        inside = upstream - along.view(shape) - centred * (inverse * across).view(shape)
        found = (inside * (inverse * weight).view(shape)).to(values.dtype)
        return found, weights.to(weight.dtype), biases.to(weight.dtype), None, None


def _wide(values: Tensor) -> Tensor:
    """The values in float32, or in float64 where they are: sums of half-precision numbers lose too much."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
