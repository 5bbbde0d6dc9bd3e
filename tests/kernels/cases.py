"""The kernels against the reference: run by `test_kernels.py`, through Triton's interpreter or on a CUDA device.

Not collected by name: whether Triton interprets is decided before its first import, so these cases need a process of
their own. The interpreter takes a pairwise cover of a grid of small sizes, a device one of real sizes.
"""

from __future__ import annotations

import importlib
import itertools
import os
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

from varalign.kernels import host, matching  # noqa: E402
from varalign.kernels import passes as kernel  # noqa: E402
from varalign.kernels.query_fields import STATISTICS  # noqa: E402
from varalign.losses.contrastive import ContrastiveLoss  # noqa: E402
from varalign.losses.operator import contrastive_forward, contrastive_values  # noqa: E402


@dataclass(frozen=True)
class Case:
    m: int
    n: int
    d: int
    scale: float
    dtype: torch.dtype
    ids: str
    ignore: bool
    cache_bytes: int
    strided: bool


def ids_of(kind: str, m: int, n: int) -> tuple[Tensor, Tensor]:
    image, text = torch.arange(m), torch.arange(n)
    if kind == "groups of five":
        text = text // 5
    elif kind == "one group":
        image, text = image * 0 + 7, text * 0 + 7
    elif kind == "shuffled":
        # Far apart and negative ids, some without a partner.
        generator = torch.Generator().manual_seed(m * n)
        image = torch.randint(0, m + 1, (m,), generator=generator) * (1 << 40) - 5
        text = torch.randint(0, m + 1, (n,), generator=generator) * (1 << 40) - 5
    elif kind == "several":
        # Three ids an image, some without a text; a text may have three images or none.
        generator = torch.Generator().manual_seed(m * n)
        image = (torch.randint(0, m + 3, (m, 1), generator=generator) + torch.arange(3)) % (m + 3) * (1 << 40) - 5
        text = torch.randint(0, m + 4, (n,), generator=generator) * (1 << 40) - 5
    return image.to(DEVICE), text.to(DEVICE)


def embeddings(case: Case) -> tuple[Tensor, Tensor]:
    """Unit vectors in random directions; with 17 dimensions or more the best cosine of a row is well below 1."""
    generator = torch.Generator().manual_seed(case.m + 1000 * case.n + case.d)
    pair = []
    for rows in (case.m, case.n):
        unit = F.normalize(torch.randn(rows, case.d, generator=generator, dtype=torch.float64), dim=1)
        unit = unit.to(case.dtype).to(DEVICE)
        if case.strided:
            unit = torch.stack([unit, -unit], 2)[:, :, 0]
        pair.append(unit)
    return pair[0], pair[1]


def outcome(case: Case, backend: str, u: Tensor, v: Tensor, *, statistics: bool = True) -> list[Tensor]:
    """Values, statistics and gradients of a weighted sum of all values."""
    wide = torch.promote_types(u.dtype, torch.float32)
    u, v = u.detach().requires_grad_(), v.detach().requires_grad_()
    scale = torch.tensor(case.scale, dtype=wide, device=DEVICE, requires_grad=True)
    outputs = contrastive_values(
        u, v, scale, *ids_of(case.ids, case.m, case.n), case.ignore, case.cache_bytes, backend, statistics
    )
    sides, stats = outputs[0].split([case.m, case.n]), outputs[1].split([case.m, case.n], dim=1)
    total = 0
    for values, seed in zip(sides, (1, 2), strict=True):
        generator = torch.Generator().manual_seed(seed)
        weights = torch.rand(values.shape[0], generator=generator, dtype=torch.float64) / values.shape[0]
        total = total + (values * weights.to(DEVICE, wide)).sum()
    return [*(values.detach() for values in sides), *stats, *torch.autograd.grad(total, (u, v, scale))]


# Error allowed beyond twice that of the reference in the same dtype, as a share of the largest value: what one
# rounding of the derivatives to 16 bits costs, or of a logit kept in 16 bits.
ALLOWED = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 6e-3, torch.float16: 2e-3}


