"""The contrastive loss as one PyTorch operator with a gradient: what eager code, autocast and torch.compile all call.

Two implementations of the same three passes stand behind it: "triton" (`varalign.kernels.contrastive`) and "reference".
Registered with shapes only ("fake") besides, so that torch.compile traces through it without a graph break.
"""

# No `from __future__ import annotations`: torch.library reads the annotations as objects.
from collections.abc import Callable
from functools import lru_cache, wraps
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from varalign.kernels import fields as f
from varalign.losses import reference
from varalign.losses.settle import negative_lse, settle
from varalign.losses.statistics import FIELDS, similarity_variance

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@lru_cache(maxsize=1)
def kernel() -> ModuleType | None:
    """The module of Triton kernels, or None where triton is not installed (macOS, Windows)."""
    try:
        return import_module("varalign.kernels.contrastive")
    except ImportError:
        return None


def choose_backend(embeddings: Tensor) -> str:
    """ "triton" for CUDA embeddings of 16 or 32 bits where triton is installed, else "reference"."""
    if not embeddings.is_cuda or embeddings.dtype not in KERNEL_DTYPES or kernel() is None:
        return "reference"
    # Volta and older have no bfloat16 and are not compiled for by current Triton.
    return (
        "triton" if torch.version.hip or torch.cuda.get_device_capability(embeddings.device) >= (7, 5) else "reference"
    )


def passes(backend: str) -> Any:
    """The module with `tile_sums`, `positive_terms` and `tile_gradients` of that name."""
    if backend == "reference":
        return reference
    module = kernel()
    if module is None:
        raise RuntimeError("the triton kernels were wanted, but triton cannot be imported; install triton")
    return module


_Function = TypeVar("_Function", bound=Callable[..., Any])


