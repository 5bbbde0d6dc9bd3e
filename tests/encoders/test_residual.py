"""The residual head starts at the closed form and learns the rest."""

from __future__ import annotations

import pytest
import torch
from varalign.canonical import RunningCovariance, Whitening
from varalign.encoders.head_shape import HeadShape
from varalign.encoders.heads import build_head, closed_form_heads
from varalign.encoders.residual import ResidualHead


def fitted(pairs: int = 400):
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(pairs, 5, generator=generator)
    x = common @ torch.randn(5, 12, generator=generator) + 0.3 * torch.randn(pairs, 12, generator=generator)
    y = common @ torch.randn(5, 9, generator=generator) + 0.3 * torch.randn(pairs, 9, generator=generator)
    covariance = RunningCovariance(12, 9)
    covariance.update(x, y)
    return x, y, covariance, Whitening(covariance).solve(ridge=1, power=0.5, dimensions=4)


def shape(hidden_dim: int, **rates: object) -> HeadShape:
    return HeadShape(4, "residual", hidden_dim, **rates)  # type: ignore[arg-type]


def test_heads_start_at_the_closed_form_and_load_from_their_shape():
    x, y, covariance, found = fitted()
    sizes = shape(16, dropout=0.5, input_noise=1.0)
    image, text = closed_form_heads(sizes, found, covariance)
    image.eval()
    projected = image(x).detach()
    assert torch.allclose(torch.nn.functional.normalize(projected, dim=1), found.embed_images(x), atol=1e-5)
    assert float(projected.norm(dim=1).pow(2).mean()) == pytest.approx(1.0, rel=1e-4)
    assert float(projected.norm(dim=1).mean()) == pytest.approx(1.0, rel=0.15)
    with torch.no_grad():
        for p in image.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    copy = build_head(12, sizes)
    assert not any(bool(p.any()) for name, p in copy.named_parameters() if not name.startswith("residual.0"))
    copy.load_state_dict(image.state_dict())
    assert torch.equal(copy.eval()(x), image(x))
    text.train()(y).square().sum().backward()
    assert all(p.grad is not None for p in text.parameters())


def test_without_a_perceptron_and_with_a_fixed_map_nothing_trains():
    _, _, covariance, found = fitted()
    _, fixed = closed_form_heads(shape(0, train_map=False), found, covariance)
    assert isinstance(fixed, ResidualHead)
    assert fixed.residual is None and not any(p.requires_grad for p in fixed.parameters())


def test_heads_leave_the_random_state_alone_and_follow_their_seed():
    _, _, covariance, found = fitted(50)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, _ = closed_form_heads(shape(8), found, covariance, seed=1)
    assert torch.equal(torch.rand(3), expected)
    same, _ = closed_form_heads(shape(8), found, covariance, seed=1)
    other, _ = closed_form_heads(shape(8), found, covariance, seed=2)
    assert torch.equal(one.residual[0].weight, same.residual[0].weight)
    assert not torch.equal(one.residual[0].weight, other.residual[0].weight)