def check(case: Case) -> None:
    u, v = embeddings(case)
    truth = outcome(replace(case, dtype=torch.float64), "reference", u.double(), v.double())
    plain = outcome(replace(case, cache_bytes=0), "reference", u, v)
    ours = outcome(case, "triton", u, v)
    for place, (true, theirs, mine) in enumerate(zip(truth, plain, ours, strict=True)):
        finite = torch.isfinite(true)
        assert torch.equal(finite, torch.isfinite(mine)), place
        assert torch.equal(true[~finite], mine[~finite].double()), place
        error, allowed = ((x.double() - true)[finite].abs() for x in (mine, theirs))
        if not finite.any():
            continue
        largest = true[finite].abs().max()
        share = ALLOWED[case.dtype] if place >= 4 else 3e-6
        # A derivative by a logit is at most 1 in size: where the loss is solved, gradients may be all rounding.
        floor = 1e-7 * case.scale if place >= 4 else 1e-6
        assert error.max() <= 2 * allowed.max() + share * largest + floor, (place, error.max(), allowed.max(), largest)


GRID = {
    "m": [1, 2, 31, 33, 64, 65],
    "n": [1, 2, 32, 63, 100],
    "d": [1, 17, 64, 130],
    "scale": [1.0, 14.3, 100.0],
    "dtype": [torch.float32, torch.bfloat16, torch.float16, torch.float64],
    "ids": ["pairs", "groups of five", "one group", "shuffled", "several"],
    "ignore": [False, True],
    "cache_bytes": [0, 1 << 28],
    "strided": [False, True],
}
DEVICE_GRID = {
    **GRID,
    "m": [1, 2, 63, 64, 65, 1000, 4097],
    "n": [1, 2, 63, 64, 65, 1000, 4097],
    "d": [1, 17, 64, 384, 512, 768],
    "dtype": [torch.float32, torch.bfloat16, torch.float16],
}


def pairwise(grid: dict[str, list[object]]) -> list[Case]:
    """Few cases among which every pair of values of every two parameters occurs (greedy)."""
    names = list(grid)
    missing = {
        (a, x, b, y)
        for a, b in itertools.combinations(names, 2)
        for x in range(len(grid[a]))
        for y in range(len(grid[b]))
    }
    cases = []
    while missing:
        a, x, b, y = min(missing)
        row = {a: x, b: y}
        for name in names:
            if name not in row:
                gains = [
                    sum(
                        ((name, value, other, row[other]) in missing) + ((other, row[other], name, value) in missing)
                        for other in row
                    )
                    for value in range(len(grid[name]))
                ]
                row[name] = gains.index(max(gains))
        missing -= {(a, row[a], b, row[b]) for a, b in itertools.combinations(names, 2)}
        cases.append(Case(**{name: grid[name][row[name]] for name in names}))
    return cases