def without_autocast(function: _Function) -> _Function:
    """The passes choose their own dtypes: inside autocast, a float32 product of theirs would come back in 16 bits."""

    @wraps(function)
    def exact(*arguments: Any, **named: Any) -> Any:
        device = next(argument.device.type for argument in arguments if isinstance(argument, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*arguments, **named)

    return exact  # type: ignore[return-value]


@torch.library.custom_op("varalign::contrastive", mutates_args=())
@without_autocast
def contrastive_forward(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_ids: Tensor,
    column_ids: Tensor,
    ignore: bool,
    cache_bytes: int,
    backend: str,
    statistics: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses (M,) and (N,), statistics (7, M) and (7, N), backward terms (QUERY_TERMS, M) and (.., N), and the cache.

    Args:
        rows: (M, D) image embeddings; columns: (N, D) text embeddings; one floating dtype.
        scale: () logit scale, float32 or float64 as the losses are.
        row_ids: (M,) int64; column_ids: (N,) int64: positives are where they are equal.
        ignore: `duplicates="ignore"`.
        cache_bytes: how much the forward pass may keep for the backward pass.
        backend: "triton" or "reference".
        statistics: without them `minimum`, `expected` and `variance`, which the losses do not need, are NaN: for
            `bench/contrastive.py`, which measures what they cost.
    """
    module = passes(backend)
    row_sums, column_sums, cache = module.tile_sums(
        rows, columns, scale, row_ids, column_ids, cache_bytes=cache_bytes, statistics=statistics
    )
    row_ignored = column_ignored = None
    if ignore:
        row_ignored, column_ignored = module.positive_terms(
            rows, columns, scale, row_ids, column_ids, negative_lse(row_sums), negative_lse(column_sums)
        )
    if not statistics:
        row_variance, column_variance = (torch.full_like(sums[0], torch.nan) for sums in (row_sums, column_sums))
    elif backend == "reference" and cache.numel():
        # A small batch, all of whose logits are at hand: cheaper than two D x D covariances.
        row_variance, column_variance = ((cache - cache.mean(d, keepdim=True)).square_().mean(d) for d in (1, 0))
        row_variance, column_variance = row_variance / scale**2, column_variance / scale**2
    else:
        row_variance, column_variance = similarity_variance(rows, columns), similarity_variance(columns, rows)
    row_results = settle(row_sums, scale, row_variance, row_ignored)
    column_results = settle(column_sums, scale, column_variance, column_ignored)
    (row_values, row_stats, row_terms), (column_values, column_stats, column_terms) = row_results, column_results
    return row_values, column_values, row_stats, column_stats, row_terms, column_terms, cache


@contrastive_forward.register_fake
def _(rows, columns, scale, row_ids, column_ids, ignore, cache_bytes, backend, statistics=True):  # type: ignore[no-untyped-def]
    m, n = rows.shape[0], columns.shape[0]
    shapes = ((m,), (n,), (len(FIELDS), m), (len(FIELDS), n), (f.QUERY_TERMS, m), (f.QUERY_TERMS, n))
    cache = passes(backend).empty_cache(rows, columns, cache_bytes)
    return (*(scale.new_empty(shape, device=rows.device) for shape in shapes), cache)


@torch.library.custom_op("varalign::contrastive_backward", mutates_args=())
@without_autocast
def contrastive_backward(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_ids: Tensor,
    column_ids: Tensor,
    row_terms: Tensor,
    column_terms: Tensor,
    row_upstream: Tensor,
    column_upstream: Tensor,
    cache: Tensor,
    ignore: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the embeddings, in their dtype, and of the logit scale, for the upstream gradients of all values."""
    row_gradient, column_gradient, scale_gradient = passes(backend).tile_gradients(
        rows,
        columns,
        scale,
        row_ids,
        column_ids,
        row_terms,
        column_terms,
        row_upstream,
        column_upstream,
        cache,
        ignore=ignore,
    )
    return row_gradient.to(rows.dtype), column_gradient.to(columns.dtype), scale_gradient


@contrastive_backward.register_fake
def _(rows, columns, scale, *others):  # type: ignore[no-untyped-def]
    return (
        rows.new_empty(rows.shape),
        columns.new_empty(columns.shape),
        scale.new_empty((), device=rows.device),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    rows, columns, scale, row_ids, column_ids, ignore, _, backend, _statistics = inputs
    _row_values, _column_values, row_stats, column_stats, row_terms, column_terms, cache = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(row_stats, column_stats, row_terms, column_terms, cache)
    ctx.save_for_backward(
        rows, columns, scale, row_ids, column_ids, row_stats, column_stats, row_terms, column_terms, cache
    )
    ctx.ignore, ctx.backend = ignore, backend


def _backward(ctx: Any, row_upstream: Tensor | None, column_upstream: Tensor | None, *others: Any) -> tuple[Any, ...]:
    rows, columns, scale, row_ids, column_ids, row_stats, column_stats, row_terms, column_terms, cache = (
        ctx.saved_tensors
    )
    gradients = contrastive_backward(
        rows,
        columns,
        scale,
        row_ids,
        column_ids,
        row_terms,
        column_terms,
        counted_upstream(row_upstream, row_stats),
        counted_upstream(column_upstream, column_stats),
        cache,
        ctx.ignore,
        ctx.backend,
    )
    return (*gradients, *[None] * 6)


def counted_upstream(upstream: Tensor | None, stats: Tensor) -> Tensor:
    """(Q,) upstream gradient with zeros at the queries without positives, whose value is the constant 0."""
    if upstream is None:
        return torch.zeros_like(stats[0])
    return torch.where(stats[FIELDS.index("positive_max")] == -torch.inf, torch.zeros_like(upstream), upstream)


def _no_second_derivative(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
    raise RuntimeError(
        "varalign's contrastive loss can be differentiated once, and a second derivative was asked for; "
        "drop create_graph=True, or compute the loss from a matrix of logits"
    )


torch.library.register_autograd("varalign::contrastive", _backward, setup_context=_setup_context)
torch.library.register_autograd(
    "varalign::contrastive_backward", _no_second_derivative, setup_context=lambda *_, **__: None
)
