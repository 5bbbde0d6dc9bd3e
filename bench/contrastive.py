"""The contrastive loss beside the usual ways to compute it: time, memory, error, share of the matmul rate.

Peers: open_clip's ClipLoss; the same sharing one matrix of logits; both under torch.compile; rows in chunks, recomputed
(checkpointed) in the backward pass. With `--peers FOLDER`, public memory-efficient kernels found there: packages that
the script knows (cut_cross_entropy, inf_cl), and any `NAME.py` with a function `loss(images, texts, logit_scale)`
giving the mean of both directions. A peer that cannot run leaves a row that says why; running out of memory is a
result.

On a GPU: N from 1,024 to 262,144, D 256, 512 and 768, bfloat16 and float32. On a CPU: the reference against the same
peers at N = 1,024 and 4,096, D = 512, float32. `--sizes`, `--dimensions`, `--dtypes` choose others.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from harness import Contender, Row, compare, main, single
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from varalign.losses import contrastive

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
PACKAGES = ["torch", "triton", "open_clip_torch"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def ours(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    nll_i2t, nll_t2i, *_ = contrastive(images, texts, scale)
    return (nll_i2t.mean() + nll_t2i.mean()) / 2


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

        def twice(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
            labels = torch.arange(len(images), device=images.device)
            scaled = scale.to(images.dtype) * images, scale.to(images.dtype) * texts
            return (
                linear_cross_entropy(scaled[0], texts, labels) + linear_cross_entropy(scaled[1], images, labels)
            ) / 2

        found["cut_cross_entropy, called twice"] = twice
    except Exception as error:
        found["cut_cross_entropy, called twice"] = f"not imported: {error}"
    try:
        inf_loss = importlib.import_module("inf_cl").cal_inf_loss
        found["inf_cl"] = lambda images, texts, scale: (
            (inf_loss(images, texts, scale=scale) + inf_loss(texts, images, scale=scale)) / 2
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
        except Exception as error:  # noqa: PERF203
            found[path.stem] = f"not imported: {error}"
    return found


def losses(options: argparse.Namespace) -> dict[str, Loss | str]:
    known: dict[str, Loss | str] = {
        "varalign": ours,
        "open_clip ClipLoss": open_clip_loss,
        "shared logits": shared_logits,
        "row chunks, checkpointed": chunked,
    }
    if not options.no_compile:
        known["open_clip ClipLoss, compiled"] = torch.compile(open_clip_loss)
        known["shared logits, compiled"] = torch.compile(shared_logits)
    return known | public_kernels(options.peers)


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

    def both(self, loss: Loss) -> tuple[Tensor, ...]:
        value = loss(*self.inputs)
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
    """Best of five of images @ texts.T, in row chunks so that it always fits: one unit."""
    best = float("inf")
    with torch.no_grad():
        for _ in range(5):
            if problem.synchronize:
                problem.synchronize()
            start = time.perf_counter()
            for begin in range(0, problem.n, 8192):
                problem.images[begin : begin + 8192] @ problem.texts.T
            if problem.synchronize:
                problem.synchronize()
            best = min(best, time.perf_counter() - start)
    return best


def extra_memory(problem: Problem, name: str, options: argparse.Namespace) -> float:
    """Peak bytes beyond the inputs during one forward and backward pass, returned gradients included."""
    if problem.device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        problem.both(losses_by_name(options)[name])
        return torch.cuda.max_memory_allocated() - before
    # The allocator keeps no count on a CPU: a clean process says how much its resident set grew.
    command = [sys.executable, __file__, "--sizes", str(problem.n), "--dimensions", str(problem.d)]
    command += ["--dtypes", problem.dtype, "--memory-of", name, *(["--no-compile"] if options.no_compile else [])]
    command += ["--peers", str(options.peers)] if options.peers else []
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def grown_memory(options: argparse.Namespace) -> int:
    loss = losses(options)[options.memory_of]
    dtype = options.dtypes[0]
    Problem(min(options.sizes[0], 512), options.dimensions[0], dtype, "cpu").both(loss)
    problem = Problem(options.sizes[0], options.dimensions[0], dtype, "cpu")
    # Linux can forget the peak so far (importing open_clip has a high one) and start again from what is resident now.
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")
    before = peak_memory()
    problem.both(loss)
    return peak_memory() - before


def peak_memory() -> int:
    """Largest resident set of this process in bytes (Linux: since it was last forgotten)."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


_LOSSES: dict[str, Loss | str] = {}


def losses_by_name(options: argparse.Namespace) -> dict[str, Loss | str]:
    if not _LOSSES:
        _LOSSES.update(losses(options))
    return _LOSSES


