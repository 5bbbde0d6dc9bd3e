"""The contrastive loss against the matrix written out, in values, gradients and statistics."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from varalign.kernels.query_fields import STATISTICS
from varalign.losses import reference
from varalign.losses.contrastive import ContrastiveLoss, contrastive
from varalign.losses.means import mean_over_queries
from varalign.losses.operator import kernel
from varalign.schedules import build_schedule


def unit(rows: int, dimensions: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dimensions, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def written_out(
    u: Tensor, v: Tensor, scale: Tensor, positive: Tensor, duplicates: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """One direction from the whole matrix: the values of the rows of u and their statistics."""
    s = u @ v.T
    z = scale * s
    count = positive.sum(1)
    lse = z.logsumexp(1)
    if duplicates == "positive":
        each = lse[:, None] - z
    else:
        each = torch.logaddexp(z, z.masked_fill(positive, -torch.inf).logsumexp(1, keepdim=True).expand_as(z)) - z
    values = (each * positive).sum(1) / count.clamp_min(1)
    values = torch.where(count > 0, values, values * 0)
    none = torch.full_like(lse, -torch.inf)
    stats = {
        "lse": lse,
        "positive_mean": torch.where(count > 0, (s * positive).sum(1) / count.clamp_min(1), none),
        "positive_max": s.masked_fill(~positive, -torch.inf).amax(1),
        "negative_max": s.masked_fill(positive, -torch.inf).amax(1),
        "minimum": s.amin(1),
        "expected": (z.softmax(1) * s).sum(1),
        "variance": s.var(1, correction=0),
    }
    return values, stats


IDS = {
    "pairs": lambda m, n: (None, None) if m == n else (torch.arange(m), torch.arange(n)),
    "groups of five": lambda m, n: (torch.arange(m), torch.arange(n) // 5),
    "random": lambda m, n: (torch.arange(m).flip(0) // 2 * 3, torch.arange(n) % (m + 2)),
    "several": lambda m, n: ((torch.arange(m)[:, None] + torch.arange(3)) % (m + 3), torch.arange(n) * 2 % (m + 4)),
    "one group": lambda m, n: (torch.full((m,), 4), torch.full((n,), 4)),
}


@pytest.mark.parametrize("duplicates", ["positive", "ignore"])
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize(("m", "n", "d"), [(1, 1, 3), (2, 7, 1), (33, 33, 17), (65, 130, 64)])
@pytest.mark.parametrize("chunk", [1 << 20, 100])
def test_equals_the_matrix(
    m: int, n: int, d: int, ids: str, duplicates: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "CHUNK_LOGITS", chunk)
    inputs = unit(m, d, 0).requires_grad_(), unit(n, d, 1).requires_grad_(), torch.tensor(14.3, dtype=torch.float64)
    u, v, scale = inputs
    scale.requires_grad_()
    image_ids, text_ids = IDS[ids](m, n)
    nll_i2t, nll_t2i, *stats = contrastive(u, v, scale, image_ids, text_ids, duplicates=duplicates)
    positive = torch.eye(m, n, dtype=torch.bool)
    if image_ids is not None:
        positive = (image_ids.view(m, -1, 1) == text_ids).any(1)
    wanted = [
        written_out(u, v, scale, positive, duplicates),
        written_out(v, u, scale, positive.T, duplicates),
    ]
    weights = [torch.rand(size, dtype=torch.float64) for size in (m, n)]
    got = torch.autograd.grad((nll_i2t * weights[0]).sum() + (nll_t2i * weights[1]).sum(), inputs)
    truth = torch.autograd.grad(sum((w[0] * weight).sum() for w, weight in zip(wanted, weights, strict=True)), inputs)
    close = {"rtol": 1e-9, "atol": 1e-11}
    for mine, (values, _) in zip((nll_i2t, nll_t2i), wanted, strict=True):
        torch.testing.assert_close(mine, values, **close)
    for mine, value in zip(got, truth, strict=True):
        torch.testing.assert_close(mine, value, **close)
    for direction, (_, fields) in zip(stats, wanted, strict=True):
        for name in STATISTICS:
            field = getattr(direction, name)
            assert not field.requires_grad
            torch.testing.assert_close(field, fields[name], **close, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("duplicates", ["positive", "ignore"])
def test_ids_that_no_text_has_change_nothing(duplicates: str) -> None:
    """Values, statistics and gradients are the same, to rounding."""
    u, v = unit(6, 8, 31).requires_grad_(), unit(6, 8, 32)
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    padded = torch.stack([-1 - torch.arange(6), labels, 100 + torch.arange(6)], 1)
    results = []
    for ids in (labels, padded, padded.to(torch.int32), labels[:, None]):
        output = ContrastiveLoss("variance", duplicates)(u, v, 12.0, ids, labels)
        results.append([output.loss, output.stats_i2t.stacked(), *torch.autograd.grad(output.loss, u)])
    for other in results[1:]:
        for one, wanted in zip(other, results[0], strict=True):
            torch.testing.assert_close(one, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("d", [1, 384, 512, 768])
@pytest.mark.parametrize(("m", "n"), [(1, 1000), (64, 63), (1000, 2), (4097, 65)])
def test_sizes_of_the_grid(m: int, n: int, d: int) -> None:
    """Float32, scale 100, best cosines below 0.1 among them: within 2e-4 of the matrix in float64."""
    u, v = unit(m, d, 24, torch.float32), unit(n, d, 25, torch.float32)
    ids, text_ids = torch.arange(m) % n, torch.arange(n)
    if (m, d) == (4097, 768):
        assert (u @ v.T).amax(1).min() < 0.1
    nll = contrastive(u, v, 100.0, ids, text_ids)[0]
    wanted, _ = written_out(u.double(), v.double(), torch.tensor(100.0), ids[:, None] == text_ids[None, :], "positive")
    assert (nll.double() - wanted).abs().max() <= 2e-4


@pytest.mark.parametrize("duplicates", ["positive", "ignore"])
def test_gradcheck(duplicates: str) -> None:
    inputs = (
        unit(5, 4, 2).requires_grad_(),
        unit(7, 4, 3).requires_grad_(),
        torch.tensor(3.0, dtype=torch.float64, requires_grad=True),
    )
    ids = torch.tensor([0, 1, 1, 3, 9]), torch.tensor([1, 0, 0, 3, 3, 8, 1])
    assert torch.autograd.gradcheck(lambda u, v, a: contrastive(u, v, a, *ids, duplicates=duplicates)[:2], inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_error_is_no_larger_than_the_matrix_s(dtype: torch.dtype, scale: float) -> None:
    """Against float64 on the same rounded inputs, mean absolute error: at most the matrix's own plus 1e-6 relative."""
    u, v = unit(200, 48, 4, dtype), unit(200, 48, 5, dtype)
    labels = torch.arange(200)

    def matrix(u: Tensor, v: Tensor) -> Tensor:
        z = scale * u @ v.T
        return F.cross_entropy(z, labels, reduction="none") + F.cross_entropy(z.T, labels, reduction="none")

    def ours(u: Tensor, v: Tensor) -> Tensor:
        return sum(contrastive(u, v, scale)[:2])

    def outcome(loss, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        u = u.clone().requires_grad_()
        values = loss(u, v)
        return values.detach().double(), torch.autograd.grad(values.sum(), u)[0].double()

    truth = outcome(matrix, u.double(), v.double())
    for true, mine, theirs in zip(truth, outcome(ours, u, v), outcome(matrix, u, v), strict=True):
        assert (mine - true).abs().mean() <= (theirs - true).abs().mean() + 1e-6 * true.abs().mean()


def test_an_overfitted_batch_keeps_its_digits() -> None:
    """Losses of 1e-3 to 1e-4 in float32, also at a scale of 100: relative error of values and gradients under 1e-3."""
    for common, scale in ((0.02, 12.0), (0.3, 100.0)):
        u = F.normalize(torch.eye(64) + common, dim=1)
        results = []
        for dtype in (torch.float32, torch.float64):
            x, y = u.to(dtype, copy=True).requires_grad_(), u.to(dtype, copy=True)
            nll, *_ = contrastive(x, y, scale)
            results.append((nll.detach().double(), torch.autograd.grad(nll.mean(), x)[0].double()))
        (value, gradient), (true_value, true_gradient) = results
        assert true_value.max() < 1e-2
        torch.testing.assert_close(value, true_value, rtol=1e-3, atol=0)
        assert (gradient - true_gradient).norm() < 1e-3 * true_gradient.norm()


def test_closed_forms() -> None:
    same = unit(1, 8, 6).expand(10, 8)
    output = ContrastiveLoss("fixed")(same, same, 20.0)
    torch.testing.assert_close(output.loss, torch.tensor(math.log(10), dtype=torch.float64))
    assert output.stats_i2t.variance.max() < 1e-30
    torch.testing.assert_close(output.stats_i2t.entropy, torch.full((10,), math.log(10), dtype=torch.float64))
    # At a scale of 100 an orthonormal batch is solved: exactly e^-100 (N - 1).
    nll = contrastive(torch.eye(8, dtype=torch.float64), torch.eye(8, dtype=torch.float64), 100.0)[0]
    torch.testing.assert_close(nll, torch.full((8,), 7 * math.exp(-100), dtype=torch.float64), rtol=1e-9, atol=0)


def test_symmetry() -> None:
    u, v = unit(9, 6, 7), unit(14, 6, 8)
    ids, text_ids = torch.arange(9), torch.arange(14) % 9
    nll_i2t, nll_t2i, stats_i2t, stats_t2i = contrastive(u, v, 5.0, ids, text_ids)
    other_t2i, other_i2t, other_stats, _ = contrastive(v, u, 5.0, text_ids, ids)
    torch.testing.assert_close(nll_i2t, other_i2t)
    torch.testing.assert_close(nll_t2i, other_t2i)
    torch.testing.assert_close(stats_t2i.stacked(), other_stats.stacked())
    assert (stats_i2t.candidates, stats_t2i.candidates) == (14, 9)


def test_queries_without_positives_do_not_count() -> None:
    u, v = unit(4, 6, 9).requires_grad_(), unit(3, 6, 10)
    nll, _, stats, _ = contrastive(u, v, 10.0, torch.tensor([0, 1, 2, 99]), torch.arange(3))
    assert nll[3] == 0
    assert stats.has_positive.tolist() == [True, True, True, False]
    assert stats.positive_max[3] == -torch.inf
    assert stats.positive_probability[3] == 0
    torch.testing.assert_close(mean_over_queries(nll, stats), nll[:3].mean())
    assert torch.autograd.grad(nll.sum(), u)[0][3].abs().max() == 0
    lonely = ContrastiveLoss("fixed")(u, v, 10.0, torch.arange(4), torch.arange(3) + 50)
    assert lonely.loss == 0


@pytest.mark.parametrize("duplicates", ["positive", "ignore"])
def test_weights_of_queries_are_those_of_a_weighted_mean(duplicates: str) -> None:
    """Loss and gradients against the matrix; float64, 1e-9."""
    inputs = unit(6, 5, 7).requires_grad_(), unit(9, 5, 8).requires_grad_()
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 1, 1, 3, 9, 4]), torch.tensor([1, 0, 0, 3, 3, 8, 1, 4, 4])
    weights = torch.rand(6, dtype=torch.float64), torch.rand(9, dtype=torch.float64)
    weights[0][1], weights[1][3] = 0.0, 0.0
    loss = ContrastiveLoss("variance", duplicates)
    output = loss(*inputs, scale, *ids, image_weights=weights[0], text_weights=weights[1])
    positive = ids[0][:, None] == ids[1][None, :]
    total = torch.zeros((), dtype=torch.float64)
    pairs = ((*inputs, positive), (*inputs[::-1], positive.T))
    for (u, v, found), weight, share in zip(pairs, weights, output.weights, strict=True):
        counted = weight * found.any(1)
        total = total + share * (written_out(u, v, scale, found, duplicates)[0] * counted).sum() / counted.sum()
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(output.loss, total, **close)
    leaves = (*inputs, scale)
    for mine, truth in zip(
        torch.autograd.grad(output.loss, leaves, retain_graph=True), torch.autograd.grad(total, leaves), strict=True
    ):
        torch.testing.assert_close(mine, truth, **close)


