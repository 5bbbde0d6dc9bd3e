"""Word dropout against a plain loop over captions."""

from __future__ import annotations

import numpy as np
import pytest
from varalign.data.tokens.word_dropout import drop_words

START, END, PAD = 1, 2, 0


def captions(count: int, width: int = 9) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    lengths = random.integers(2, width + 1, count)
    ids = np.full((count, width), PAD)
    for row, length in zip(ids, lengths, strict=False):
        row[:length] = [START, *range(10, 8 + length), END]
    return ids, lengths


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.94])
def test_what_stays_keeps_its_order_and_its_marks(rate: float) -> None:
    ids, lengths = captions(200)
    rows = np.arange(200) + 5000
    got, left = drop_words(ids, lengths, rows, rate, pad_id=PAD, seed=1, epoch=2)
    for before, after, length, short in zip(ids, got, lengths, left, strict=False):
        words = after[1 : short - 1].tolist()
        assert after[0] == START and after[short - 1] == END and (after[short:] == PAD).all()
        assert words == sorted(words) and set(words) <= set(before[1 : length - 1].tolist())
        assert bool(words) == bool(length > 2)
    if rate == 0.0:
        assert (got == ids).all() and (left == lengths).all()


def test_about_as_many_as_asked_for_are_left_out() -> None:
    ids, lengths = captions(4000)
    _, left = drop_words(ids, lengths, np.arange(4000), 0.2, pad_id=PAD, seed=0, epoch=0)
    long = lengths == 9
    assert (left[long] - 2).sum() / (7 * long.sum()) == pytest.approx(0.8, abs=0.02)


def test_a_pure_function_of_seed_epoch_and_row() -> None:
    ids, lengths = captions(50)
    rows = np.arange(50)
    whole, _ = drop_words(ids, lengths, rows, 0.4, pad_id=PAD, seed=1, epoch=2)
    some, _ = drop_words(ids[30:20:-1], lengths[30:20:-1], rows[30:20:-1], 0.4, pad_id=PAD, seed=1, epoch=2)
    assert (some == whole[30:20:-1]).all()
    for seed, epoch in ((2, 2), (1, 3)):
        other, _ = drop_words(ids, lengths, rows, 0.4, pad_id=PAD, seed=seed, epoch=epoch)
        assert (other != whole).any()
