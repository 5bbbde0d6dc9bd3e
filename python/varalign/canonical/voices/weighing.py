"""The weights of voices in a mixture, by the loss of held-out pairs.

The similarity of a mixture is Σ w_v cos_v with weights that are multiples of a quarter and sum to 1. Among the mixtures
whose loss is within two standard errors of the least, the one of the fewest voices is taken, and of these the one with
the least loss: with few held-out pairs chance does not add a voice. A voice is added only if Recall@1 does not fall.

V voices, P held-out pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varalign.canonical.chance import clearly_lower
from varalign.canonical.voices.held_out import Scores, best_scale, hits_at_1, losses_at, mixture
from varalign.data.waiting import counted

QUARTERS = 4
_Tried = tuple[dict[str, float], float, Tensor, Tensor]  # weights, scale, losses by image, hits by pair


@dataclass(frozen=True)
class Weighing:
    """Chosen weights and what they were chosen by.

    Attributes:
        weights: of each voice, 0 for one that was tried and not kept.
        scale: the logit scale of the mixture at its least loss.
        losses: (I,) float64 mean held-out loss of each image's pairs.
        recall: Recall@1 within the blocks, the mean of both directions, a fraction.
    """

    weights: dict[str, float]
    scale: float
    losses: Tensor
    recall: float

    @property
    def loss(self) -> float:
        """Mean over the held-out images."""
        return float(self.losses.mean())

    def kept(self) -> dict[str, float]:
        """The voices that count."""
        return {name: weight for name, weight in self.weights.items() if weight > 0}


def weigh(scores: Mapping[str, Sequence[Scores]], image_of: Tensor) -> Weighing:
    """Choose the weights of voices.

    Args:
        scores: of each voice, in the order of simplicity: every block's.
        image_of: (P,) the image of each pair of the blocks, equal for pairs of one image, whose losses are not
            independent of each other.
    """
    names, mixtures = list(scores), list(_simplex(len(scores)))
    tried: list[_Tried] = []
    scale = 20.0
    for weights in counted(mixtures, "weighing voices", len(mixtures)):
        scored = mixture(scores, dict(zip(names, weights, strict=True)))
        scale = best_scale(scored, scale)
        losses = _by_image(losses_at(scored, scale), image_of)
        tried.append((dict(zip(names, weights, strict=True)), scale, losses, hits_at_1(scored, scale)))
    least = min(tried, key=lambda one: float(one[2].mean()))
    close = [one for one in tried if not clearly_lower(least[2], one[2])]
    best = _best_of(tried, 1)
    for voices in range(1, len(names) + 1):
        found = [one for one in close if _voices(one[0]) == voices]
        if found:
            best = min(found, key=lambda one: float(one[2].mean()))
            break
    single = _best_of(tried, 1)
    if float(best[3].mean()) < float(single[3].mean()):
        best = single
    chosen, scale, losses, hits = best
    return Weighing(chosen, scale, losses, float(hits.mean()))


def _best_of(tried: list[_Tried], voices: int) -> _Tried:
    return min((one for one in tried if _voices(one[0]) == voices), key=lambda one: float(one[2].mean()))


def _voices(weights: Mapping[str, float]) -> int:
    return sum(weight > 0 for weight in weights.values())


def _simplex(voices: int) -> Iterator[tuple[float, ...]]:
    """All weights of `voices` voices in quarters that sum to 1, few voices first."""
    parts = [p for p in itertools.product(range(QUARTERS + 1), repeat=voices) if sum(p) == QUARTERS]
    for part in sorted(parts, key=lambda p: (sum(x > 0 for x in p), tuple(-x for x in p))):
        yield tuple(x / QUARTERS for x in part)


def _by_image(losses: Tensor, image_of: Tensor) -> Tensor:
    """(I,) float64 mean loss of each image's pairs."""
    number = torch.unique(image_of, return_inverse=True)[1].to(losses.device)
    count = torch.bincount(number).double()
    return (
        torch.zeros(len(count), dtype=torch.float64, device=losses.device).index_add_(0, number, losses.double())
        / count
    )
