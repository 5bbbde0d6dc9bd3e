"""The contrastive loss as one step with a gradient: an autograd function, and for torch.compile a PyTorch operator.

Two implementations of the same three passes stand behind it: "triton" (`varalign.kernels.passes`) and "reference".
The operator is registered with shapes only ("fake") besides, so that torch.compile traces through it without a graph
break. Eager code goes around it: a registered operator checks its arguments in Python, a third of a small batch's time.
"""

# No `from __future__ import annotations`: torch.library reads the annotations as objects.
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from varalign.kernels import query_fields as f
from varalign.losses import reference

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


_TRITON = find_spec("triton") is not None


def kernel() -> ModuleType | None:
    """The module of Triton kernels, or None where triton is not installed (macOS, Windows)."""
    if not _TRITON:
        return None
    # torch.compile traces an import statement, but not `import_module`, and not past an ImportError.
    from varalign.kernels import passes as module

    return module


def choose_backend(embeddings: Tensor) -> str:
    """ "triton" for CUDA embeddings of 16 or 32 bits where triton is installed, else "reference"."""
    if not embeddings.is_cuda or embeddings.dtype not in KERNEL_DTYPES or kernel() is None:
        return "reference"
    # Volta and older have no bfloat16 and are not compiled for by current Triton.
    return (
        "triton" if torch.version.hip or torch.cuda.get_device_capability(embeddings.device) >= (7, 5) else "reference"
    )


def passes(backend: str) -> Any:
    """The module with `forward`, its parts `tile_sums`, `positive_terms` and `settle`, and `tile_gradients`."""
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
        if not torch.is_autocast_enabled(device):
            return function(*arguments, **named)
        with torch.autocast(device, enabled=False):
            return function(*arguments, **named)

    return exact  # type: ignore[return-value]


def _operator(name: str) -> Callable[[_Function], Callable[..., Any]]:
    """Make a function the operator of that name for every device.

    `torch.library.custom_op` besides wraps it for torch.compile, and the wrapper's first call imports torch._dynamo,
    as long as `import torch` takes.
    """

    def register(function: _Function) -> Callable[..., Any]:
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(name, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(name, "default", function)
        namespace, _, short = name.partition("::")
        return getattr(getattr(torch.ops, namespace), short).default  # type: ignore[no-any-return]

    return register


@without_autocast
def forward_pass(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    ignore: bool,
    cache_bytes: int,
    backend: str,
    statistics: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses (Q,), statistics (7, Q), backward terms (QUERY_TERMS, Q), and three more that the backward pass needs.

    Q = M + N queries, the rows' first: one tensor for both sides is one launch where two would be two.

    Args:
        rows: (M, D) image embeddings; columns: (N, D) text embeddings; one floating dtype.
        scale: () logit scale, float32 or float64 as the losses are.
        row_ids: (M,) or (M, K) int64; column_ids: (N,) int64: positives are where the column's is among the row's. None
            for both: text i belongs to image i.
        ignore: `duplicates="ignore"`.
        cache_bytes: how much the forward pass may keep for the backward pass.
        backend: "triton" or "reference".
        statistics: without them `minimum`, `expected` and `variance`, which the losses do not need, are NaN: for
            `bench/contrastive.py`, which measures what they cost.
    """
    values, stats, terms, kept = passes(backend).forward(
        rows, columns, scale, row_ids, column_ids, ignore=ignore, cache_bytes=cache_bytes, statistics=statistics
    )
    return values, stats, terms, *kept


contrastive_forward = _operator("varalign::contrastive")(forward_pass)


@torch.library.register_fake("varalign::contrastive")
def _(rows, columns, scale, row_ids, column_ids, ignore, cache_bytes, backend, statistics=True):  # type: ignore[no-untyped-def]
    queries = rows.shape[0] + columns.shape[0]
    shapes = ((queries,), (len(f.STATISTICS), queries), (f.QUERY_TERMS, queries))
    made = (scale.new_empty(shape, device=rows.device) for shape in shapes)
    return (*made, *passes(backend).kept_like(rows, columns, row_ids, cache_bytes))


@without_autocast
def backward_pass(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    terms: Tensor,
    matching: Tensor,
    norms: Tensor,
    cache: Tensor,
    upstream: Tensor,
    ignore: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the embeddings, in their dtype, and of the logit scale, for the upstream gradients of all values."""
    return passes(backend).tile_gradients(  # type: ignore[no-any-return]
        rows, columns, scale, (matching, norms, cache), terms, upstream, ignore=ignore
    )


contrastive_backward = _operator("varalign::contrastive_backward")(backward_pass)


@torch.library.register_fake("varalign::contrastive_backward")
def _(rows, columns, scale, *others):  # type: ignore[no-untyped-def]
    return (rows.new_empty(rows.shape), columns.new_empty(columns.shape), scale.new_empty((), device=rows.device))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    rows, columns, scale, _row_ids, _column_ids, ctx.ignore, _, ctx.backend, *_statistics = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(rows, columns, scale, *output[2:])


def _backward(ctx: Any, upstream: Tensor | None, *others: Any) -> tuple[Any, ...]:
    if upstream is None:
        return (None,) * 9
    return (*contrastive_backward(*ctx.saved_tensors, upstream, ctx.ignore, ctx.backend), *[None] * 6)


def _no_second_derivative(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
    raise RuntimeError(
        "varalign's contrastive loss can be differentiated once, and a second derivative was asked for; "
        "drop create_graph=True, or compute the loss from a matrix of logits"
    )


torch.library.register_autograd("varalign::contrastive", _backward, setup_context=_setup_context)
torch.library.register_autograd(
    "varalign::contrastive_backward", _no_second_derivative, setup_context=lambda *_, **__: None
)


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        values, statistics, *_ = outputs = forward_pass(*inputs)
        _setup_context(ctx, inputs, outputs)
        return values, statistics

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Any, ...]:  # type: ignore[override]
        if upstream is None or torch.is_grad_enabled():  # with create_graph the operator, which refuses another
            return _backward(ctx, upstream)
        arguments = *ctx.saved_tensors, upstream, ctx.ignore, ctx.backend
        return (*backward_pass(*arguments), *[None] * 6)


def contrastive_values(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    ignore: bool,
    cache_bytes: int,
    backend: str,
    statistics: bool = True,
) -> tuple[Tensor, Tensor]:
    """Losses (Q,) and statistics (7, Q), the latter without a gradient. Arguments as `forward_pass`'s."""
    inputs = rows, columns, scale, row_ids, column_ids, ignore, cache_bytes, backend, statistics
    if torch.compiler.is_compiling():
        outputs = contrastive_forward(*inputs)
        return outputs[0], outputs[1].detach()
    return _Eager.apply(*inputs)  # type: ignore[no-any-return]