def test_weights_that_are_alike_change_nothing_and_none_at_all_give_0() -> None:
    u, v, loss = unit(7, 5, 1), unit(7, 5, 2), ContrastiveLoss("fixed")
    plain = loss(u, v, 10.0).loss
    alike = torch.full((7,), 3.0)
    torch.testing.assert_close(loss(u, v, 10.0, image_weights=alike, text_weights=alike).loss, plain)
    assert loss(u, v, 10.0, image_weights=torch.zeros(7), text_weights=torch.zeros(7)).loss == 0
    with pytest.raises(ValueError, match=r"wanted one weight a query, \(7,\), not \(6,\)"):
        loss(u, v, 10.0, image_weights=torch.ones(6))


def test_nan_reaches_the_loss() -> None:
    u = unit(6, 4, 11, torch.float32)
    u[2, 1] = torch.nan
    u.requires_grad_()
    output = ContrastiveLoss()(u, unit(6, 4, 12, torch.float32), 10.0)
    assert output.loss.isnan()
    assert torch.isfinite(output.weights).all()
    assert torch.autograd.grad(output.loss, u)[0].isnan().any()


def test_strided_inputs_and_other_dtypes() -> None:
    u, v = unit(20, 10, 13, torch.float32), unit(20, 10, 14, torch.float32)
    nll = contrastive(u, v, 8.0)[0]
    torch.testing.assert_close(contrastive(u.T.contiguous().T, v, torch.tensor([8.0]))[0], nll)
    torch.testing.assert_close(contrastive(torch.cat([u, u], 1)[:, :10], v, torch.tensor(8.0).double())[0], nll)
    assert contrastive(u.bfloat16(), v, 8.0)[0].dtype == torch.float32
    assert contrastive(u.bfloat16(), v.bfloat16(), 8.0)[2].lse.dtype == torch.float32


