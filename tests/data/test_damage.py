"""Damage: the rates are met, and what happens depends on (seed, epoch, row) alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from varalign.data.damage import noisy_captions, noisy_pixels
from varalign.data.draws import noise_draws
from varalign.data.noise import Noise, parse_noise

CAPTIONS = [" ".join(f"w{(7 * row + place) % 50}" for place in range(3 + row % 9)) for row in range(200)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 5), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_batch_is_damaged_as_the_whole_set_is(seed, epoch, drop, replace, shuffle):
    noise = Noise(drop_words=drop, replace_words=replace, shuffle_words=shuffle)
    vocabulary = sorted({word for caption in CAPTIONS for word in caption.split()})
    whole = noisy_captions(CAPTIONS, noise, seed, epoch)
    rows = np.array([150, 3, 77])
    part = noisy_captions([CAPTIONS[row] for row in rows], noise, seed, epoch, rows=rows, vocabulary=vocabulary)
    assert part == [whole[row] for row in rows]


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_rates_are_met(rate):
    before = [caption.split() for caption in CAPTIONS * 20]
    words = sum(map(len, before))
    dropped = [caption.split() for caption in noisy_captions(CAPTIONS * 20, Noise(drop_words=rate), 0)]
    # about 28,000 words: five deviations of a share are 0.015; the word that is always kept costs up to 0.02 at 0.5
    assert 1 - sum(map(len, dropped)) / words == pytest.approx(rate, abs=0.04)
    replaced = [caption.split() for caption in noisy_captions(CAPTIONS * 20, Noise(replace_words=rate), 0)]
    assert [len(words) for words in replaced] == [len(words) for words in before]
    changed = sum(a != b for old, new in zip(before, replaced, strict=True) for a, b in zip(old, new, strict=True))
    assert changed / words == pytest.approx(rate, abs=0.016)


def test_shuffling_keeps_the_words_and_dropping_keeps_one():
    shuffled = noisy_captions(CAPTIONS, Noise(shuffle_words=1.0), 0)
    assert shuffled != CAPTIONS
    assert [sorted(caption.split()) for caption in shuffled] == [sorted(caption.split()) for caption in CAPTIONS]
    assert all(len(caption.split()) == 1 for caption in noisy_captions(CAPTIONS, Noise(drop_words=1.0), 0))
    assert noisy_captions(["", " ", "a  b"], Noise(drop_words=1e-9, replace_words=1e-9), 0) == ["", " ", "a  b"]
    assert noisy_captions(["one", "one one"], Noise(replace_words=1.0), 0) == ["one", "one one"]  # no other word


def test_epochs_and_seeds_differ_and_repeat():
    noise = Noise(drop_words=0.5)
    assert noisy_captions(CAPTIONS, noise, 1, 0) == noisy_captions(CAPTIONS, noise, 1, 0)
    assert len({tuple(noisy_captions(CAPTIONS, noise, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_the_hash_is_even_and_uncorrelated():
    rows, places = (part.ravel() for part in np.meshgrid(np.arange(1000), np.arange(100), indexing="ij"))
    numbers = noise_draws("blur", 0, 0, rows, places)
    counts = np.bincount((numbers * 100).astype(int), minlength=100)
    assert ((counts - 1000) ** 2 / 1000).sum() < 180  # chi squared, 99 degrees: 99.999 % lie below 173
    for other in (
        noise_draws("blur", 1, 0, rows, places),
        noise_draws("occlude", 0, 0, rows, places),
        np.roll(numbers, 1),
    ):
        assert abs(np.corrcoef(numbers, other)[0, 1]) < 0.016  # five deviations of 100,000


def pixels(batch: int, size: int = 24) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 3, size, size)).astype(np.float32)


def test_pixel_damage_depends_on_the_row_alone():
    noise = parse_noise("blur=0.5,pixel-noise=0.5,occlude=0.5")
    images, rows = pixels(40), np.arange(40) + 7
    before = images.copy()
    whole = noisy_pixels(images, rows, noise, seed=2)
    assert np.array_equal(images, before) and whole.dtype == np.float32
    order = np.array([31, 4, 4, 17])
    part = noisy_pixels(images[order], rows[order], noise, seed=2)
    assert np.array_equal(part, whole[order])
    assert not np.array_equal(noisy_pixels(images, rows, noise, seed=2, epoch=1), whole)


def test_each_kind_does_what_it_says():
    images, rows = pixels(300), np.arange(300)
    blurred = noisy_pixels(images, rows, parse_noise("blur=1:0.1"), 0)
    assert blurred.std() < 0.3 * images.std()
    flat = np.full((1, 3, 9, 17), 2.5, dtype=np.float32)
    assert noisy_pixels(flat, np.zeros(1), parse_noise("blur=1:0.2"), 0) == pytest.approx(flat, abs=1e-5)
    added = noisy_pixels(images, rows, parse_noise("pixel-noise=1:0.7"), 0) - images
    assert added.std() == pytest.approx(0.7, rel=0.01) and abs(added.mean()) < 0.01
    covered = (noisy_pixels(images, rows, parse_noise("occlude=1"), 0) == 0).mean(axis=(1, 2, 3))
    assert covered == pytest.approx(np.full(300, 0.25))
    share = (noisy_pixels(images, rows, parse_noise("occlude=0.3"), 0) == 0).any(axis=(1, 2, 3)).mean()
    assert share == pytest.approx(0.3, abs=0.13)  # five deviations of 300
    assert noisy_pixels(images, rows, Noise(), 0) is images
    with pytest.raises(ValueError, match=r"wanted float32 \(B, 3, H, W\).*float64"):
        noisy_pixels(images.astype(np.float64), rows, Noise(), 0)
