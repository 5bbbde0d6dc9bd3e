"""Random numbers that are pure functions of seed, epoch and row: hashes, not the stream of a generator.

They depend neither on workers, nor on the batch, nor on what was drawn before, nor on NumPy's version. A number once
given to a purpose stays, or recorded runs would not replay.
"""

from __future__ import annotations

import hashlib
import unicodedata

import numpy as np
from numpy.typing import NDArray

ORDER, CAPTION, WORD_DROPOUT, TOWERS, SHARD_ORDER = 1, 2, 3, 4, 5
"""Purposes of `hash_draws`: the order of an epoch, the caption of an image, the words left out of a caption, the
seed of what other libraries' towers draw, the order of shards."""

NOISE_STREAMS = {
    "swap-images": 1,
    "swap-captions": 2,
    "drop-words": 3,
    "replace-words": 4,
    "shuffle-words": 5,
    "blur": 6,
    "pixel-noise": 7,
    "occlude": 8,
    "replacement": 9,
    "place": 10,
}
"""Streams of `noise_draws`, and second seeds of the generators for what is drawn once a run or once an image."""

_GOLDEN = 0x9E3779B97F4A7C15
_64_BITS = 0xFFFFFFFFFFFFFFFF


def hash_draws(rows: NDArray[np.int64], seed: int, epoch: int, purpose: int) -> NDArray[np.uint64]:
    """A uniform uint64 for each row; `purpose` keeps draws for different things apart."""
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, purpose):
        key = _mix(key ^ np.uint64(part & _64_BITS))
    return _mix(_mix(rows.astype(np.uint64)) ^ key)


def noise_draws(
    stream: str, seed: int, epoch: int, rows: NDArray[np.int64], places: NDArray[np.int64]
) -> NDArray[np.float64]:
    """A number in [0, 1) for each (row, place); `stream` is one of `NOISE_STREAMS`.

    A generator for every caption would cost more than the damage itself.
    """
    state = np.zeros(1, dtype=np.uint64)
    for part in (NOISE_STREAMS[stream], seed, epoch):
        state = _mix(state + np.uint64(part * _GOLDEN & _64_BITS))  # NumPy's integers would warn
    for index in (rows, places):
        state = _mix(state + index.astype(np.uint64) * np.uint64(_GOLDEN))
    numbers: NDArray[np.float64] = (state >> np.uint64(11)) * 2.0**-53
    return numbers


def name_key(name: str, seed: int) -> bytes:
    """A key to sort names by for a draw by seed: the same on every machine and for every Unicode form of the name."""
    text = f"{seed}\0{unicodedata.normalize('NFC', name)}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64: neighbouring numbers in, unrelated numbers out. Source: Steele, Lea & Flood, OOPSLA 2014."""
    values = values + np.uint64(_GOLDEN)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed
