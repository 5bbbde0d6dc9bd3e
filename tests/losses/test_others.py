"""Other people's losses against slow versions written from their papers, their gradients, and their state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from varalign.losses.comparison import ComparisonLoss
from varalign.losses.contrastive import ContrastiveLoss
from varalign.losses.objective import Batch, infonce
from varalign.losses.others import OTHERS, adversarial, build_objective
from varalign.losses.others.adversarial import worst_change
from varalign.losses.others.structure import structure
from varalign.schedules import build_schedule

SCALE = 7.0
IDS = torch.tensor([3, 5, 9, 4])
TEXT_IDS = torch.tensor([3, 3, 5, 9, 4, 8])  # the last text has no image


def made_up(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    u, v = torch.randn(4, 5, generator=g).double(), torch.randn(6, 5, generator=g).double()
    return normalize(u, dim=1), normalize(v, dim=1)


def batch_of(
    u: torch.Tensor, v: torch.Tensor, scale: torch.Tensor | None = None, positive: torch.Tensor | None = None
) -> Batch:
    g = torch.Generator().manual_seed(5)
    scale = torch.tensor(SCALE, dtype=u.dtype) if scale is None else scale
    weight = torch.randn(7, 5, generator=g).to(u.dtype)
    return Batch(
        u,
        v,
        scale,
        IDS[:, None] == TEXT_IDS[None] if positive is None else positive,
        image_rows=torch.tensor([0, 1, 2, 3]),
        caption_rows=torch.arange(6),
        image_features=torch.randn(4, 9, generator=g).to(u.dtype),
        text_features=torch.randn(6, 8, generator=g).to(u.dtype),
        inputs=torch.randn(4, 7, generator=g).to(u.dtype),
        embed=lambda x: normalize(x @ weight, dim=1),
    )


def slow(name: str, z: list[list[float]], own: list[list[float]], q: list[int], c: list[int]) -> list[float]:
    """Values of one direction in plain Python: logits z[i][j], own modality's logits own[i][k], ids of both sides."""
    values = []
    for i in range(len(q)):
        positives = [j for j in range(len(c)) if c[j] == q[i]]
        negatives = [j for j in range(len(c)) if c[j] != q[i]]
        if not positives:
            values.append(0.0)
            continue
        pull = sum(z[i][j] for j in positives) / len(positives)
        whole = sum(math.exp(z[i][j]) for j in range(len(c)))
        if name == "nt-xent":
            whole += sum(math.exp(own[i][k]) for k in range(len(q)) if q[k] != q[i])
            values.append(math.log(whole) - pull)
        elif name == "dcl":
            values.append(math.log(sum(math.exp(z[i][j]) for j in negatives)) - pull)
        elif name == "hard-negatives":
            weights = [math.exp(0.25 * z[i][j]) for j in negatives]
            mean = sum(weights) / len(weights)
            hard = sum(w / mean * math.exp(z[i][j]) for w, j in zip(weights, negatives, strict=True))
            values.append(math.log(sum(math.exp(z[i][j]) for j in positives) + hard) - pull)
        elif name == "gce":
            values.append((1 - (math.exp(pull) / whole) ** 0.7) / 0.7)
        elif name == "sogclr":  # the first time a sample is seen
            values.append(math.log(sum(math.exp(z[i][j] - pull) for j in negatives) / len(negatives)))
        elif name == "isogclr":  # the same, at the first temperature and without the logit scale
            away = [(z[i][j] - pull) / SCALE / 0.07 for j in negatives]
            values.append(0.07 * (math.log(sum(math.exp(x) for x in away) / len(away)) + 6.0))
        elif name in ("cyclip", "structure"):
            values.append(math.log(whole) - pull)
        elif name == "soft-targets":
            own_of = [[k for k in range(len(q)) if q[k] == c[j]] or [0] for j in range(len(c))]
            like = [sum(own[i][k] for k in ks) / len(ks) for ks in own_of]
            total = sum(math.exp(x) for x in like)
            soft = sum(math.exp(x) / total * z[i][j] for j, x in enumerate(like))
            values.append(math.log(whole) - 0.8 * pull - 0.2 * soft)
    return values


