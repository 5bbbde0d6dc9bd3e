"""The ensemble head: the closed form whole, perceptrons beside it."""

from __future__ import annotations

import math

import pytest
import torch
from varalign.canonical import RunningCovariance, Whitening
from varalign.encoders.ensemble import EnsembleHead, trained_in
from varalign.encoders.head_shape import MEMBER_DIM, HeadShape
from varalign.encoders.heads import build_head, closed_form_heads


def fitted(pairs: int = 80):
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(pairs, 4, generator=generator)
    x = common @ torch.randn(4, 9, generator=generator) + torch.randn(pairs, 9, generator=generator)
    y = common @ torch.randn(4, 7, generator=generator) + torch.randn(pairs, 7, generator=generator)
    covariance = RunningCovariance(9, 7)
    covariance.update(x, y)
    return x, y, covariance, Whitening(covariance).solve(ridge=1.0, power=0.5, dimensions=5)


def ensemble_heads(found, covariance, *, members: int, member_dim: int = MEMBER_DIM, hidden_dim: int = 8, **options):
    rates = {"input_noise": options.pop("noise", 0.0)}
    shape = HeadShape(
        found.dimensions + members * member_dim, "ensemble", hidden_dim, members=members, member_dim=member_dim, **rates
    )
    return closed_form_heads(shape, found, covariance, **options)


def test_untrained_it_is_the_closed_form():
    x, y, covariance, found = fitted()
    image_head, text_head = (head.eval() for head in ensemble_heads(found, covariance, members=3, hidden_dim=8))
    similarity = image_head(x) @ text_head(y).T
    torch.testing.assert_close(similarity, found.embed_images(x) @ found.embed_texts(y).T, atol=2e-6, rtol=0)


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_similarities_are_averaged_by_the_share(share):
    x, y, covariance, found = fitted()
    heads = [head.eval() for head in ensemble_heads(found, covariance, members=3, member_dim=4, hidden_dim=8)]
    (closed_x, members_x), (closed_y, members_y) = heads[0].parts(x), heads[1].parts(y)
    for head in heads:
        head.share.fill_(share)
    each = torch.einsum("ikd,jkd->kij", members_x.unflatten(1, (3, 4)), members_y.unflatten(1, (3, 4))) * 3
    assert each.abs().max() <= 1 + 1e-5, "a member's vectors have length 1 / √K"
    expected = (1 - share) * closed_x @ closed_y.T + share * each.mean(0)
    embeddings = [head(features) for head, features in zip(heads, (x, y), strict=True)]
    torch.testing.assert_close(embeddings[0] @ embeddings[1].T, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(embeddings[0].norm(dim=1), torch.ones(len(x)))
    assert embeddings[0].shape == (len(x), found.dimensions + 12)


def test_training_sees_the_members_alone_and_every_member_learns():
    x, _, covariance, found = fitted()
    head, _ = ensemble_heads(found, covariance, members=3, member_dim=4, hidden_dim=8, noise=0.5)
    embeddings = head.train()(x)
    assert embeddings.shape == (len(x), 12)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(x)))
    (embeddings * torch.randn(12)).sum().backward()
    assert (head.hidden.grad.flatten(1).norm(dim=1) > 0).all()
    assert head.closed_map.grad is None


def test_members_and_sides_begin_apart_and_by_the_seed():
    *_, covariance, found = fitted()
    state = torch.get_rng_state()
    image, text = ensemble_heads(found, covariance, seed=3, members=2, hidden_dim=7)
    again, _ = ensemble_heads(found, covariance, seed=3, members=2, hidden_dim=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(image.hidden, again.hidden)
    assert not torch.equal(image.hidden[0], image.hidden[1])
    assert not torch.equal(image.hidden[:, :7], text.hidden)


def test_a_head_is_rebuilt_from_sizes_and_state():
    x, _, covariance, found = fitted()
    head, _ = ensemble_heads(found, covariance, members=2, hidden_dim=8, logit_scale=20.0)
    head.share.fill_(0.5)
    again = build_head(9, HeadShape(5 + 2 * MEMBER_DIM, "ensemble", 8, members=2))
    again.load_state_dict(head.state_dict())
    assert torch.equal(head.eval()(x), again.eval()(x))
    assert math.isclose(float(again.logit_scale), 20.0)


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="leave the closed form none of 8"):
        EnsembleHead(5, HeadShape(8, "ensemble", members=2, member_dim=4))
    with pytest.raises(ValueError, match="members and member_dim are at least 1"):
        EnsembleHead(5, HeadShape(8, "ensemble", members=0))
    with pytest.raises(ValueError, match=r"within \[0, 1\)"):
        HeadShape(700, "ensemble", dropout=1.0)


def test_members_multiply_in_bfloat16_in_training_alone():
    """Tolerance 0.02 for bfloat16's 8 bits; the weights and their gradients stay float32."""
    x, _, covariance, found = fitted()
    head, _ = ensemble_heads(found, covariance, members=3, member_dim=4, hidden_dim=8)
    whole, evaluated = head.train()(x), head.eval()(x)
    trained_in(head, torch.bfloat16)
    torch.testing.assert_close(head.eval()(x), evaluated, atol=0, rtol=0)
    halved = head.train()(x)
    assert halved.dtype == torch.float32 and not torch.equal(halved, whole)
    torch.testing.assert_close(halved, whole, atol=0.02, rtol=0)
    halved.square().sum().backward()
    assert head.hidden.grad.dtype == head.hidden.dtype == torch.float32
    trained_in(head, None)
    torch.testing.assert_close(head.train()(x), whole, atol=0, rtol=0)
