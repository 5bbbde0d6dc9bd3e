"""Pair scores: what a wrong pair's score is drawn from, the estimated share on made-up and on real features."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path

import pytest
import torch
from varalign.canonical import pair_scores
from varalign.canonical.best import best_captions
from varalign.canonical.mixture import Mixture, bin_centres, bins_of, fit_mixture, normal_density, smoothed_density
from varalign.canonical.pair_scores import wrong_together


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One ridge, two rounds, few bootstrap samples."""
    scoring = import_module("varalign.canonical.pair_scores")
    for name, value in {"RIDGES": (1.0,), "ROUNDS": 2, "SAMPLES": 20}.items():
        monkeypatch.setattr(scoring, name, value)


def made_up(images: int, captions: int = 3, noise: float = 1.0, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(images, 16, generator=g)
    ids = torch.arange(images).repeat_interleave(captions)
    a, b = torch.randn(16, 40, generator=g), torch.randn(16, 24, generator=g)
    x = z @ a + noise * 4 * torch.randn(images, 40, generator=g)
    y = z[ids] @ b + noise * 4 * torch.randn(len(ids), 24, generator=g)
    return x, y, ids


def swapped(ids: torch.Tensor, images: int, share: float, by: str, seed: int = 1) -> torch.Tensor:
    """Each chosen image (or caption) gets the captions (the place) of the next chosen one."""
    g = torch.Generator().manual_seed(seed)
    count = images if by == "image" else len(ids)
    chosen = torch.randperm(count, generator=g)[: round(share * count)]
    if by == "image":
        table = torch.arange(images)
        table[chosen] = chosen.roll(1)
        return table[ids]
    new = ids.clone()
    new[chosen] = ids[chosen.roll(1)]
    return new


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("by", ["image", "pair"])
def test_the_share_comes_back_and_wrong_scores_are_standard(share, by):
    x, y, ids = made_up(1000)
    given = swapped(ids, 1000, share, by)
    found = pair_scores(x, y, given, by=by)
    # Made-up right pairs have left-skewed scores (skewness -0.9 by the caption; real features: -0.1), which the fitted
    # normal cannot follow: their low tail counts as wrong, about 0.05 of the pairs. The interval knows of it.
    assert found.wrong_share == pytest.approx(share, abs=0.04 if by == "image" else 0.06)
    assert found.low <= share <= found.high <= found.low + 0.2 and found.low <= found.wrong_share <= found.high
    wrong = given != ids
    if share:
        scores = found.scores[wrong]
        # Mean 0 and deviation 1, within four standard errors (captions of an image are not independent: by image).
        error = 4 / math.sqrt(share * 1000)
        assert abs(float(scores.mean())) < error and abs(float(scores.std()) - 1) < error
        assert float(found.probability_right[~wrong].mean()) > float(found.probability_right[wrong].mean()) + 0.5


@pytest.mark.parametrize("by", ["image", "pair"])
def test_the_interval_covers_the_truth_on_few_images(by, quick, monkeypatch):
    monkeypatch.setattr(import_module("varalign.canonical.pair_scores"), "SAMPLES", 60)
    covered = 0
    for seed in range(6):
        share = (0.0, 0.2, 0.5)[seed % 3]
        x, y, ids = made_up(300, seed=seed)
        given = swapped(ids, 300, share, by, seed=seed + 9)
        found = pair_scores(x, y, given, by=by, seed=seed)
        covered += found.low <= float((given != ids).double().mean()) <= found.high
    assert covered >= 5  # a 95 % interval misses two of six once in thirty tries


@pytest.mark.parametrize("by", ["image", "pair"])
def test_how_captions_are_wrong_is_found_out(by, quick):
    x, y, ids = made_up(300)
    found = pair_scores(x, y, swapped(ids, 300, 0.4, by), by="auto")
    assert found.by == by


def test_wrong_together_by_its_definition():
    owner = torch.tensor([0, 0, 1, 1, 2, 2])
    assert wrong_together(torch.tensor([1.0, 1, 0, 0, 0, 0]), owner)
    assert not wrong_together(torch.tensor([1.0, 0, 1, 0, 0, 0]), owner)
    assert not wrong_together(torch.tensor([1.0, 0, 0]), torch.arange(3))  # one caption each: nothing to tell by


def test_best_captions_are_the_right_ones_of_wrong_pairs(quick, monkeypatch):
    x, y, ids = made_up(300, noise=0.3)
    given = swapped(ids, 300, 0.2, "image")
    found = pair_scores(x, y, given)
    images = torch.unique(given[given != ids])
    best, fits = best_captions(x, y, given, found, images)
    own = found.image_scores[images]
    assert float((ids[best] == images).double().mean()) > 0.8 and bool((fits > own).all())
    monkeypatch.setattr(import_module("varalign.canonical.best"), "MOST_TEXTS", 100)  # captions a few at a time
    again, scores = best_captions(x, y, given, found, images)
    assert torch.equal(again, best) and torch.allclose(scores, fits, atol=1e-4)


def test_unrelated_features_score_as_n01_and_are_found_wrong(quick, monkeypatch):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(800, 30, generator=g), torch.randn(800, 20, generator=g)
    # One round: further ones weigh what looks right by chance.
    monkeypatch.setattr(import_module("varalign.canonical.pair_scores"), "ROUNDS", 1)
    found = pair_scores(x, y, torch.arange(800))
    # A straight test of the claim: the quantiles of 800 held-out scores are those of N(0, 1), to four standard errors.
    for q in (0.05, 0.25, 0.5, 0.75, 0.95):
        z = math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * q - 1)))
        below = float((found.scores < z).double().mean())
        assert below == pytest.approx(q, abs=4 * math.sqrt(q * (1 - q) / 800))
    assert found.wrong_share > 0.6 or found.high > 0.9


