"""The contrastive loss beside the usual ways to compute it: time, memory, error, share of the matmul rate.

Peers: open_clip's ClipLoss; the same sharing one matrix of logits; both under torch.compile; rows in chunks, recomputed
(checkpointed) in the backward pass. With `--peers FOLDER`, public memory-efficient kernels found there: packages that
the script knows (cut_cross_entropy, inf_cl), and any `NAME.py` with a function `loss(images, texts, logit_scale)`
giving the mean of both directions. A peer that cannot run, or computes something else, leaves a row that says why;
running out of memory is a result. Ours without its statistics, and on a GPU compiled, and
captured as CUDA graphs, are rows too. What ours and the eager peers launch on a GPU is counted everywhere
(`launches.py`).

On a GPU: N from 1,024 to 262,144 in bfloat16 and to 65,536 in float32, D 512, 256 and 768. On a CPU: the reference
against the same peers at N = 1,024 and 8,192, D = 512, float32. `--sizes`, `--dimensions`, `--dtypes`, `--kinds` choose
others.
Last come the targets (`contrastive_targets.py`), each with what was measured and whether it was met.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Blocks of many sizes come and go: without this, a cell near the card's memory may fail for fragmentation alone.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
import torch.nn.functional as F
from contrastive_peers import Peer, ours, peers
from contrastive_targets import EAGER, Cell, plot, targets, usual_sizes
from harness import Contender, Row, compare, main, peak_memory, single
from torch import Tensor
from varalign.losses.operator import kernel

PACKAGES = ["torch", "triton", "open_clip_torch"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = ("forward", "backward", "forward and backward")


@dataclass
class Problem:
    """One batch; the same tensors feed speed, memory and the equality check."""

    n: int
    d: int
    dtype: str
    device: str

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        texts = F.normalize(torch.randn(self.n, self.d, generator=generator), dim=1)
        images = F.normalize(texts + 1.5 * torch.randn(self.n, self.d, generator=generator) / self.d**0.5, dim=1)
        kind = DTYPES[self.dtype]
        self.images, self.texts = (x.to(self.device, kind).requires_grad_() for x in (images, texts))
        self.scale = torch.tensor(20.0, device=self.device, requires_grad=True)

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.images, self.texts, self.scale

    def both(self, peer: Peer) -> tuple[Tensor, ...]:
        value = peer.loss(*self.inputs)
        return value.detach(), *torch.autograd.grad(value, self.inputs)

    @property
    def synchronize(self) -> Callable[[], object] | None:
        return torch.cuda.synchronize if self.device == "cuda" else None


def relative_error(truth: tuple[Tensor, ...], result: tuple[Tensor, ...]) -> float:
    """Largest over value and gradients of |result - truth| / |truth|, Euclidean norms."""
    return max(float((r.double() - t.double()).norm() / t.double().norm()) for t, r in zip(truth, result, strict=True))


def agrees(truth: tuple[Tensor, ...], result: tuple[Tensor, ...]) -> bool:
    # bfloat16 logits, as eager peers hold them, are wrong by up to 0.06 at a scale of 20.
    return relative_error(truth, result) < (1e-3 if truth[1].dtype == torch.float32 else 0.1)


def matmul_seconds(problem: Problem) -> float:
    """Seconds of one unit, 2 N N D flop, at the best rate of five matrix products: images @ texts.T and a square."""
    shapes = [(problem.images.detach(), problem.texts.detach().T)]
    if problem.device == "cuda":
        # A product 512 deep spends part of its time writing: a square one says what the card can do.
        square = torch.randn(8192, 8192, device="cuda").to(problem.images.dtype)
        shapes.append((square, square))
    best = 0.0
    for left, right in shapes:
        for _ in range(5):
            if problem.synchronize:
                problem.synchronize()
            start = time.perf_counter()
            for begin in range(0, len(left), 8192):  # in row chunks, so that it always fits
                left[begin : begin + 8192] @ right
            if problem.synchronize:
                problem.synchronize()
            best = max(best, 2 * left.shape[0] * left.shape[1] * right.shape[1] / (time.perf_counter() - start))
    return 2 * problem.n**2 * problem.d / best


def extra_memory(problem: Problem, peer: Peer, options: argparse.Namespace) -> float:
    """Peak bytes beyond the inputs during one forward and backward pass, returned gradients included."""
    if problem.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        problem.both(peer)
        return torch.cuda.max_memory_allocated() - before
    # The allocator keeps no count on a CPU: a clean process says how much its resident set grew.
    command = [sys.executable, __file__, "--sizes", str(problem.n), "--dimensions", str(problem.d)]
    command += ["--dtypes", problem.dtype, "--memory-of", peer.name, *(["--no-compile"] if options.no_compile else [])]
    command += ["--peers", str(options.peers)] if options.peers else []
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def grown_memory(options: argparse.Namespace) -> int:
    peer = peers(options)[options.memory_of]
    dtype = options.dtypes[0]
    Problem(min(options.sizes[0], 512), options.dimensions[0], dtype, "cpu").both(peer)
    problem = Problem(options.sizes[0], options.dimensions[0], dtype, "cpu")
    before = peak_memory(anew=True)  # importing open_clip has a high one
    problem.both(peer)
    return peak_memory() - before


def subjects(options: argparse.Namespace) -> Iterator[list[Row]]:
    if options.memory_of:
        print(grown_memory(options))
        raise SystemExit(0)
    cuda = torch.cuda.is_available()
    dimensions = options.dimensions or ([512, 256, 768] if cuda else [512])
    dtypes = options.dtypes or (["bfloat16", "float32"] if cuda else ["float32"])
    everyone = {name: peer for name, peer in peers(options).items() if name in (options.only or name, "varalign")}
    cells: list[Cell] = []
    for dtype in dtypes:
        for d in dimensions:
            for n in options.sizes or usual_sizes(dtype, cuda):
                cell = Cell(n, d, dtype)
                yield from measured(Problem(n, d, dtype, "cuda" if cuda else "cpu"), everyone, cell, options)
                cells.append(cell)
                if options.plot:
                    plot(cells, options.plot)
    yield [
        single(f"target: {target.what}", "varalign", target.value, target.unit, note=target.verdict)
        for target in targets(cells, cuda)
    ]


def tried(problem: Problem, peer: Peer, exact: tuple[Tensor, ...] | None, longest: float) -> tuple[str, float, float]:
    """Why a peer is left out ("" if it is not), its error against float64 and the seconds of one run."""
    if peer.fault:
        return f"left out: {peer.fault}", 0.0, 0.0
    try:
        problem.both(peer)  # compiles
        start = time.perf_counter()
        result = problem.both(peer)
        if problem.synchronize:
            problem.synchronize()
        taken = time.perf_counter() - start
        error = relative_error(exact, result) if exact is not None else 0.0
        if exact is not None and not agrees(exact, result):
            return f"left out: its result differs by {error:.3g}", error, taken
        if taken > longest and peer.name != "varalign":
            return f"left out: {taken:.0f} s a pass; --longest allows more", error, taken
        return "", error, taken
    except torch.cuda.OutOfMemoryError:
        return "out of memory", 0.0, 0.0
    except Exception as error:
        return f"left out: {str(error).splitlines()[0] if str(error) else type(error).__name__}", 0.0, 0.0
    finally:
        if problem.device == "cuda":
            torch.cuda.empty_cache()


def contenders(problem: Problem, running: list[Peer], kind: str) -> list[Contender]:
    made = []
    for peer in running:
        held: list[Tensor] = []

        def forward(peer: Peer = peer, held: list[Tensor] = held) -> None:
            held[:] = [peer.loss(*problem.inputs)]

        def backward(peer: Peer = peer, held: list[Tensor] = held) -> tuple[Tensor, ...]:
            value = held.pop()
            return value.detach(), *torch.autograd.grad(value, problem.inputs)

        run: Callable[[], object] = {
            "forward": lambda peer=peer: (peer.loss(*problem.inputs).detach(),),
            "backward": backward,
            "forward and backward": lambda peer=peer: problem.both(peer),
        }[kind]
        prepare = forward if kind == "backward" else None
        made.append(Contender(peer.name, run, peer.name == "varalign", prepare, problem.synchronize))
    return made


def measured(
    problem: Problem, everyone: dict[str, Peer], cell: Cell, options: argparse.Namespace
) -> Iterator[list[Row]]:
    title = f"contrastive N={problem.n:,} D={problem.d} {problem.dtype}"
    yield from launch_rows(title, problem, everyone)
    exact = exact_outcome(problem) if problem.n <= options.exact_up_to else None
    slowest = 0.0
    # On a shared CPU a slow pass is often a neighbour's doing.
    longest = options.longest or (10.0 if problem.device == "cuda" else float("inf"))
    running = []
    # Compiled anew for each size: after a few, torch.compile would take every size for variable, and then give up.
    torch._dynamo.reset()
    for peer in everyone.values():
        reason, error, taken = tried(problem, peer, exact, longest)
        if reason:
            cell.missing[peer.name] = reason
            continue
        running.append(peer)
        slowest = max(slowest, taken)
        if exact is not None:
            cell.errors[peer.name] = error
    del exact
    if "varalign" in cell.missing:
        # No row without ours to compare with; the run goes on, and ends with exit code 1 unless the memory was short.
        reason = cell.missing["varalign"]
        memory = reason == "out of memory"
        yield [single(f"{title}: {reason}", "varalign", 0.0, "ms", agrees=memory, note=reason if memory else "")]
        return
    rounds = min(options.rounds, 3) if slowest > 1 else options.rounds
    cell.unit_seconds = matmul_seconds(problem)
    for kind in options.kinds:
        check = (lambda t, r: relative_error(t, r) < 0.05) if kind == "forward" else agrees
        while True:
            try:
                rows = compare(
                    f"{title}: {kind}", contenders(problem, running, kind),
                    work=1e-3, unit="ms", agree=check, rounds=rounds, packages=PACKAGES,
                )  # fmt: skip
                break
            except torch.cuda.OutOfMemoryError:
                # It fits alone, but not beside the others' results: the matrices go, largest first.
                matrices = [peer for peer in running if not peer.linear]
                if not matrices:
                    raise
                cell.missing[matrices[0].name] = "out of memory beside the results of the others"
                running.remove(matrices[0])
                torch.cuda.empty_cache()
        yield rows + [single(f"{title}: {kind}", name, 0.0, "ms", note=reason) for name, reason in cell.missing.items()]
    if kind == KINDS[-1]:  # what the targets are about
        cell.rows = {row.contender: row for row in rows}
    memory = {peer.name: extra_memory(problem, peer, options) for peer in running if not peer.captured}
    cell.memory = memory
    mine = memory["varalign"]
    yield [
        single(f"{title}: extra memory", name, value / 2**20, "MiB", ratio=mine / max(value, 1), packages=PACKAGES)
        for name, value in memory.items()
    ]
    if cell.rows:
        yield [
            single(
                f"{title}: share of the matmul rate, 4 units", name, 4e3 * cell.unit_seconds / row.value, "",
                ratio=row.ratio, packages=PACKAGES,
            )
            for name, row in cell.rows.items()
        ]  # fmt: skip
    if cell.errors:
        yield [
            single(
                f"{title}: error against float64", name, value, "", ratio=cell.errors["varalign"] / max(value, 1e-30)
            )
            for name, value in cell.errors.items()
        ]


def launch_rows(title: str, problem: Problem, everyone: dict[str, Peer]) -> Iterator[list[Row]]:
    """What ours launch on a GPU, and those peers that PyTorch runs an operation at a time."""
    if kernel() is None or problem.n > 65536:  # counted one by one: at N = 262,144 that takes half a minute
        return
    from launches import count_launches, scheduled

    losses = {name: everyone[name].loss for name in ("varalign", EAGER, "shared logits") if name in everyone}
    losses["varalign, ContrastiveLoss with ids and the variance schedule"] = scheduled()
    counts = {
        name: count_launches(loss, problem.n, problem.d, DTYPES[problem.dtype]).total() for name, loss in losses.items()
    }
    yield [
        single(f"{title}: launches on a GPU", name, count, "launches", ratio=counts["varalign"] / count)
        for name, count in counts.items()
    ]


def exact_outcome(problem: Problem) -> tuple[Tensor, ...]:
    """Value and gradients in float64 of the inputs as they are."""
    inputs = tuple(x.detach().double().requires_grad_() for x in problem.inputs)
    value = ours(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs)


def arguments(parser: argparse.ArgumentParser) -> None:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument("--sizes", type=numbers, help="batch sizes N, comma-separated")
    parser.add_argument("--dimensions", type=numbers, help="D, comma-separated")
    parser.add_argument("--dtypes", type=lambda text: text.split(","), help=f"of {', '.join(DTYPES)}")
    parser.add_argument("--peers", type=Path, help="folder with public kernels to compare with")
    parser.add_argument("--only", help="one peer beside ours, such as 'open_clip ClipLoss'")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled peers")
    parser.add_argument(
        "--exact-up-to", type=int, default=32768, help="largest N compared with float64 (default: 32768)"
    )
    parser.add_argument(
        "--kinds", type=lambda text: text.split(","), default=KINDS, help=f"of {', '.join(KINDS)} (targets: the last)"
    )
    parser.add_argument(
        "--longest", type=float, help="seconds a pass of a contender may take, ours apart (default: 10 on a GPU)"
    )
    parser.add_argument("--plot", type=Path, help="write time and memory against N as a picture")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
