"""Sinkhorn's normalisation of the similarities: each gallery item is to win as many queries as every other.

The priors b of the gallery solve, with potentials a of the queries, Σ_r exp(τ (s(r, g) − b_g) − a_r) = const and
Σ_g … = const, by a few alternations; one alternation with a = 0 is the inverted softmax, our hub correction. `bank`:
the queries are training pairs. `transductive`: they are the test queries themselves, which a search for one query does
not have. τ and the alternations are chosen by Recall@1 on dev, on dev's own queries for the transductive one.

Source: Cuturi 2013; for retrieval e.g. Wang et al., Dual Bank Normalisation, EMNLP 2023.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from drawn import Draw, Part, Scores, recall
from torch import Tensor
from varalign.aligner.hub_bank import thinned_texts

from rivals import Model

SHARPNESS = (0.4, 0.6, 0.8, 1.0)  # τ / logit scale
ROUNDS = (1, 2, 5)


def priors(s: Tensor, tau: float, rounds: int) -> Tensor:
    """b (G,) of the gallery by the similarities (R, G) of the bank's queries to it."""
    a = torch.zeros(len(s), 1)
    z = tau * s
    for turn in range(rounds):
        b = (z - a).logsumexp(0)
        if turn + 1 < rounds:
            a = (z - b).logsumexp(1, keepdim=True)
    return b / tau


def scores(draw: Draw, base: Model) -> Iterator[tuple[str, Scores]]:
    """The scores of test, corrected by either bank."""
    scale = base.logit_scale(draw)
    bank = base.images(draw.train.x[:1000]), thinned_texts(base.texts(draw.train.y))

    def corrected(part: Part, setting: tuple[float, int], own: bool) -> Scores:
        u, v = base.images(part.x), base.texts(part.y)
        images, texts = (u, v) if own else bank
        s, tau, rounds = u @ v.T, setting[0] * scale, setting[1]
        return s - priors(images @ v.T, tau, rounds), s - priors(texts @ u.T, tau, rounds)[:, None]

    for name, own in (("bank", False), ("transductive", True)):
        tried = [(sharpness, rounds) for sharpness in SHARPNESS for rounds in ROUNDS]
        best = max(tried, key=lambda one: recall(corrected(draw.dev, one, own), draw.dev.pairs)["mean_recall@1"])
        yield f"our closed form, Sinkhorn ({name})", corrected(draw.test, best, own)