def test_works_inside_autocast() -> None:
    """The loss stays float32, for float32 embeddings bit for bit; of a projection's bfloat16 the gradient arrives."""
    x, y = unit(20, 10, 26, torch.float32), unit(20, 10, 27, torch.float32)
    weight = torch.eye(10, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = ContrastiveLoss("fixed")(x @ weight, y @ weight, 8.0)
        plain = ContrastiveLoss("fixed")(x, y, 8.0).loss
    assert output.loss.dtype == torch.float32
    assert torch.equal(plain, ContrastiveLoss("fixed")(x, y, 8.0).loss)
    torch.testing.assert_close(output.loss, ContrastiveLoss("fixed")(x, y, 8.0).loss, rtol=1e-2, atol=0)
    assert torch.autograd.grad(output.loss, weight)[0].isfinite().all()


def test_one_direction_may_have_no_weight() -> None:
    u, v = unit(12, 6, 15).requires_grad_(), unit(12, 6, 16)
    schedule = build_schedule("fixed", fixed_weight=1.0)
    output = ContrastiveLoss(schedule)(u, v, 10.0)
    whole = torch.autograd.grad(output.loss, u)[0]
    alone = torch.autograd.grad(contrastive(u, v, 10.0)[0].mean(), u)[0]
    torch.testing.assert_close(whole, alone)


def test_repeats_bit_for_bit() -> None:
    results = []
    for _ in range(2):
        u = unit(300, 32, 17, torch.float32).requires_grad_()
        output = ContrastiveLoss()(
            u, unit(300, 32, 18, torch.float32), 14.3, torch.arange(300) // 3, torch.arange(300) // 3
        )
        results.append((output.loss.detach(), torch.autograd.grad(output.loss, u)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_second_derivative_is_refused() -> None:
    u = unit(4, 3, 19).requires_grad_()
    gradient = torch.autograd.grad(contrastive(u, unit(4, 3, 20), 5.0)[0].sum(), u, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiated once"):
        gradient.square().sum().backward()


def test_compiles_without_a_graph_break() -> None:
    loss = ContrastiveLoss("variance")
    u = unit(24, 8, 21, torch.float32).requires_grad_()
    v = unit(24, 8, 22, torch.float32)
    compiled = torch.compile(lambda u, v: contrastive(u * 1.0, v, 10.0)[0].mean(), fullgraph=True, backend="aot_eager")
    plain = contrastive(u, v, 10.0)[0].mean()
    torch.testing.assert_close(compiled(u, v), plain)
    got, wanted = (torch.autograd.grad(value, u)[0] for value in (compiled(u, v), plain))
    torch.testing.assert_close(got, wanted)
    module = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(module(u, v, 10.0).loss, ContrastiveLoss("variance")(u, v, 10.0).loss)


def test_the_choice_of_the_kernels_compiles_without_a_graph_break() -> None:
    """On a GPU every compiled loss asks for their module."""
    compiled = torch.compile(lambda x: x * (3 if kernel() is None else 2), fullgraph=True, backend="eager")
    assert compiled(torch.ones(1)).item() == (3 if find_spec("triton") is None else 2)


def test_compiled_gradients_are_one_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing the backward pass must not run the kernels, which take no tensors without data."""

    def traced(*inputs: object) -> None:
        raise AssertionError("the backward pass was traced through")

    monkeypatch.setattr("varalign.losses.operator.backward_pass", traced)
    u, v = unit(9, 8, 30, torch.float32).requires_grad_(), unit(9, 8, 31, torch.float32)
    compiled = torch.compile(lambda u, v: contrastive(u * 1.0, v, 10.0)[0].mean(), fullgraph=True, backend="aot_eager")
    assert torch.autograd.grad(compiled(u, v), u)[0].abs().sum() > 0


def test_fake_implementations_agree() -> None:
    from varalign.losses.operator import contrastive_forward

    u, v = unit(6, 4, 23, torch.float32).requires_grad_(), unit(5, 4, 24, torch.float32)
    for ids in (torch.arange(6), torch.arange(12).view(6, 2)):
        arguments = (u, v, torch.tensor(9.0), ids, torch.arange(5), True, 1 << 20, "reference")
        torch.library.opcheck(contrastive_forward, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_embeddings": torch.zeros(3)}, r"image_embeddings must be \(queries, dimensions\).*not \(3,\)"),
        ({"text_embeddings": torch.zeros(3, 4)}, "same dimension, not 5 and 4"),
        ({"image_embeddings": torch.zeros(3, 5, dtype=torch.int64)}, "must be floating point, not torch.int64"),
        ({"logit_scale": 0.0}, "logit_scale must be above 0 and finite, not 0.0"),
        ({"logit_scale": math.inf}, "logit_scale must be above 0 and finite, not inf"),
        ({"logit_scale": torch.ones(2)}, r"one number, not of shape \(2,\)"),
        (
            {"image_ids": torch.zeros(4, dtype=torch.int64)},
            r"must be \(3,\) or \(3, K\) integers, not \(4,\)",
        ),
        ({"image_ids": torch.zeros(3)}, "integers, not .* of torch.float32"),
        ({"image_ids": torch.tensor([[0, 3], [1, 1], [2, 4]])}, "need both image_ids and text_image_ids"),
        (
            {"image_ids": torch.tensor([[0, 3], [1, 1], [2, 4]]), "text_image_ids": torch.arange(3)},
            "the ids of an image must differ, those of row 1 do not",
        ),
        ({"text_image_ids": torch.zeros(3, 1, dtype=torch.int64)}, r"text_image_ids must be \(3,\) integers"),
        ({"duplicates": "drop"}, "one of positive, ignore, not 'drop'"),
        ({"text_embeddings": torch.zeros(2, 5), "image_ids": torch.arange(3)}, "need both"),
    ],
)
def test_errors_say_what_is_wrong(change: dict[str, object], message: str) -> None:
    arguments = {"image_embeddings": torch.zeros(3, 5), "text_embeddings": torch.zeros(3, 5), "logit_scale": 1.0}
    with pytest.raises(ValueError, match=message):
        contrastive(**{**arguments, **change})


def test_memory_is_linear_in_the_batch() -> None:
    """N = 4,096: the matrix alone is 64 MiB in float32, and the plain loss holds four; ours stays under one."""
    program = """
import resource, torch
from varalign.losses.contrastive import contrastive
torch.set_num_threads(1)
def step(n):
    u, v = torch.randn(n, 64, requires_grad=True), torch.randn(n, 64, requires_grad=True)
    (lambda o: o[0].mean() + o[1].mean())(contrastive(u, v, 0.1)).backward()
step(1024)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(4096)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    unit_bytes = 1024 if sys.platform != "darwin" else 1
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert int(result.stdout) * unit_bytes < 64 << 20


def test_members_are_aligned_each_by_itself():
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(9, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    u, v = (torch.nn.functional.normalize(x, dim=-1).requires_grad_() for x in (u, v))
    ids = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 7])
    weights = torch.linspace(0.5, 1.0, 9, dtype=torch.float64)
    loss = ContrastiveLoss("fixed")
    together = [x.flatten(1) / 3**0.5 for x in (u, v)]
    output = loss(*together, 10.0, ids, ids, image_weights=weights, text_weights=weights, members=3)
    each = [loss(u[:, k], v[:, k], 10.0, ids, ids, image_weights=weights, text_weights=weights) for k in range(3)]
    torch.testing.assert_close(output.loss, torch.stack([one.loss for one in each]).mean())
    variances = torch.stack([one.stats_t2i.variance for one in each])
    torch.testing.assert_close(output.stats_t2i.variance, variances.mean(0))
    found = torch.autograd.grad(output.loss, [u, v])
    wanted = torch.autograd.grad(sum(one.loss for one in each) / 3, [u, v])
    torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match="12 dimensions do not split into 5 members"):
        loss(*together, 10.0, members=5)
