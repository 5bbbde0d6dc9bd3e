"""Ways to compute the symmetric contrastive loss: ours in its forms, the usual ones, and public kernels in a folder."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from contrastive_targets import CHUNKED
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from varalign.losses.contrastive import contrastive
from varalign.losses.operator import choose_backend, contrastive_values, kernel

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class Peer:
    """One way: `linear` in memory or holding a whole matrix; `fault` says why it is left out.

    `captured`: replays a CUDA graph, whose memory is reserved before it runs.
    """

    name: str
    loss: Loss
    linear: bool = False
    fault: str = ""
    captured: bool = False

    @property
    def ours(self) -> bool:
        return self.name.startswith("varalign")


def ours(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    nll_i2t, nll_t2i, *_ = contrastive(images, texts, scale, cache_bytes=CACHE_BYTES)
    return (nll_i2t.mean() + nll_t2i.mean()) / 2


class Captured:
    """Ours as CUDA graphs, one replay forward and one backward, of one shape at a time; above N = 8,192 nothing waits
    for a launch any more."""

    def __init__(self) -> None:
        self.shape: object = None
        self.replay: Loss = ours

    def __call__(self, images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        if len(images) > 8192:
            raise ValueError("captured up to N = 8,192 only")
        shape = images.shape, images.dtype
        if shape != self.shape:
            samples = tuple(x.detach().clone().requires_grad_() for x in (images, texts, scale))
            self.replay = torch.cuda.make_graphed_callables(ours, samples)
            self.shape = shape
        return self.replay(images, texts, scale)


def operator_loss(images: Tensor, texts: Tensor, scale: Tensor, statistics: bool) -> Tensor:
    """The operator alone, so that with and without statistics differ in nothing else."""
    values, *_ = contrastive_values(
        images, texts, scale, None, None, False, CACHE_BYTES, choose_backend(images), statistics
    )
    return values.mean()


def open_clip_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    from open_clip.loss import ClipLoss

    return ClipLoss()(images, texts, scale.to(images.dtype))


def shared_logits(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    logits = scale.to(images.dtype) * images @ texts.T
    labels = torch.arange(len(images), device=images.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def chunked(images: Tensor, texts: Tensor, scale: Tensor, chunk: int = 1024) -> Tensor:
    """Rows in chunks, each direction on its own, logits computed again in the backward pass: 8 units, O(N) memory."""

    def part(queries: Tensor, candidates: Tensor, scale: Tensor, begin: int) -> Tensor:
        labels = torch.arange(begin, begin + len(queries), device=queries.device)
        return F.cross_entropy((scale.to(queries.dtype) * queries @ candidates.T).float(), labels, reduction="sum")

    total = images.new_zeros((), dtype=torch.float32)
    for one, other in ((images, texts), (texts, images)):
        for begin in range(0, len(one), chunk):
            total = total + checkpoint(part, one[begin : begin + chunk], other, scale, begin, use_reentrant=False)
    return total / (2 * len(images))


def public_kernels(folder: Path | None) -> dict[str, Loss | str]:
    """Peers found in the folder: the function, or why it is left out."""
    if folder is None:
        return {}
    sys.path.insert(0, str(folder))
    found: dict[str, Loss | str] = {}
    try:
        linear_cross_entropy = importlib.import_module("cut_cross_entropy").linear_cross_entropy

        def twice(images: Tensor, texts: Tensor, scale: Tensor, impl: str = "cce") -> Tensor:
            labels = torch.arange(len(images), device=images.device)
            factor = scale.to(images.dtype)
            i2t, t2i = (
                linear_cross_entropy(factor * queries, candidates, labels, impl=impl)
                for queries, candidates in ((images, texts), (texts, images))
            )
            return (i2t + t2i) / 2

        # As it comes, it passes over gradients that would be lost in 16 bits; "exact" does not, and sums in float32.
        found["cut_cross_entropy, called twice"] = twice
        found["cut_cross_entropy exact, called twice"] = lambda *batch: twice(*batch, impl="cce_exact")
    except Exception as error:
        found["cut_cross_entropy, called twice"] = f"not imported: {error}"
    try:
        # The form for one device; `cal_inf_loss` is the same kernels over a process group.
        inf_loss = importlib.import_module("inf_cl").cal_flash_loss
        found["inf_cl"] = lambda images, texts, scale: (
            (inf_loss(images, texts, scale=scale) + inf_loss(texts, images, scale=scale)).mean() / 2
        )
    except Exception as error:
        found["inf_cl"] = f"not imported: {error}"
    for path in sorted(folder.glob("*.py")):
        try:
            specification = importlib.util.spec_from_file_location(path.stem, path)
            if specification is None or specification.loader is None:
                raise ImportError("no Python module")
            module = importlib.util.module_from_spec(specification)
            specification.loader.exec_module(module)
            found[path.stem] = module.loss
        except Exception as error:
            found[path.stem] = f"not imported: {error}"
    return found


def peers(options: argparse.Namespace) -> dict[str, Peer]:
    """All of them by name, ours first."""
    known = [
        Peer("varalign", ours, True),
        Peer("varalign, statistics on", lambda u, v, a: operator_loss(u, v, a, True), True),
        Peer("varalign, statistics off", lambda u, v, a: operator_loss(u, v, a, False), True),
    ]
    known += [
        Peer("open_clip ClipLoss", open_clip_loss),
        Peer("shared logits", shared_logits),
        Peer(CHUNKED, chunked, True),
    ]
    if torch.cuda.is_available() and kernel() is not None:
        known.append(Peer("varalign, CUDA graph", Captured(), True, captured=True))
        if not options.no_compile:
            known.append(Peer("varalign, compiled", torch.compile(ours, dynamic=False), True))
    if not options.no_compile:
        known.append(Peer("open_clip ClipLoss, compiled", torch.compile(open_clip_loss, dynamic=False)))
        known.append(Peer("shared logits, compiled", torch.compile(shared_logits, dynamic=False)))
    for name, found in public_kernels(options.peers).items():
        missing = isinstance(found, str)
        known.append(Peer(name, ours if missing else found, True, fault=found if missing else ""))
    return {peer.name: peer for peer in known}