@pytest.mark.parametrize(
    "name", ["nt-xent", "dcl", "hard-negatives", "gce", "sogclr", "isogclr", "cyclip", "structure", "soft-targets"]
)
def test_values_are_the_papers(name: str) -> None:
    u, v = made_up()
    z, images, texts = SCALE * u @ v.T, SCALE * u @ u.T, SCALE * v @ v.T
    i2t, t2i, _ = build_objective(name, images=4, captions=6)(batch_of(u, v))
    assert i2t.tolist() == pytest.approx(slow(name, z.tolist(), images.tolist(), IDS.tolist(), TEXT_IDS.tolist()))
    assert t2i.tolist() == pytest.approx(slow(name, z.T.tolist(), texts.tolist(), TEXT_IDS.tolist(), IDS.tolist()))


class Shared(frozenset[int]):
    """In place of an id: equal to what it shares an element with."""

    def __eq__(self, other: object) -> bool:
        return bool(self & other)  # type: ignore[operator]

    def __ne__(self, other: object) -> bool:
        return not self == other


@pytest.mark.parametrize("name", ["nt-xent", "dcl", "hard-negatives", "gce", "sogclr", "isogclr", "soft-targets"])
def test_values_where_a_text_has_several_images(name: str) -> None:
    u, v = made_up()
    positive = torch.zeros(4, 6, dtype=torch.bool)
    positive[[0, 0, 1, 1, 2, 3, 3], [0, 1, 1, 2, 3, 1, 4]] = True
    z, images, texts = SCALE * u @ v.T, SCALE * u @ u.T, SCALE * v @ v.T
    found = build_objective(name, images=4, captions=6)(batch_of(u, v, positive=positive))
    for got, logits, own, mask in ((found[0], z, images, positive), (found[1], z.T, texts, positive.T)):
        queries = [Shared(row.nonzero()[:, 0].tolist()) for row in mask]
        candidates = [Shared({j}) for j in range(mask.shape[1])]
        wanted = slow(name, logits.tolist(), own.tolist(), queries, candidates)  # type: ignore[arg-type]
        assert got.tolist() == pytest.approx(wanted)


def test_a_loss_takes_the_relation_from_the_ids() -> None:
    u, v = made_up()
    loss = ComparisonLoss(build_objective("dcl", images=4, captions=6), build_schedule("fixed"))
    ids, text_ids = torch.tensor([[3, 1], [5, 1], [9, -1], [4, 1]]), torch.tensor([3, 1, 5, 9, 4, 8])
    wanted = build_objective("dcl", images=4, captions=6)(batch_of(u, v, positive=(ids[:, :, None] == text_ids).any(1)))
    output = loss(u, v, SCALE, ids, text_ids)
    assert float(output.loss_i2t) == pytest.approx(float(wanted[0].mean()))
    assert float(output.loss_t2i) == pytest.approx(float(wanted[1].sum()) / 5)


def test_soft_targets_without_a_share_are_the_plain_loss() -> None:
    u, v = made_up()
    z = SCALE * u @ v.T
    hard = build_objective("soft-targets", images=0, captions=0, strength=0.0)(batch_of(u, v))
    assert torch.allclose(hard[0], infonce(z, IDS[:, None] == TEXT_IDS))


def test_siglip_is_its_double_sum() -> None:
    u, v = made_up()
    z = (SCALE * u @ v.T - 10).tolist()
    total = sum(
        math.log1p(math.exp(-z[i][j] if IDS[i] == TEXT_IDS[j] else z[i][j])) for i in range(4) for j in range(6)
    )
    i2t, t2i, _ = build_objective("siglip", images=0, captions=0)(batch_of(u, v))
    assert float(i2t.sum().detach()) == pytest.approx(total) and float(t2i.sum().detach()) == pytest.approx(total)


