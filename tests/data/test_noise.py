"""Noise: what is parsed is what is printed; swaps are derangements, and every swapped pair is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from varalign.data.noise import NOISE_KINDS, Noise, noisy_pairs, parse_noise

IDS = np.repeat(np.arange(60), 5)


def test_parse_and_print():
    noise = parse_noise("swap-images=0.4, drop_words=0.1,blur=1:0.05")
    assert noise == Noise(swap_images=0.4, drop_words=0.1, blur=1.0, blur_strength=0.05)
    assert str(noise) == "swap-images=0.4,drop-words=0.1,blur=1:0.05"
    assert parse_noise("none") == parse_noise("") == Noise() and str(Noise()) == "none" and not Noise()
    assert noise.pairs and noise.words and noise.pixels and not parse_noise("occlude=0.1").pairs


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.lists(st.floats(1e-6, 1), min_size=3, max_size=3))
def test_what_is_printed_is_read_back(rates, strengths):
    noise = Noise(*rates, *strengths)
    again = parse_noise(str(noise))
    assert str(again) == str(noise)
    assert all(getattr(again, kind.replace("-", "_")) == getattr(noise, kind.replace("-", "_")) for kind in NOISE_KINDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("swap=0.1", r"wanted kinds out of swap-images, .*occlude, got 'swap'"),
        ("swap-images", "wanted swap-images=RATE with numbers, got no rate"),
        ("blur=x", "wanted blur=RATE or RATE:STRENGTH with numbers, got 'x'"),
        ("swap-images=0.1:3", "swap-images=RATE with numbers"),
        ("swap-images=1.5", "swap-images: wanted a rate between 0 and 1, got 1.5"),
        ("drop-words=nan", "drop-words: wanted a rate between 0 and 1, got nan"),
        ("drop-words=-1", "got -1"),
        ("blur=0.1,blur=0.2", "blur stands twice"),
        ("occlude=0.1:2", "occlude: wanted a strength between 0 and 1, got 2"),
        ("blur=0.1:0", "blur: wanted a strength above 0, got 0"),
        ("blur=0.1,", "got ''"),
    ],
)
def test_faults_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_noise(text)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 1.0])
def test_swapped_images_exchange_all_captions_and_none_keeps_its_own(rate):
    rows = np.arange(10, 60)
    new, wrong = noisy_pairs(IDS, rows, Noise(swap_images=rate), seed=3)
    assert wrong.sum() == 5 * round(rate * 50) and not wrong[:50].any()
    assert np.array_equal(new[~wrong], IDS[~wrong])
    assert Counter(new.tolist()) == Counter(IDS.tolist())
    for image in range(60):
        assert len(set(new[image == IDS])) == 1  # an image's captions stay together


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_swapped_captions_all_become_wrong(rate):
    new, wrong = noisy_pairs(IDS, np.arange(60), Noise(swap_captions=rate), seed=0)
    assert wrong.sum() == round(rate * 300)
    assert Counter(new.tolist()) == Counter(IDS.tolist())


def test_both_swaps_never_bring_a_caption_home():
    _, only_images = noisy_pairs(IDS, np.arange(60), Noise(swap_images=0.4), seed=1)
    _, both = noisy_pairs(IDS, np.arange(60), Noise(swap_images=0.4, swap_captions=1.0), seed=1)
    assert only_images.sum() == 120 and both.all()


def test_more_noise_contains_less_noise():
    wrong = [noisy_pairs(IDS, np.arange(60), Noise(swap_images=rate), seed=5)[1] for rate in (0.2, 0.4, 0.8)]
    assert (wrong[0] <= wrong[1]).all() and (wrong[1] <= wrong[2]).all()


def test_nobody_to_swap_with():
    ids = np.array([0, 0, 1])
    for noise in (Noise(swap_images=1.0), Noise(swap_captions=1.0)):
        new, wrong = noisy_pairs(ids, np.array([0]), noise, seed=0)
        assert np.array_equal(new, ids) and not wrong.any()
    assert noisy_pairs(IDS, np.arange(60), Noise(swap_images=0.01), seed=0)[1].sum() == 10  # one rounds to two


def test_needs_no_torch():
    subprocess.run(
        [sys.executable, "-c", "import sys, varalign.data.damage; sys.exit('torch' in sys.modules)"], check=True
    )
