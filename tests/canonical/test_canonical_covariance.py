"""RunningCovariance against NumPy's float64 covariance, and what it promises of hard data."""

from __future__ import annotations

import pytest
import torch
from varalign.canonical import RunningCovariance, Whitening


def pairs(n: int = 301, dx: int = 7, dy: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dx, generator=generator, dtype=torch.float64)
    y = x[:, :dy] + torch.randn(n, dy, generator=generator, dtype=torch.float64)
    return x, y


def slow(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    both = torch.cat([x, y], 1).double()
    centred = both - (w[:, None] * both).sum(0) / w.sum()
    return (w[:, None] * centred).T @ centred / w.sum()


def joint(running: RunningCovariance) -> torch.Tensor:
    top = torch.cat([running.cov_x, running.cov_xy], 1)
    return torch.cat([top, torch.cat([running.cov_xy.T, running.cov_y], 1)])


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.float16, 2e-6)])
@pytest.mark.parametrize("blocks", [(301,), (1, 300), (100, 0, 200, 1)])
@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_give_the_covariance_of_the_whole(dtype, tolerance, blocks, weighted):
    x, y = (t.to(dtype) for t in pairs())
    w = torch.rand(len(x), generator=torch.Generator().manual_seed(1), dtype=torch.float64).round(decimals=1)
    running = RunningCovariance(7, 4)
    start = 0
    for size in blocks:
        part = slice(start, start + size)
        running.update(x[part], y[part], w[part] if weighted else None)
        start += size
    truth = slow(x, y, w if weighted else torch.ones_like(w))
    assert torch.allclose(joint(running), truth, rtol=0, atol=tolerance * float(truth.abs().max()))
    assert running.pairs == len(x)


def test_merge_equals_update():
    x, y = pairs()
    whole, left, right = (RunningCovariance(7, 4) for _ in range(3))
    whole.update(x, y)
    left.update(x[:100], y[:100])
    right.update(x[100:], y[100:])
    before = joint(left)
    merged = RunningCovariance(7, 4).merge(left).merge(right)
    assert torch.allclose(joint(merged), joint(whole), rtol=0, atol=1e-13)
    assert torch.allclose(merged.mean_x, whole.mean_x) and merged.pairs == whole.pairs
    assert torch.equal(joint(left), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mean_of_a_thousand_deviations_keeps_its_digits(dtype):
    x, y = (t.to(dtype) for t in ((p + 1000.0) for p in pairs(5000)))
    running = RunningCovariance(7, 4)
    for start in range(0, 5000, 777):
        running.update(x[start : start + 777], y[start : start + 777])
    truth = slow(x, y, torch.ones(5000, dtype=torch.float64))
    assert torch.allclose(joint(running), truth, rtol=0, atol=1e-6)
    # What the shift is for: the plain sum of float32 products has no digit of this.
    plain = (x.float().T @ x.float()) / 5000 - torch.outer(x.float().mean(0), x.float().mean(0))
    assert float((plain.double() - truth[:7, :7]).abs().max()) > 0.01


def test_features_whose_squares_are_no_float32_keep_their_covariance():
    x, y = pairs(50)
    large = RunningCovariance(7, 4)
    large.update((x * 1e25).float(), (y * 1e-3).float())
    truth = slow((x * 1e25).float(), (y * 1e-3).float(), torch.ones(50, dtype=torch.float64))
    scale = truth.diagonal().sqrt()
    assert torch.allclose(joint(large) / scale / scale[:, None], truth / scale / scale[:, None], atol=1e-6)


def test_integer_features_and_weights_are_numbers():
    x, y = (t.mul(10).round() for t in pairs(30))
    w = torch.arange(30) % 3
    whole, plain = RunningCovariance(7, 4), RunningCovariance(7, 4)
    whole.update(x.long(), y.long(), w)
    plain.update(x, y, w.double())
    assert torch.allclose(joint(whole), joint(plain), atol=1e-4)


def test_weight_two_is_a_pair_given_twice_and_weight_nought_is_none():
    x, y = pairs(20)
    w = torch.tensor([2.0] * 5 + [0.0] * 5 + [1.0] * 10)
    weighted, repeated = RunningCovariance(7, 4), RunningCovariance(7, 4)
    weighted.update(x, y, w)
    rows = torch.tensor([i for i in range(20) for _ in range(int(w[i]))])
    repeated.update(x[rows], y[rows])
    assert torch.allclose(joint(weighted), joint(repeated), atol=1e-13)
    assert weighted.count == repeated.count


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_rows_are_named_and_leave_the_sums_alone(value):
    x, y = pairs(20)
    running = RunningCovariance(7, 4)
    running.update(x, y)
    before = joint(running), running.mean_y, running.pairs
    bad = y.clone()
    bad[[3, 5, 6, 9], 1] = value
    with pytest.raises(ValueError, match=r"text_features must be finite.*4 of 20 rows: 23, 25, 26 and 1 more"):
        running.update(x, bad)
    assert torch.equal(joint(running), before[0]) and torch.equal(running.mean_y, before[1])
    assert running.pairs == before[2]


def test_shapes_weights_and_dimensions_are_refused_by_name():
    x, y = pairs(20)
    running = RunningCovariance(7, 4)
    with pytest.raises(ValueError, match=r"wanted image_features \(n, 7\).*got \(20, 4\) and \(20, 7\)"):
        running.update(y, x)
    with pytest.raises(ValueError, match=r"weights\[2\] is -1"):
        running.update(x, y, torch.tensor([1.0, 1, -1] + [1.0] * 17))
    with pytest.raises(ValueError, match="cannot merge"):
        running.merge(RunningCovariance(4, 7))
    with pytest.raises(ValueError, match="has seen no pairs"):
        Whitening(running).solve(ridge=1, power=0.5, dimensions=2)


@pytest.mark.gpu
def test_gpu_agrees_with_cpu():
    x, y = pairs(3000)
    on_cpu, on_gpu = RunningCovariance(7, 4), RunningCovariance(7, 4, "cuda")
    on_cpu.update(x, y)
    on_gpu.update(x.float(), y.float())
    assert torch.allclose(joint(on_gpu).cpu(), joint(on_cpu), atol=1e-5)