def test_cyclips_term_is_0_for_equal_geometries() -> None:
    u, _ = made_up()
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)).double())[0]
    same = Batch(u, u, torch.tensor(SCALE).double(), torch.eye(4, dtype=torch.bool))
    objective = build_objective("cyclip", images=0, captions=0)
    assert float(objective(same)[2]) == pytest.approx(0.0, abs=1e-12)
    v = u @ turn
    s, within = u @ v.T, u @ u.T - v @ v.T
    wanted = sum((s[i, j] - s[j, i]) ** 2 + within[i, j] ** 2 for i in range(4) for j in range(4)) / 16 * 0.25
    assert float(objective(Batch(u, v, same.logit_scale, same.positive))[2]) == pytest.approx(float(wanted))


def test_structure_is_0_between_alike_spaces_and_a_divergence_else() -> None:
    u, v = made_up()
    assert float(structure(3 * u, u)) == pytest.approx(0.0, abs=1e-9)
    p, q = (
        torch.softmax(n @ n.T / 0.05, 1)
        for n in (normalize(x - x.mean(0), dim=1) for x in (u, normalize(v[:4], dim=1)))
    )
    total = 0.0
    for i in range(4):
        for j in range(4):
            a, b = float(p[i, j]), float(q[i, j])
            total += (a * math.log(2 * a / (a + b)) + b * math.log(2 * b / (a + b))) / 2
    assert float(structure(u, v[:4])) == pytest.approx(total / 4, rel=1e-6)
    assert 0 < float(structure(u, v[:4])) < math.log(2)


@pytest.mark.parametrize("name", OTHERS)
def test_gradients_are_those_of_the_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build_objective(name, images=4, captions=6).double().eval()  # sogclr and isogclr without memory
    if name.startswith("adversarial"):  # at the change found once: how it follows the embeddings is no part of it
        changes: dict[tuple[int, ...], torch.Tensor] = {}

        def found_once(
            damage: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor, *given: Any, **named: Any
        ) -> torch.Tensor:
            if tuple(like.shape) not in changes:
                changes[tuple(like.shape)] = worst_change(damage, like, *given, **named)
            return changes[tuple(like.shape)]

        monkeypatch.setattr(adversarial, "worst_change", found_once)

    def value(u: torch.Tensor, v: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        i2t, t2i, added = objective(batch_of(u, v, scale))
        weights = torch.arange(1.0, 5.0, dtype=torch.float64), torch.arange(2.0, 8.0, dtype=torch.float64)
        return (weights[0] * i2t).sum() + (weights[1] * t2i).sum() + (0 if added is None else added)

    if name == "soft-targets":  # targets carry no gradient, which differences do not know: only the values' part
        objective.mix = 0.0
    inputs = [x.requires_grad_() for x in (*made_up(), torch.tensor(SCALE, dtype=torch.float64))]
    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-6)


def test_sogclr_without_memory_has_the_gradient_of_the_decoupled_loss() -> None:
    u, v = made_up()
    gradients = []
    for name, strength in (("sogclr", 1.0), ("dcl", None)):
        x = u.clone().requires_grad_()
        i2t, t2i, _ = build_objective(name, images=4, captions=6, strength=strength)(batch_of(x, v))
        (i2t.sum() + t2i.sum()).backward()
        gradients.append(x.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)  # the averages are kept in float32