def subjects(options: argparse.Namespace) -> Iterator[list[Row]]:
    if options.memory_of:
        print(grown_memory(options))
        raise SystemExit(0)
    cuda = torch.cuda.is_available()
    sizes = options.sizes or ([1 << k for k in range(10, 19)] if cuda else [1024, 4096])
    dimensions = options.dimensions or ([256, 512, 768] if cuda else [512])
    dtypes = options.dtypes or (["bfloat16", "float32"] if cuda else ["float32"])
    curves: dict[str, list[tuple[int, float, float]]] = {}
    for dtype in dtypes:
        for d in dimensions:
            for n in sizes:
                groups = list(measured(Problem(n, d, dtype, "cuda" if cuda else "cpu"), options))
                yield from groups
                times = {row.contender: row.value for row in groups[2] if row.value}
                memory = {row.contender: row.value for row in groups[3] if row.value}
                for name in times:
                    curves.setdefault(f"{name}, {dtype}, D = {d}", []).append((n, times[name], memory.get(name, 0.0)))
    if options.plot:
        plot(curves, options.plot)


def measured(problem: Problem, options: argparse.Namespace) -> Iterator[list[Row]]:
    title = f"contrastive N={problem.n:,} D={problem.d} {problem.dtype}"
    running: dict[str, Loss] = {}
    out: dict[str, str] = {}
    errors: dict[str, float] = {}
    exact = exact_outcome(problem) if problem.n <= options.exact_up_to else None
    for name, loss in losses_by_name(options).items():
        try:
            if isinstance(loss, str):
                raise RuntimeError(loss)
            result = problem.both(loss)
            if exact is not None:
                errors[name] = relative_error(exact, result)
            running[name] = loss
        except torch.cuda.OutOfMemoryError:
            out[name] = "out of memory"
        except Exception as error:
            out[name] = f"left out: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        if problem.device == "cuda":
            torch.cuda.empty_cache()
    missing = list(out.items())

    def contenders(kind: str) -> list[Contender]:
        made = []
        for name, loss in running.items():
            held: list[Tensor] = []

            def forward(loss: Loss = loss, held: list[Tensor] = held) -> None:
                held[:] = [loss(*problem.inputs)]

            def backward(loss: Loss = loss, held: list[Tensor] = held) -> tuple[Tensor, ...]:
                return held[0].detach(), *torch.autograd.grad(held[0], problem.inputs, retain_graph=False)

            run = {
                "forward": lambda loss=loss: (loss(*problem.inputs).detach(),),
                "backward": backward,
                "forward and backward": lambda loss=loss: problem.both(loss),
            }[kind]
            made.append(
                Contender(name, run, name == "varalign", forward if kind == "backward" else None, problem.synchronize)
            )
        return made

    floor = matmul_seconds(problem)
    for kind in ("forward", "backward", "forward and backward"):
        check = (lambda t, r: relative_error(t, r) < 0.05) if kind == "forward" else agrees
        rows = compare(
            f"{title}: {kind}",
            contenders(kind),
            work=1e-3,
            unit="ms",
            agree=check,
            rounds=options.rounds,
            packages=PACKAGES,
        )
        yield rows + [single(f"{title}: {kind}", name, 0.0, "ms", note=reason) for name, reason in missing]
    total = {row.contender: row.value / 1e3 for row in rows}
    mine = extra_memory(problem, "varalign", options)
    memory = {name: mine if name == "varalign" else extra_memory(problem, name, options) for name in running}
    yield [
        single(f"{title}: extra memory", name, value / 2**20, "MiB", ratio=mine / max(value, 1), packages=PACKAGES)
        for name, value in memory.items()
    ]
    yield [
        single(
            f"{title}: share of the matmul rate, 4 units",
            name,
            4 * floor / seconds,
            "",
            ratio=total["varalign"] / seconds,
        )
        for name, seconds in total.items()
    ]
    if errors:
        yield [
            single(f"{title}: error against float64", name, value, "", ratio=errors["varalign"] / max(value, 1e-30))
            for name, value in errors.items()
        ]


def exact_outcome(problem: Problem) -> tuple[Tensor, ...]:
    """Value and gradients in float64 of the inputs as they are."""
    inputs = tuple(x.detach().double().requires_grad_() for x in problem.inputs)
    value = ours(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs)


def plot(curves: dict[str, list[tuple[int, float, float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    for axes, place, label in zip(
        figure.subplots(1, 2), (1, 2), ("forward and backward, ms", "extra memory, MiB"), strict=True
    ):
        for name, points in curves.items():
            axes.loglog([p[0] for p in points], [p[place] for p in points], marker="o", label=name)
        axes.set(xlabel="N", ylabel=label)
    axes.legend(fontsize=7)
    figure.savefig(path)


def arguments(parser: argparse.ArgumentParser) -> None:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument("--sizes", type=numbers, help="batch sizes N, comma-separated")
    parser.add_argument("--dimensions", type=numbers, help="D, comma-separated")
    parser.add_argument("--dtypes", type=lambda text: text.split(","), help=f"of {', '.join(DTYPES)}")
    parser.add_argument("--peers", type=Path, help="folder with public kernels to compare with")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled peers")
    parser.add_argument(
        "--exact-up-to", type=int, default=32768, help="largest N compared with float64 (default: 32768)"
    )
    parser.add_argument("--plot", type=Path, help="write time and memory against N as a picture")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
