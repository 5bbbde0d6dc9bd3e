"""Host-side helpers of the kernels: dtypes, precisions, matrix products, how and where they are launched."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Kernel:
    """A kernel launched as `triton.jit`'s are, `kernel[grid](*arguments, **constants)`, at a third of the host's time.

    Triton looks at every argument in Python at every launch. Here one look chooses among the kernels it has compiled:
    by what it specialises on (an integer that is 1 or a multiple of 16, a pointer that is one), and by the constants.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.jit = triton.jit(function)
        self.compiled: dict[Any, Any] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            kinds = tuple(
                (value.dtype, value.data_ptr() & 15)
                if isinstance(value, Tensor)
                else (value == 1, value & 15 == 0, value >> 31)
                if isinstance(value, int)
                else None
                for value in arguments
            )
            key = arguments[0].device, kinds, tuple(constants.items())
            known = self.compiled.get(key)
            if known is None:
                # The interpreter returns nothing.
                self.compiled[key] = self.jit[grid](*arguments, **constants)
                return
            named = [constants[name] for name in self.jit.arg_names[len(arguments) :]]
            known[(*grid, 1, 1)[:3]](*arguments, *named)

        return launch


def cdiv(count: int, each: int) -> int:
    """count / each, rounded up."""
    return -(-count // each)


def wide_dtype(embeddings: Tensor) -> torch.dtype:
    """What sums over the embeddings are kept in: float32, for float64 float64."""
    return torch.promote_types(embeddings.dtype, torch.float32)


def triton_dtype(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32


def tf32() -> bool:
    return torch.get_float32_matmul_precision() != "highest"


def product_options(embeddings: Tensor) -> dict[str, Any]:
    """How a kernel multiplies these embeddings: keyword arguments of its launch."""
    return {
        "WIDE": triton_dtype(wide_dtype(embeddings)),
        "PRECISION": "tf32" if embeddings.dtype == torch.float32 and tf32() else "ieee",
        # The interpreter multiplies the bit patterns of bfloat16.
        "UPCAST": INTERPRETED and embeddings.dtype.itemsize == 2,
    }


def multiply(total: Tensor, left: Tensor, right: Tensor, *, add: bool) -> None:
    """total = left @ right, or with `add` total += left @ right, accumulated in the total's dtype."""
    if left.dtype != total.dtype and left.is_cuda and hasattr(torch.ops.aten.addmm, "dtype_out"):  # ROCm has none
        if add:
            torch.ops.aten.addmm.dtype_out(total, left, right, total.dtype, out=total)
        else:
            torch.ops.aten.mm.dtype_out(left, right, total.dtype, out=total)
        return
    left, right = left.to(total.dtype), right.to(total.dtype)
    if add:
        total.addmm_(left, right)
    else:
        torch.mm(left, right, out=total)


def capability(embeddings: Tensor) -> tuple[int, int]:
    """The CUDA device's; (0, 0) is the interpreter."""
    return torch.cuda.get_device_capability(embeddings.device) if embeddings.is_cuda else (0, 0)


def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device: make it the embeddings'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