@pytest.mark.parametrize("name,unit", [("sogclr", SCALE), ("isogclr", 1.0)])
def test_a_remembered_average_stands_in_the_gradient_for_the_steps_own(name: str, unit: float) -> None:
    objective = build_objective(name, images=4, captions=6).double()
    positive = IDS[:, None] == TEXT_IDS[None]
    temperature = torch.ones(4, dtype=torch.float64)
    means = []
    for seed in (0, 1):
        if name == "isogclr":
            temperature = objective.image_temperature.clone()
        u, v = made_up(seed)
        u.requires_grad_()
        s = unit * u @ v.T
        away = s - ((s * positive).sum(1) / positive.sum(1))[:, None]
        means.append((((away / temperature[:, None]).exp() * ~positive).sum(1)) / (~positive).sum(1))
        i2t = objective(batch_of(u, v))[0]
    average = 0.2 * means[0].detach() + 0.8 * means[1].detach()
    (wanted,) = torch.autograd.grad((temperature * means[1] / average).sum(), u, retain_graph=True)
    (found,) = torch.autograd.grad(i2t.sum(), u)
    assert torch.allclose(found, wanted)


def test_sogclr_averages_over_steps_and_keeps_nothing_in_eval() -> None:
    objective = build_objective("sogclr", images=10, captions=20, strength=0.25)
    first, second = batch_of(*made_up(0)), batch_of(*made_up(1))
    one = objective(first)[0].exp()
    fresh = build_objective("sogclr", images=10, captions=20)(second)[0].exp()
    two = objective(second)[0].exp()
    assert torch.allclose(two, 0.75 * one + 0.25 * fresh, rtol=1e-5)
    kept = objective.image_log_average.clone()
    assert kept[:4].isfinite().all() and (kept[4:] == -math.inf).all()
    objective.eval()(first)
    assert torch.equal(objective.image_log_average, kept)


@pytest.mark.parametrize("name", ["sogclr", "isogclr"])
def test_averages_of_what_overflows_stay_finite(name: str) -> None:
    """A negative that beats the positive by 2 at a scale of 100: e^200 is no float32."""
    u = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    objective = build_objective(name, images=2, captions=2)
    if name == "isogclr":
        objective.image_temperature.fill_(0.01)
    rows = {"image_rows": torch.arange(2), "caption_rows": torch.arange(2)}
    batch = Batch(u, u.detach().flip(0), torch.tensor(100.0), torch.eye(2, dtype=torch.bool), **rows)
    i2t = objective(batch)[0]
    i2t.sum().backward()
    wanted = 200.0 if name == "sogclr" else 0.01 * (200.0 + 6.0)
    assert i2t.tolist() == pytest.approx([wanted] * 2) and bool(u.grad.isfinite().all())
    assert objective(batch)[0].tolist() == pytest.approx([wanted] * 2, rel=0.1)


def test_isogclr_learns_each_temperature_down_its_own_slope() -> None:
    u, v = made_up()
    objective = build_objective("isogclr", images=4, captions=6).double()
    before = objective.image_temperature.clone().requires_grad_()
    s = u @ v.T
    positive = IDS[:, None] == TEXT_IDS
    away = s - ((s * positive).sum(1) / positive.sum(1))[:, None]
    mean = ((away / before[:, None]).exp() * ~positive).sum(1) / (~positive).sum(1)
    value = before * (mean.log() + 6.0)
    value.sum().backward()
    found = objective(batch_of(u, v))[0]
    assert torch.allclose(found, value.detach())
    wanted = (before.detach() - 0.01 * 0.1 * before.grad).clamp(0.01, 1.0)
    assert torch.allclose(objective.image_temperature, wanted)


def test_the_worst_change_of_a_linear_loss_is_known() -> None:
    slope = torch.tensor([[3.0, -4.0], [0.5, 0.0]])
    for steps in (1, 5):
        edge = worst_change(lambda x: (slope * x).sum(), slope, 0.2, steps)
        assert torch.allclose(edge, 0.2 * slope.sign())
        ball = worst_change(lambda x: (slope * x).sum(), slope, 0.2, steps, each_length=True)
        assert torch.allclose(ball, 0.2 * normalize(slope, dim=1))


