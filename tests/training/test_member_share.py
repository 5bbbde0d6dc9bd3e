"""The members' share by held-out losses whose hubs are corrected."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize
from varalign.canonical.hub_correction import TRAINED_SHARPNESS
from varalign.canonical.voices.held_out import Scores, hits_at_1, losses_at
from varalign.losses.pair_loss import pair_losses
from varalign.training.mixing.member_share import SHARES, choose_share


def views(seed: int, noise: float, *, blocks: int = 3, size: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """(b, n, D) images and texts that share a part, and a bank of pairs in the last block."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(blocks, size, 16, generator=torch.Generator().manual_seed(9))
    both = (common + noise * torch.randn(blocks, size, 16, generator=generator) for _ in range(2))
    u, v = (normalize(side, dim=-1) for side in both)
    return u, v


def scores(seed: int, noise: float, *, bank: bool = True) -> list[Scores]:
    u, v = views(seed, noise)
    scored = [Scores(u[row] @ v[row].T, None, u[2] @ v[row].T, v[2] @ u[row].T) for row in range(2)]
    return scored if bank else [one.bare() for one in scored]


@pytest.mark.parametrize("bank", [True, False])
def test_better_members_have_the_larger_share_and_useless_ones_none(bank: bool) -> None:
    closed = scores(0, 1.0, bank=bank)
    shares = [choose_share(closed, scores(1, noise, bank=bank))[0] for noise in (0.3, 1.0, 30.0)]
    assert shares[0] == SHARES[-1] > shares[1] > shares[2] == 0


def test_corrected_losses_and_hits_are_those_of_scores_less_priors() -> None:
    """Tolerance 1e-5: the same sums in float32, in another order."""
    u, v = views(0, 1.0)
    scale = 12.0
    tau = TRAINED_SHARPNESS * scale
    of_texts = torch.stack([(tau * (u[2] @ block.T)).logsumexp(0) / tau for block in v[:2]])
    of_images = torch.stack([(tau * (v[2] @ block.T)).logsumexp(0) / tau for block in u[:2]])
    scored = scores(0, 1.0)
    found, hits = losses_at(scored, scale), hits_at_1(scored, scale)
    for block in range(2):
        s, right = u[block] @ v[block].T, torch.arange(40)
        i2t, t2i = s - of_texts[block], (s - of_images[block][:, None]).T
        expected = sum(torch.nn.functional.cross_entropy(scale * z, right, reduction="none") for z in (i2t, t2i)) / 2
        part = slice(40 * block, 40 * block + 40)
        torch.testing.assert_close(found[part], expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(hits[part], ((i2t.argmax(1) == right).float() + (t2i.argmax(1) == right).float()) / 2)
    assert hits_at_1([one.bare() for one in scored], scale).tolist() != hits.tolist()


def test_positives_of_a_corrected_loss_are_means_of_their_scores() -> None:
    s, positive = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0)), torch.eye(5).bool().repeat(2, 1, 1)
    images, texts = torch.rand(2, 2, 5, generator=torch.Generator().manual_seed(1))
    plain = pair_losses(s, 3.0, priors=(images, texts))
    torch.testing.assert_close(pair_losses(s, 3.0, positive, priors=(images, texts)), plain)
    torch.testing.assert_close(pair_losses(s, 3.0, priors=(0 * images, 0 * texts)), pair_losses(s, 3.0))
    positive[:, 0, 1] = True
    first = pair_losses(s, 3.0, positive, priors=(images, texts))[:, 0]
    z, w = 3 * (s - texts[:, None, :])[:, 0], 3 * (s - images[:, :, None])[:, :, 0]
    expected = (z.logsumexp(1) - z[:, :2].mean(1) + w.logsumexp(1) - w[:, 0]) / 2
    torch.testing.assert_close(first, expected)


def test_blocks_are_pooled() -> None:
    """One fold alone is too little for a share that both together give."""
    closed, members = ([*scores(2 + side, 1.0), *scores(4 + side, 1.0)] for side in (0, 1))
    whole, scale, _ = choose_share(closed, members)
    assert whole > 0 and 1 <= scale <= 100
