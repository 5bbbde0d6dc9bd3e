"""Host-side helpers of the kernels: dtypes, precisions, matrix products, the device of the launches."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


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