@pytest.mark.parametrize("name", ["adversarial", "adversarial-inputs"])
def test_attacks_raise_the_loss_and_none_is_the_plain_loss(name: str) -> None:
    u, v = made_up()
    batch = batch_of(u, v)
    if name == "adversarial-inputs":
        assert batch.embed is not None and batch.inputs is not None
        batch = Batch(**{**vars(batch), "images": batch.embed(batch.inputs)})
        batch.__dict__.pop("logits", None)
    plain = float(infonce(batch.logits, batch.positive).sum())

    def summed(strength: float, steps: int = 1) -> float:
        objective = build_objective(name, images=0, captions=0, strength=strength, steps=steps)
        return float(objective(batch)[0].sum())

    assert summed(0.0) == pytest.approx(plain, rel=1e-6)
    assert summed(0.05) > plain and summed(0.2, 5) > summed(0.05, 5)


@pytest.mark.parametrize("name", OTHERS)
def test_every_loss_trains_under_the_interface_of_the_contrastive_loss(name: str) -> None:
    u, v = (x.float().requires_grad_() for x in made_up())
    batch = batch_of(u, v)
    loss = ComparisonLoss(build_objective(name, images=4, captions=6), build_schedule("fixed"))
    given = ("image_rows", "caption_rows", "image_features", "text_features", "inputs", "embed")
    loss.see(**{key: getattr(batch, key) for key in given})
    found = loss(u, v, torch.tensor(SCALE), IDS, TEXT_IDS)
    found.loss.backward()
    assert bool(torch.isfinite(found.loss)) and bool(torch.isfinite(v.grad).all()) and float(v.grad.abs().sum()) > 0
    plain = ContrastiveLoss("fixed")(u, v, SCALE, IDS, TEXT_IDS)
    assert torch.equal(found.stats_t2i.lse, plain.stats_t2i.lse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_embeddings_of_16_bits_are_computed_in_32(dtype: torch.dtype) -> None:
    u, v = (x.to(dtype).requires_grad_() for x in made_up())
    loss = ComparisonLoss(build_objective("dcl", images=0, captions=0), build_schedule("fixed"))
    found = loss(u, v, torch.tensor([90.0]), IDS, TEXT_IDS)
    found.loss.backward()
    wide = loss(u.detach().float(), v.detach().float(), 90.0, IDS, TEXT_IDS)
    assert found.loss.dtype == torch.float32 and torch.equal(found.loss, wide.loss) and u.grad.dtype == dtype


def test_weights_take_a_query_out_and_ids_default_to_the_diagonal() -> None:
    u, v = (x.float() for x in made_up())
    loss = ComparisonLoss(build_objective("gce", images=0, captions=0), build_schedule("fixed"))
    whole = loss(u, v[:4], SCALE)
    z = SCALE * u @ v[:4].T
    wanted = (1 - z.softmax(1).diagonal() ** 0.7) / 0.7
    assert torch.allclose(whole.loss_i2t, wanted.mean())
    some = loss(u, v[:4], SCALE, image_weights=torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert torch.allclose(some.loss_i2t, wanted[::2].mean())


@pytest.mark.parametrize(
    "name,strength,message",
    [
        ("best", None, "known ones: clip, adversarial"),
        ("gce", 0.0, "takes a strength above 0 to 1"),
        ("soft-targets", 1.5, "from 0 to 1"),
        ("dcl", 1.0, "no number of its own"),
    ],
)
def test_unknown_losses_and_numbers_out_of_range_are_refused(name: str, strength: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_objective(name, images=1, captions=1, strength=strength)


@pytest.mark.parametrize(
    "name,what", [("sogclr", "image_rows"), ("structure", "image_features"), ("adversarial-inputs", "embed")]
)
def test_a_loss_says_what_it_needs(name: str, what: str) -> None:
    loss = ComparisonLoss(build_objective(name, images=4, captions=4), build_schedule("fixed"))
    u, _ = made_up()
    with pytest.raises(ValueError, match=what):
        loss(u, u, SCALE)
