"""Count what a contrastive loss launches on a GPU, without one: `python bench/launches.py`.

Forward and backward run on tensors without data (PyTorch's fake tensors) that say they are on a GPU; kernels of ours
are noted instead of launched, and so is every PyTorch operation that is neither a view nor an allocation: one launch
each, but a sort. A library's matrix product may take two. As there are no data, a step that asked for one, and would
make the host wait for the device, fails here: what passes can be captured in a CUDA graph.
"""

from __future__ import annotations

import argparse
import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from varalign.kernels import host, matching, queries, tiles, variances, weighting
from varalign.kernels import passes as kernel
from varalign.losses.contrastive import ContrastiveLoss, contrastive

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
MODULES = (tiles, queries, matching, variances, weighting)
# What only looks at memory or reserves it.
FREE = {
    *(
        "view",
        "_unsafe_view",
        "reshape",
        "select",
        "slice",
        "t",
        "transpose",
        "permute",
        "numpy_T",
        "expand",
        "unsqueeze",
    ),
    *("squeeze", "detach", "alias", "as_strided", "unbind", "split", "split_with_sizes", "promote_types", "device"),
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh"),
}
# A sort of 64-bit keys: their indices, a histogram, a scan and eight passes.
SEVERAL = {"sort": 11}
OPERATORS = ("varalign::contrastive", "varalign::contrastive_backward")


class Launches(TorchDispatchMode):
    """Counts by name and by the line of ours that asked."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str]] = Counter()

    def note(self, name: str) -> None:
        self.counts[caller(), name] += SEVERAL.get(name, 1)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        if name in OPERATORS:  # what is inside counts
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        short = name.partition("::")[2]
        if func._overloadname == "dtype_out":  # what some versions of PyTorch cannot do on fake tensors
            self.note(short)
            return kwargs["out"]
        result = func(*args, **kwargs)
        unchanged = short in ("to", "contiguous", "reshape") and result is args[0]
        if short not in FREE and not unchanged:
            self.note(short)
        return result


class Noted:
    """In place of a kernel: a launch is a note."""

    def __init__(self, name: str, launches: Launches) -> None:
        self.name, self.launches = name, launches

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *args, **kwargs: self.launches.note(f"kernel {self.name}")


def caller() -> str:
    """The innermost function of ours on the stack."""
    for frame in reversed(traceback.extract_stack(limit=60)):
        if "varalign" in frame.filename or frame.filename.startswith(str(kernel.__file__).rpartition("/")[0]):
            return f"{frame.filename.rpartition('/')[2]} {frame.name}"
    return "autograd and the caller"


@contextlib.contextmanager
def pretended_gpu(launches: Launches) -> Iterator[None]:
    """An H100 whose kernels do nothing."""
    with contextlib.ExitStack() as stack:
        for module in MODULES:
            for name, value in list(vars(module).items()):
                if isinstance(value, host.Kernel):
                    stack.enter_context(mock.patch.object(module, name, Noted(name, launches)))
        stack.enter_context(mock.patch.object(FakeTensor, "is_cuda", property(lambda self: True), create=True))
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_capability", lambda *_: (9, 0)))
        stack.enter_context(mock.patch.object(host, "multiprocessors", lambda device: 132))
        stack.enter_context(mock.patch.object(host, "INTERPRETED", False))
        stack.enter_context(mock.patch.object(variances, "INTERPRETED", False))
        yield


def count_launches(loss: Loss, n: int, d: int, dtype: torch.dtype) -> Counter[tuple[str, str]]:
    """Launches of a forward and a backward pass, by (where, name)."""
    launches = Launches()
    with pretended_gpu(launches), FakeTensorMode(allow_non_fake_inputs=True):
        inputs = [torch.empty(n, d, dtype=dtype, requires_grad=True) for _ in range(2)]
        inputs.append(torch.empty((), requires_grad=True))
        with launches:
            torch.autograd.grad(loss(*inputs), inputs)
    return launches.counts


def plain(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    nll_i2t, nll_t2i, *_ = contrastive(images, texts, scale)
    return (nll_i2t.mean() + nll_t2i.mean()) / 2


def scheduled(schedule: str = "variance", duplicates: str = "positive", *, ids: int = 1) -> Loss:
    module = ContrastiveLoss(schedule, duplicates)

    def loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        shapes = [(len(images),) if ids == 1 else (len(images), ids), (len(texts),)] if ids else []
        given = [torch.empty(shape, dtype=torch.int64) for shape in shapes]
        return module(images, texts, scale, *given).loss

    return loss


LOSSES: dict[str, Loss] = {
    "contrastive, no ids": plain,
    "ContrastiveLoss, fixed": scheduled("fixed"),
    "ContrastiveLoss, variance": scheduled(),
    "ContrastiveLoss, variance, no ids": scheduled(ids=0),
    "ContrastiveLoss, variance, two ids an image": scheduled(ids=2),
    "ContrastiveLoss, variance, duplicates ignored": scheduled(duplicates="ignore"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--sizes",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[1024, 4096, 8192, 32768],
        help="batch sizes N (default: 1024,4096,8192,32768)",
    )
    parser.add_argument("--dimensions", type=int, default=512, help="D (default: 512)")
    options = parser.parse_args()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for name, loss in LOSSES.items():
            totals = {n: count_launches(loss, n, options.dimensions, dtype).total() for n in options.sizes}
            counted = "  ".join(f"N={n:,}: {total}" for n, total in totals.items())
            print(f"{str(dtype)[6:]:9} {name:48} {counted}")
    n = options.sizes[0]
    print(f"\nContrastiveLoss, variance, bfloat16, N={n:,}, by place:")
    found = count_launches(LOSSES["ContrastiveLoss, variance"], n, options.dimensions, torch.bfloat16)
    for (where, name), times in sorted(found.items(), key=lambda pair: pair[0]):
        print(f"  {times:3}  {where:40} {name}")


if __name__ == "__main__":
    main()