def whole(grid: dict[str, list[object]]) -> list[Case]:
    """Every combination of sizes, each with the next values of the rest."""
    sizes, rest = ("m", "n", "d"), [name for name in grid if name not in ("m", "n", "d")]
    combinations = itertools.product(*(grid[name] for name in sizes))
    return [
        Case(*chosen, **{name: grid[name][(turn // (k + 1)) % len(grid[name])] for k, name in enumerate(rest)})
        for turn, chosen in enumerate(combinations)
    ]


# What no other case has: more dimensions than one program's slice of them, and no power of two.
# (Interpreted, its D x D products would take longer than all others together.)
WIDE = [Case(3, 5, 2100, 14.3, dtype, "shuffled", False, 1 << 20, False) for dtype in (torch.float32, torch.bfloat16)]
# On a device every combination of sizes runs too, up to an hour; VARALIGN_GPU_GRID=pairs leaves those out.
WHOLE = [] if INTERPRETED or os.environ.get("VARALIGN_GPU_GRID") == "pairs" else whole(DEVICE_GRID)
CASES = pairwise(GRID) if INTERPRETED else WIDE + pairwise(DEVICE_GRID) + WHOLE


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_reference(case: Case) -> None:
    check(case)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of logits and of derivatives at a small size, in both directions."""
    monkeypatch.setattr(kernel, "BLOCK", 1600)


BLOCKS = Case(90, 101, 24, 14.3, torch.float32, "shuffled", True, 0, False)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("small_blocks")
def test_blocks_of_every_kind(dtype: torch.dtype, cache_bytes: int) -> None:
    check(replace(BLOCKS, dtype=dtype, cache_bytes=cache_bytes, m=81, n=40, ids="groups of five", ignore=False))
    if INTERPRETED and (dtype == torch.bfloat16) == (cache_bytes == 0):  # seconds each: every value, not every pair
        return
    check(replace(BLOCKS, dtype=dtype, cache_bytes=cache_bytes))
    check(replace(BLOCKS, dtype=dtype, cache_bytes=cache_bytes, ids="several"))


def test_several_tiles_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "multiprocessors", lambda device: 1)
    check(Case(300, 250, 16, 14.3, torch.float32, "shuffled", False, 0, False))


def test_a_tile_whose_maxima_lie_far_apart() -> None:
    """Logits from -100 to 100: one exponential cannot serve all rows and columns of such a tile."""
    scale, results = torch.tensor(100.0, device=DEVICE), []
    u = torch.linspace(-1, 1, 40, device=DEVICE)[:, None]
    v = torch.ones(30, 1, device=DEVICE)
    v[::2] *= 0.5
    for backend, wide in (("triton", torch.float32), ("reference", torch.float64)):
        x, y = (t.to(wide).requires_grad_() for t in (u, v))
        values, stats, *_ = contrastive_forward(x, y, scale.to(wide), None, None, False, 0, backend)
        results.append([values.detach(), stats, *torch.autograd.grad(values.mean(), (x, y))])
    for mine, true in zip(*results, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.usefixtures("small_blocks")
def test_without_statistics_the_same_losses_and_gradients(ignore: bool, backend: str) -> None:
    """Bit for bit; what needs a pass over the similarities of its own is NaN, the rest of the statistics the same."""
    case = Case(45, 70, 24, 14.3, torch.float32, "shuffled", ignore, 0, False)
    results = [outcome(case, backend, *embeddings(case), statistics=on) for on in (True, False)]
    left_out = torch.tensor([name in ("minimum", "expected", "variance") for name in STATISTICS], device=DEVICE)
    for place, (full, bare) in enumerate(zip(*results, strict=True)):
        if place in (2, 3):
            assert bare[left_out].isnan().all()
            full, bare = full[~left_out], bare[~left_out]
        assert torch.equal(full, bare), place


@pytest.mark.parametrize(("m", "n"), [(1, 1), (40, 40), (3, 50), (50, 3)])
def test_matching_by_comparing_and_by_sorting(m: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both give the same table, equal codes mean equal ids, and without ids it is that of image i and text i."""
    rows, columns = torch.zeros(m, 2, device=DEVICE), torch.zeros(n, 2, device=DEVICE)
    for kind in ("pairs", "groups of five", "one group", "shuffled"):
        ids = ids_of(kind, m, n)
        compared = matching.match(rows, columns, *ids)
        with monkeypatch.context() as patch:
            patch.setattr(matching, "COMPARED", 0)
            assert torch.equal(matching.match(rows, columns, *ids), compared)
        codes = compared[matching.CODE]
        assert torch.equal(codes[:m, None] == codes[None, m:], ids[0][:, None] == ids[1][None, :])
        if kind == "pairs":
            codes, order = matching.match(rows, columns, None, None)[:2]
            assert torch.equal(codes[:m, None] == codes[None, m:], torch.eye(m, n, dtype=torch.bool, device=DEVICE))
            assert torch.equal(order.sort()[0], torch.arange(m + n, dtype=torch.int32, device=DEVICE))
            assert torch.equal(codes[order], codes.sort()[0])


def steps_of(backend: str, schedule: str, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Three steps of a scheduled loss, the second with a NaN: losses, weights, gradients and the schedule's state."""
    # By its name: the package's attribute `contrastive` is the function.
    room = importlib.import_module("varalign.losses.contrastive")
    monkeypatch.setattr(room, "choose_backend", lambda embeddings: backend)
    module = ContrastiveLoss(schedule).to(DEVICE)
    if schedule == "entropy":
        module.schedule.gamma = 2.5
    case = Case(33, 70, 24, 14.3, torch.float32, "shuffled", False, 0, False)
    ids, results = ids_of(case.ids, case.m, case.n), []
    weights = [torch.linspace(0, 1, count, device=DEVICE) for count in (case.m, case.n)]
    given = {"image_weights": weights[0], "text_weights": weights[1]} if weighted else {}
    for step in range(3):
        u, v = (x.requires_grad_() for x in embeddings(replace(case, d=24 + step)))
        if step == 1:
            u.data[2, 3] = torch.nan
        output = module(u, v, 14.3, *ids, **given)
        results += [output.loss.detach(), output.loss_i2t.detach(), output.loss_t2i.detach(), output.weights]
        results += torch.autograd.grad(output.loss, (u, v))
    return [*results, module.schedule.average.clone(), module.schedule.steps.clone()]


@pytest.mark.parametrize(
    ("schedule", "weighted"), [("variance", False), ("variance", True), ("entropy", False), ("spread", True)]
)
def test_the_scheduled_loss_equals_the_reference(
    schedule: str, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means, moving average and weights in one launch each say what the plain operations say."""
    mine, theirs = (steps_of(backend, schedule, weighted, monkeypatch) for backend in ("triton", "reference"))
    assert mine[-1] == theirs[-1] == 2  # a step with NaN leaves the average as it was
    for place, (one, other) in enumerate(zip(mine, theirs, strict=True)):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-6, equal_nan=True, msg=lambda t, p=place: f"{p}: {t}")


@pytest.mark.skipif(not INTERPRETED, reason="kernels take 64 bits in the interpreter only")
@pytest.mark.parametrize("ignore", [False, True])
def test_gradcheck(ignore: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    v = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 1, 9]), torch.tensor([1, 0, 0, 3, 1])
    assert torch.autograd.gradcheck(
        lambda *x: contrastive_forward(*x, *ids, ignore, 0, "triton")[0], (u, v, scale), fast_mode=True
    )


@pytest.mark.parametrize("scale", [14.3, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_no_larger_than_the_matrix_s(dtype: torch.dtype, scale: float) -> None:
    """Against float64 on the same rounded inputs, mean absolute error: at most eager PyTorch's plus 1e-6 relative."""
    u, v = embeddings(Case(65, 65, 48, scale, dtype, "pairs", False, 0, False))
    labels = torch.arange(65, device=DEVICE)

    def matrix(u: Tensor, v: Tensor) -> Tensor:
        z = scale * u @ v.T
        return F.cross_entropy(z, labels) + F.cross_entropy(z.T, labels)

    def ours(u: Tensor, v: Tensor) -> Tensor:
        return (
            2 * contrastive_forward(u, v, torch.tensor(scale, device=DEVICE), None, None, False, 0, "triton")[0].mean()
        )

    results = []
    for loss, x, y in ((matrix, u.double(), v.double()), (matrix, u, v), (ours, u, v)):
        x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
        value = loss(x, y)
        results.append([value.detach().double(), *(g.double() for g in torch.autograd.grad(value, (x, y)))])
    for true, theirs, mine in zip(*results, strict=True):
        assert (mine - true).abs().mean() <= (theirs - true).abs().mean() + 1e-6 * true.abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_a_near_candidate(dtype: torch.dtype) -> None:
    """Scale 100, some rows' best cosine below 0.1: exponentials about a common maximum would all underflow."""
    generator = torch.Generator().manual_seed(3)
    v = F.normalize(torch.randn(40, 64, generator=generator, dtype=torch.float64), dim=1)
    u = v[:33].clone()
    # Nearly all of these rows lies outside what the texts span.
    basis = torch.linalg.qr(v.T)[0]
    outside = torch.randn(9, 64, generator=generator, dtype=torch.float64)
    u[::4] = F.normalize(outside - 0.98 * (outside @ basis) @ basis.T, dim=1)
    u, v = u.to(dtype).to(DEVICE), v.to(dtype).to(DEVICE)
    case = Case(33, 40, 64, 100.0, dtype, "pairs", False, 0, False)
    best = (u.double() @ v.double().T).amax(1)
    assert best[::4].max() < 0.1 < best[1]
    truth = outcome(case, "reference", u.double(), v.double())
    ours = outcome(case, "triton", u, v)
    for true, mine in zip(truth, ours, strict=True):
        finite = torch.isfinite(true)
        share = ALLOWED[dtype] if dtype != torch.float32 else 3e-5
        assert torch.equal(finite, torch.isfinite(mine))
        assert (mine.double() - true)[finite].abs().max() <= share * true[finite].abs().max() + 1e-6


@pytest.mark.parametrize("place", [0, 1])
def test_one_direction_alone(place: int) -> None:
    """The other direction's upstream gradient is absent: what the schedule's weight of 0 and autograd make of it."""
    case = Case(20, 33, 16, 14.3, torch.float32, "groups of five", False, 0, False)
    gradients = []
    for backend in ("triton", "reference"):
        u, v = (x.requires_grad_() for x in embeddings(case))
        outputs = contrastive_forward(
            u, v, torch.tensor(14.3, device=DEVICE), *ids_of(case.ids, 20, 33), False, 0, backend
        )
        gradients.append(torch.autograd.grad(outputs[0].split([20, 33])[place].sum(), (u, v)))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_repeats_bit_for_bit() -> None:
    case = Case(130, 100, 48, 14.3, torch.bfloat16, "shuffled", False, 0, False)
    first, second = (outcome(case, "triton", *embeddings(case)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_overfitted_batch_keeps_its_digits(dtype: torch.dtype) -> None:
    """Loss 6e-4: the one-hot is subtracted before rounding, so gradients keep the dtype's digits."""
    u = torch.eye(64, device=DEVICE).to(dtype)
    scale = 11.5
    ids = torch.arange(64, device=DEVICE)
    results = {}
    for backend, x in (("triton", u), ("reference", u.double())):
        x = x.detach().requires_grad_()
        wide = torch.promote_types(x.dtype, torch.float32)
        outputs = contrastive_forward(
            x, x.detach(), torch.tensor(scale, dtype=wide, device=DEVICE), ids, ids, False, 0, backend
        )
        values = outputs[0][:64]
        results[backend] = values.detach().double(), torch.autograd.grad(values.sum(), x)[0].double()
    (value, gradient), (true_value, true_gradient) = results["triton"], results["reference"]
    assert true_value.max() < 1e-3
    torch.testing.assert_close(value, true_value, rtol=1e-5, atol=0)
    assert (gradient - true_gradient).norm() <= (1e-5 if dtype == torch.float32 else 4e-3) * true_gradient.norm()


def test_nan_reaches_the_loss() -> None:
    case = Case(40, 40, 16, 14.3, torch.float32, "pairs", False, 1 << 20, False)
    u, v = embeddings(case)
    u[3, 2] = torch.nan
    values_i2t, values_t2i, *_, gradient, _, _ = outcome(case, "triton", u, v)
    assert values_i2t.isnan().nonzero().flatten().tolist() == [3]
    assert values_t2i.isnan().all()
    assert gradient[3].isnan().all()


def test_the_statistics_have_names() -> None:
    case = Case(5, 6, 4, 14.3, torch.float32, "pairs", False, 0, False)
    assert outcome(case, "triton", *embeddings(case))[2].shape == (len(STATISTICS), 5)


def test_traced_shapes_are_the_real_ones() -> None:
    for dtype, cache_bytes in ((torch.float32, 1 << 20), (torch.bfloat16, 1 << 20), (torch.bfloat16, 0)):
        case = Case(6, 9, 4, 14.3, dtype, "pairs", False, cache_bytes, False)
        u, v = embeddings(case)
        ids = ids_of("pairs", 6, 9)
        arguments = (u, v, torch.tensor(9.0, device=DEVICE), *ids, True, cache_bytes, "triton")
        torch.library.opcheck(contrastive_forward, arguments, test_utils=("test_schema", "test_faketensor"))


needs_device = pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")


@needs_device
def test_offsets_beyond_31_bits() -> None:
    rows, dimensions = (1 << 31) // 4096 + 1000, 4096
    u = torch.zeros(64, dimensions, device=DEVICE, dtype=torch.bfloat16)
    v = torch.zeros(rows, dimensions, device=DEVICE, dtype=torch.bfloat16)
    u[:, 0] = 1
    v[-64:, 0] = 1
    v.requires_grad_()
    ids, text_ids = torch.arange(64, device=DEVICE), torch.arange(rows, device=DEVICE) - (rows - 64)
    outputs = contrastive_forward(u, v, torch.tensor(20.0, device=DEVICE), ids, text_ids, False, 0, "triton")
    assert torch.all(outputs[1][STATISTICS.index("positive_max"), :64] == 1)
    # The first image's softmax is spread over the 64 texts that point its way; the first of them is its own.
    gradient = torch.autograd.grad(outputs[0][0], v)[0][-64:, 0].float()
    wanted = torch.full_like(gradient, 20 / 64)
    wanted[0] -= 20
    torch.testing.assert_close(gradient, wanted, rtol=1e-2, atol=1e-3)


@needs_device
def test_memory_is_linear() -> None:
    """N = 65,536, D = 256, bfloat16: beyond inputs and gradients, one float32 gradient (64 MiB) and 240 MiB."""
    n = 65536
    u, v = (F.normalize(torch.randn(n, 256, device=DEVICE), dim=1).bfloat16().requires_grad_() for _ in range(2))
    ids = torch.arange(n, device=DEVICE)

    def step() -> None:
        outputs = contrastive_forward(u, v, torch.tensor(20.0, device=DEVICE), ids, ids, False, 0, "triton")
        torch.autograd.grad(outputs[0].mean(), (u, v))

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    returned = 2 * u.numel() * u.element_size()
    assert torch.cuda.max_memory_allocated() - before - returned <= (64 + 240) << 20


@needs_device
@pytest.mark.parametrize("n", [512, 5000])
def test_cuda_graph_autocast_and_compile(n: int) -> None:
    """With ids, which are compared at one size and sorted at the other, and a schedule that learns."""
    u, v = (F.normalize(torch.randn(n, 64, device=DEVICE), dim=1).requires_grad_() for _ in range(2))
    loss = ContrastiveLoss("variance").to(DEVICE)
    scale, ids = torch.tensor(14.3, device=DEVICE), torch.arange(n, device=DEVICE) // 3

    def step() -> tuple[Tensor, ...]:
        # A value that kept its graph would tie the capture to the stream that it was computed on.
        value = loss(u, v, scale, ids, ids).loss
        return value.detach(), *torch.autograd.grad(value, (u, v))

    eager = step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    for one, other in zip(captured, eager, strict=True):
        torch.testing.assert_close(one, other)
    with torch.autocast("cuda", torch.bfloat16):
        torch.testing.assert_close(step()[0], eager[0], rtol=2e-2, atol=0)
    compiled = torch.compile(lambda u, v: loss(u * 1.0, v, scale, ids, ids).loss)
    torch.testing.assert_close(compiled(u, v), eager[0])
