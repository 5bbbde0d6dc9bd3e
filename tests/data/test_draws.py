"""Draws never change: recorded runs would not replay."""

from __future__ import annotations

import hashlib

import numpy as np
from varalign.data.draws import CAPTION, NOISE_STREAMS, ORDER, WORD_DROPOUT, hash_draws, name_key, noise_draws


def test_every_draw_is_what_it_has_always_been() -> None:
    digest = hashlib.sha256()
    rows = np.arange(5000) * 7
    for seed in (0, 1, 2**40, 12345678901234567):
        for epoch in (0, 1, 77):
            for purpose in (ORDER, CAPTION, WORD_DROPOUT, CAPTION | 5 << 8):
                digest.update(hash_draws(rows, seed, epoch, purpose).astype("<u8").tobytes())
            for stream in ("drop-words", "blur", "place", "replacement"):
                digest.update(noise_draws(stream, seed, epoch, rows, rows[::-1]).astype("<f8").tobytes())
    assert digest.hexdigest() == "13de36a281cca453223b6f9fd6c27840f9cae62d82a836cb07896d1455ba902f"
    assert list(NOISE_STREAMS.values()) == list(range(1, 11))


def test_a_name_has_one_key_in_every_unicode_form() -> None:
    assert name_key("caf\u00e9.jpg", 3) == name_key("cafe\u0301.jpg", 3) != name_key("caf\u00e9.jpg", 4)
    assert name_key("a.jpg", 0).hex() == "d4bd182120911c6f3ed25e42964552d9"
