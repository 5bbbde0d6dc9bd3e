"""Voices fitted on pairs and on unpaired images and texts, against the definition written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from varalign.canonical.choice import Grid
from varalign.canonical.covariance import RunningCovariance
from varalign.canonical.maps import Whitening
from varalign.canonical.self_training import pseudo_pairs
from varalign.canonical.voices.fit import Fitted, fit_voices
from varalign.canonical.voices.voice_pairs import Pairs

ONE = {"closed-form": Grid(ridges=(1.0,), powers=(1.0,), dimensions=(8,), text_parts=())}


def drawn(images: int, seed: int, *, paired: bool = True) -> Pairs:
    """Noisy views of five common factors, a text an image; without partners the texts are of other images."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.Generator().manual_seed(99)
    to_images, to_texts = torch.randn(5, 40, generator=maps), torch.randn(5, 30, generator=maps)
    common = torch.randn(images, 5, generator=generator)
    other = common if paired else torch.randn(images, 5, generator=generator)
    x = common @ to_images + 2 * torch.randn(images, 40, generator=generator)
    y = other @ to_texts + 2 * torch.randn(images, 30, generator=generator)
    return Pairs(x, y, torch.arange(images) if paired else torch.zeros(0, dtype=torch.int64))


def test_a_round_is_the_closed_form_of_pairs_and_pseudo_pairs() -> None:
    pairs, dev, pool = drawn(20, 0), drawn(400, 1), drawn(300, 2, paired=False)
    alone = fit_voices(pairs, dev, voices=["closed-form"], grids=ONE)
    found = fit_voices(pairs, dev, voices=["closed-form"], grids=ONE, pool=pool)
    assert len(found.rounds) > 1 and found.rounds == sorted(found.rounds, reverse=True)
    assert found.rounds[0] == alone.weighing.loss and found.rounds[-1] == found.weighing.loss

    def solved(pseudo: tuple[Fitted, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        covariance = RunningCovariance(40, 30)
        covariance.update(pairs.images.double(), pairs.texts.double())
        for fit in pseudo:
            u, v = fit.mixture.embed_images(pool.images), fit.mixture.embed_texts(pool.texts)
            pseudo_pairs(u, v, fit.scale).add_to(covariance, pool.images.double(), pool.texts.double())
        maps = Whitening(covariance).solve(ridge=1.0, power=1.0, dimensions=8)
        return maps.embed_images(dev.images), maps.embed_texts(dev.texts)

    for wanted, u, v in (
        (solved(()), alone.mixture.embed_images(dev.images), alone.mixture.embed_texts(dev.texts)),
        (solved((alone,)), *_after_one_round(pairs, dev, pool)),
    ):
        torch.testing.assert_close(wanted[0] @ wanted[1].T, u @ v.T, atol=1e-4, rtol=0)


def _after_one_round(pairs: Pairs, dev: Pairs, pool: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("varalign.canonical.voices.fit.rounds_for", lambda images: 1)
        found = fit_voices(pairs, dev, voices=["closed-form"], grids=ONE, pool=pool)
    assert len(found.rounds) == 2
    return found.mixture.embed_images(dev.images), found.mixture.embed_texts(dev.texts)


def test_a_pool_that_does_not_help_changes_nothing() -> None:
    pairs, dev = drawn(300, 0), drawn(400, 1)
    noise = torch.Generator().manual_seed(3)
    shape = {"images": 30 * torch.randn(500, 40, generator=noise), "texts": 30 * torch.randn(500, 30, generator=noise)}
    alone = fit_voices(pairs, dev, voices=["closed-form"])
    found = fit_voices(pairs, dev, voices=["closed-form"], pool=replace(drawn(1, 0, paired=False), **shape))
    assert found.rounds == [alone.weighing.loss]
    assert torch.equal(found.mixture.embed_images(dev.images), alone.mixture.embed_images(dev.images))


def test_pools_are_taken_by_what_they_are_not_by_chance() -> None:
    """Pools whose texts, turned in space, have nothing in common with their images, and true ones."""
    taken = {"noise": 0, "true": 0}
    for seed in range(8):
        pairs, dev = drawn(60, 10 * seed), drawn(200, 10 * seed + 1)
        pool = drawn(300, 10 * seed + 2, paired=False)
        turned = torch.linalg.qr(torch.randn(30, 30, generator=torch.Generator().manual_seed(seed))).Q
        pools = {"noise": replace(pool, texts=pool.texts @ turned), "true": pool}
        for name, given in pools.items():
            found = fit_voices(pairs, dev, voices=["closed-form"], grids=ONE, pool=given)
            taken[name] += len(found.rounds) > 1
    assert taken == {"noise": 0, "true": 8}


def test_every_voice_is_refitted_in_the_folds_too() -> None:
    """Without a dev split the folds' fits have pseudo-pairs of their own: what is held out is in none of them."""
    pairs, pool, test = drawn(20, 1), drawn(300, 2, paired=False), drawn(300, 5)
    voices = ["closed-form", "kernel"]
    alone, found = fit_voices(pairs, voices=voices), fit_voices(pairs, voices=voices, pool=pool)
    assert found.settings == "cv" and len(found.parts) == 5 and len(found.rounds) > 1

    def hits(fit: Fitted) -> float:
        s = fit.mixture.embed_images(test.images) @ fit.mixture.embed_texts(test.texts).T
        return float((s.argmax(1) == torch.arange(len(s))).double().mean())

    assert hits(found) > hits(alone)


@pytest.mark.parametrize("side", ["images", "texts"])
def test_one_side_takes_its_partners_from_the_pairs(side: str) -> None:
    pairs, dev, pool = drawn(20, 0), drawn(400, 1), drawn(300, 2, paired=False)
    rows = pairs.images if side == "texts" else pairs.texts
    given = replace(pool, **{"texts" if side == "images" else "images": rows[:0]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("varalign.canonical.voices.fit.self_train", lambda first, refit, loss, rounds: [refit(first)])
        found = fit_voices(pairs, dev, voices=["closed-form"], grids=ONE, pool=given)
    alone = fit_voices(pairs, dev, voices=["closed-form"], grids=ONE)
    x = pool.images if side == "images" else pairs.images
    y = pool.texts if side == "texts" else pairs.texts
    u, v = alone.mixture.embed_images(x), alone.mixture.embed_texts(y)
    partners = pseudo_pairs(u, v, alone.scale, images=side == "images", texts=side == "texts")
    covariance = RunningCovariance(40, 30)
    covariance.update(pairs.images, pairs.texts)
    partners.add_to(covariance, x, y)
    assert covariance.count == pytest.approx(20 + 300 * (0.75 if side == "images" else 0.25))
    maps = Whitening(covariance).solve(ridge=1.0, power=1.0, dimensions=8)
    wanted = maps.embed_images(dev.images) @ maps.embed_texts(dev.texts).T
    reached = found.mixture.embed_images(dev.images) @ found.mixture.embed_texts(dev.texts).T
    torch.testing.assert_close(reached, wanted, atol=1e-4, rtol=0)