def test_images_that_are_not_asked_for_have_no_score_and_no_say(quick):
    x, y, ids = made_up(200)
    rows = torch.arange(0, 150)
    found = pair_scores(x, y, ids, rows)
    assert bool(found.scores[ids >= 150].isnan().all()) and bool(found.image_scores[:150].isfinite().all())
    x[150:], y[ids >= 150] = float("nan"), float("nan")
    again = pair_scores(x, y, ids, rows)
    assert torch.equal(again.scores[ids < 150], found.scores[ids < 150]) and again.wrong_share == found.wrong_share


def test_copies_of_an_image_are_no_non_pairs(quick):
    x, y, ids = made_up(100, noise=0.3)
    both = torch.cat([x, x]), torch.cat([y, y]), torch.cat([ids, ids + 100])
    known = pair_scores(*both, image_ids=torch.arange(100).repeat(2))
    assert torch.allclose(known.image_scores[:100], known.image_scores[100:], atol=1e-4)
    assert known.wrong_share < 0.1


def test_equal_captions_are_no_non_pairs(quick):
    """Two images of each of 50 kinds, with equal captions; told apart, some non-pairs are as good as the pairs."""
    x, y, ids = made_up(50, noise=0.3)
    g = torch.Generator().manual_seed(3)
    features = torch.cat([x, x + 0.1 * torch.randn(x.shape, generator=g)]), torch.cat([y, y])
    owner = torch.cat([ids, ids + 50])
    known = pair_scores(*features, owner, text_ids=torch.arange(len(y)).repeat(2))
    apart = pair_scores(*features, owner, text_ids=torch.arange(2 * len(y)))
    assert known.image_scores.mean() > apart.image_scores.mean() + 0.2
    assert torch.equal(apart.scores, pair_scores(*features, owner).scores)
    assert known.wrong_share < 0.1
    with pytest.raises(ValueError, match="every text is right for every image"):
        pair_scores(*features, owner, text_ids=torch.zeros(2 * len(y), dtype=torch.int64))


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda x, y, ids: (x, y, ids, None, "word"), 'wanted "image", "pair" or "auto", got .word.'),
        (lambda x, y, ids: (x, y, ids / 2), "whole numbers"),
        (lambda x, y, ids: (x, y, ids[1:]), "one a text"),
        (lambda x, y, ids: (x[:50], y, ids), r"rows of the 50 images \(0 to 49\), got 50"),
        (lambda x, y, ids: (x, y, ids, torch.arange(9)), "at least 10 different images with captions, got 9"),
        (lambda x, y, ids: (x, y, ids, torch.arange(0)), "got 0"),
        (lambda x, y, ids: (x, y, ids, None, "image", torch.rand(100)), "image_ids: wanted 100 whole numbers"),
        (lambda x, y, ids: (x, y, ids, None, "image", torch.arange(9)), "image_ids: wanted 100 whole numbers"),
    ],
)
def test_what_cannot_be_scored_is_refused(change, message):
    x, y, ids, *rest = change(*made_up(100))
    options = dict(zip(("rows", "by", "image_ids"), rest, strict=False))
    with pytest.raises(ValueError, match=message):
        pair_scores(x, y, ids, **options)


