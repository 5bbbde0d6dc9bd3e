"""Other people's weightings against slow versions in plain Python, and their state."""

from __future__ import annotations

import math

import pytest
import torch
from varalign.losses.contrastive import ContrastiveLoss
from varalign.schedules import build_schedule
from varalign.schedules.direction_stats import DirectionStats
from varalign.schedules.loss_schedule import Weighting
from varalign.schedules.named.dwa import DWA
from varalign.schedules.named.famo import FAMO
from varalign.schedules.named.imtl import IMTL
from varalign.schedules.named.imtl_g import IMTLG
from varalign.schedules.named.uncertainty import Uncertainty

NAMES = ("uncertainty", "dwa", "famo", "imtl", "imtl-g")
STATS = DirectionStats(*[torch.zeros(3)] * 7, candidates=3, logit_scale=torch.tensor(1.0))
LOSSES = [(2.0, 1.0), (1.8, 1.2), (1.7, 0.6), (1.0, 0.5), (1.1, 0.4), (0.9, 0.45), (0.7, 0.3)]


def given(weighting: Weighting, losses: list[tuple[float, float]]) -> list[float]:
    return [float(weighting(STATS, STATS, losses=torch.tensor(pair))[0]) for pair in losses]


def softmax(a: float, b: float) -> float:
    return math.exp(a) / (math.exp(a) + math.exp(b))


def test_uncertainty_and_imtl_follow_their_slopes() -> None:
    s, t, kendall, imtl = [0.0, 0.0], [0.0, 0.0], [], []
    for pair in LOSSES:
        kendall.append(softmax(-s[0], -s[1]))
        imtl.append(softmax(*t))
        s = [x - 0.1 * (1 - math.exp(-x) * loss) for x, loss in zip(s, pair, strict=True)]
        t = [x - 0.1 * (math.exp(x) * loss - 1) for x, loss in zip(t, pair, strict=True)]
    assert given(Uncertainty(rate=0.1), LOSSES) == pytest.approx(kendall, abs=1e-6)
    assert given(IMTL(rate=0.1), LOSSES) == pytest.approx(imtl, abs=1e-6)


@pytest.mark.parametrize("kind", [Uncertainty, IMTL])
def test_with_constant_losses_the_weights_end_in_inverse_proportion(kind: type[Weighting]) -> None:
    assert given(kind(rate=0.1), [(3.0, 1.0)] * 400)[-1] == pytest.approx(0.25, abs=1e-3)  # type: ignore[call-arg]


def test_dwa_compares_the_two_periods_before() -> None:
    means = [tuple(sum(pair[d] for pair in LOSSES[i : i + 2]) / 2 for d in (0, 1)) for i in (0, 2, 4)]
    third, fourth = (softmax(*(means[i][d] / means[i - 1][d] / 2.0 for d in (0, 1))) for i in (1, 2))
    assert given(DWA(period=2), LOSSES) == pytest.approx([0.5] * 4 + [third] * 2 + [fourth], abs=1e-6)


def test_famo_is_algorithm_1() -> None:
    xi, wanted = [0.0, 0.0], []
    for step, pair in enumerate(LOSSES):
        if step:
            z = [softmax(xi[0], xi[1]), softmax(xi[1], xi[0])]
            fall = [math.log(LOSSES[step - 1][d]) - math.log(pair[d]) for d in (0, 1)]
            slope = [sum(z[k] * ((k == d) - z[d]) * fall[k] for k in (0, 1)) for d in (0, 1)]
            xi = [xi[d] - 0.5 * (slope[d] + 0.01 * xi[d]) for d in (0, 1)]
        a, b = softmax(xi[0], xi[1]) / pair[0], softmax(xi[1], xi[0]) / pair[1]
        wanted.append(a / (a + b))
    assert given(FAMO(rate=0.5, decay=0.01), LOSSES) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_state_goes_on_nan_changes_nothing_and_eval_keeps_nothing(name: str) -> None:
    def new() -> Weighting:
        return DWA(period=2) if name == "dwa" else build_schedule(name)  # type: ignore[return-value]

    whole, cut = new(), new()
    wanted = given(whole, LOSSES)
    first = given(cut, LOSSES[:3])
    weights = cut(STATS, STATS, losses=torch.tensor([math.nan, 1.0]))
    assert float(weights[0]) == first[-1] and float(weights.sum()) == pytest.approx(1.0)
    cut.eval()
    given(cut, [(9.0, 1.0)] * 3)
    again = new()
    again.load_state_dict(cut.state_dict())
    assert first + given(again, LOSSES[3:]) == wanted
    with pytest.raises(ValueError, match="pass losses"):
        whole(STATS, STATS)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DWA, {"period": 0}),
        (DWA, {"temperature": 0.0}),
        (FAMO, {"rate": math.nan}),
        (FAMO, {"decay": -1.0}),
        (IMTL, {"rate": math.inf}),
        (Uncertainty, {"rate": -0.1}),
    ],
)
def test_settings_out_of_range_are_refused(kind: type[Weighting], options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be"):
        kind(**options)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_trains_under_them(name: str) -> None:
    u = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = ContrastiveLoss(schedule=name)(u, u.detach().flip(0), 5.0)
    found.loss.backward()
    assert float(found.weights.sum()) == pytest.approx(1.0) and not found.weights.requires_grad
    assert bool(torch.isfinite(u.grad).all())


def test_imtl_g_goes_equally_far_along_both_gradients() -> None:
    generator = torch.Generator().manual_seed(3)
    u, v = (torch.randn(n, 6, generator=generator, requires_grad=True) for n in (5, 7))
    ids = torch.arange(5), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    unit = torch.nn.functional.normalize
    out = ContrastiveLoss(IMTLG())(unit(u, dim=1), unit(v, dim=1), 10.0, *ids)
    out.loss.backward()
    assert u.grad is not None and v.grad is not None
    x, y = (unit(t.detach(), dim=1).requires_grad_() for t in (u, v))
    alone = ContrastiveLoss("fixed")(x, y, 10.0, *ids)
    pulls = [
        torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, (x, y), retain_graph=True)])
        for loss in (alone.loss_i2t, alone.loss_t2i)
    ]
    mixed = out.weights[0] * pulls[0] + out.weights[1] * pulls[1]
    along = [float(mixed @ pull / pull.norm()) for pull in pulls]
    assert along[0] == pytest.approx(along[1], rel=1e-5)
    assert abs(float(out.weights[0]) - 0.5) > 1e-3 and float(out.weights.sum()) == pytest.approx(1)
    with torch.no_grad():  # nothing pulls: equal weights
        assert ContrastiveLoss(IMTLG())(x, y, 10.0, *ids).weights.tolist() == [0.5, 0.5]
