"""Leaves words out of captions at random in training, against overfitting. B captions, L tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from varalign.data.draws import WORD_DROPOUT, hash_draws


def drop_words(
    ids: NDArray[np.int64],
    lengths: NDArray[np.int64],
    rows: NDArray[np.int64],
    rate: float,
    *,
    pad_id: int,
    seed: int,
    epoch: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Captions without some of their tokens; what stays moves up, start and end marks stay.

    A pure function of (seed, epoch, row). A caption that would lose every token keeps them all.

    Args:
        ids: (B, L) token ids: a start mark, the tokens, an end mark, padding.
        lengths: (B,) tokens with both marks, at least 2.
        rows: (B,) rows of the data set, what the draws depend on.
        rate: chance of a token to be left out, within [0, 1).
        pad_id: fills the places at the end that become free.
        seed, epoch: of the draws.

    Returns:
        New ids (B, L) and lengths (B,).

    Source: Iyyer et al., Deep unordered composition rivals syntactic methods, ACL 2015.
    """
    place = np.arange(ids.shape[1])
    chance = np.stack([hash_draws(rows, seed, epoch, WORD_DROPOUT | int(at) << 8) for at in place], axis=1) / 2.0**64
    mark = (place == 0) | (place == lengths[:, None] - 1)
    inside = (place < lengths[:, None]) & ~mark
    kept = inside & (chance >= rate)
    kept |= inside & ~kept.any(axis=1, keepdims=True)
    kept |= mark
    order = np.argsort(~kept, axis=1, kind="stable")
    left = kept.sum(axis=1)
    moved = np.take_along_axis(ids, order, axis=1)
    return np.where(place < left[:, None], moved, pad_id), left.astype(np.int64)