def test_copies_count_as_one_image():
    x, y, ids = made_up(12)
    with pytest.raises(ValueError, match="at least 10 different images with captions, got 6"):
        pair_scores(x, y, ids, image_ids=torch.arange(12) // 2)


def test_nan_and_constant_features(quick):
    x, y, ids = made_up(100)
    constant = pair_scores(x, torch.ones_like(y), ids)
    assert bool(constant.scores.isfinite().all()) and 0 <= constant.low <= constant.high <= 1
    x[[4, 8]] = float("nan")
    with pytest.raises(ValueError, match=r"image_features.*2 of 100 rows: 4, 8"):
        pair_scores(x, y, ids)


def test_mixture_finds_known_parameters_and_its_posterior_never_falls():
    g = torch.Generator().manual_seed(0)
    scores = torch.cat([torch.randn(6000, generator=g), 3 + 1.2 * torch.randn(14000, generator=g)])
    counts = torch.bincount(bins_of(scores), minlength=len(bin_centres()))[None]
    share, mean, deviation = fit_mixture(counts, normal_density())[0].tolist()
    assert (share, mean, deviation) == pytest.approx((0.7, 3.0, 1.2), abs=0.03)
    table = Mixture(share, mean, deviation, normal_density()).probability_right(bin_centres())
    assert bool((table.diff() >= 0).all()) and float(table[0]) < 0.01 and float(table[-1]) > 0.99
    *first, skewness = fit_mixture(counts, normal_density(), skewed=True)[0].tolist()
    assert first == pytest.approx([0.7, 3.0, 1.2], abs=0.05) and abs(skewness) < 0.15
    null = torch.bincount(bins_of(torch.randn(200000, generator=g)), minlength=len(bin_centres()))
    assert float((smoothed_density(null) - normal_density()).abs().max()) < 0.01


def test_real_features_with_swapped_images(shared_data: Path, quick, monkeypatch):
    from safetensors.torch import load_file

    data = load_file(shared_data / "features" / "flickr8k.safetensors")
    x, y, ids = data["image_features"].float(), data["text_features"].float(), data["text_image_ids"].long()
    rows = (data["split"] == 0).nonzero()[:, 0][:600]
    table = torch.arange(len(x))
    chosen = rows[torch.randperm(600, generator=torch.Generator().manual_seed(0))[:240]]
    table[chosen] = chosen.roll(1)
    monkeypatch.setattr(import_module("varalign.canonical.pair_scores"), "RIDGES", (10.0,))
    found = pair_scores(x, y, table[ids], rows)
    assert found.wrong_share == pytest.approx(0.4, abs=0.06)


def test_scores_are_standardised_by_the_non_pairs_of_row_and_column() -> None:
    scoring = import_module("varalign.canonical.pair_scores")
    g = torch.Generator().manual_seed(0)
    u, v, own = torch.randn(7, 4, generator=g), torch.randn(20, 4, generator=g), torch.arange(20) // 3
    right = own == torch.arange(7)[:, None]
    right[2, 11] = True  # a text that stands at two images
    null = torch.zeros(scoring.BINS, dtype=torch.float64)
    found = scoring._scores(u, v, own, right, null)
    s = (u @ v.T).double()
    s[right] = math.nan
    z = torch.zeros(7, 20, dtype=torch.float64)
    for direction in (0, 1):
        mean = s.nanmean(direction, keepdim=True)
        z += ((u @ v.T).double() - mean) / ((s - mean) ** 2).nanmean(direction, keepdim=True).sqrt() / 2
    others = z.flatten()[::3][~right.flatten()[::3]]  # the sample: every third of them
    wanted = (z[own, torch.arange(20)] - others.mean()) / others.std(correction=0)
    assert torch.allclose(found, wanted, atol=1e-4) and int(null.sum()) == len(others)
    with pytest.raises(ValueError, match="every text is right for every image"):
        scoring._scores(u, v, own, torch.ones_like(right), null)
