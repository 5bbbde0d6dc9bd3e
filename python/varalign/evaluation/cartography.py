"""Sorts pairs by their probability over the epochs: learnt, ambiguous or probably wrong.

T captions, n of them seen in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

KINDS = ("learnt", "ambiguous", "probably wrong")
UNSEEN = -1
UNSTEADY = 0.2  # standard deviation over the epochs above which a pair is ambiguous, whatever its mean
LEAST_PAIRS = 20
SAMPLES = 100  # of the bootstrap
SURE = 0.8  # smallest posterior at which a pair counts as learnt, or as wrong


@dataclass(frozen=True)
class Cartography:
    """The kinds of all pairs, and the share of wrong ones.

    Attributes:
        kind: (T,) int8, index into `KINDS`; -1 for a pair never seen, or if no pair can be judged.
        probability_wrong: (T,) float64, posterior of the lower of two normals; NaN for a pair never seen.
        wrong_share: share of the lower normal among the pairs seen; 0 if one normal fits as well.
        low, high: 95 % interval of `wrong_share`.
        abstains: why no pair can be judged; empty if pairs are judged.
    """

    kind: NDArray[np.int8]
    probability_wrong: Floats
    wrong_share: float
    low: float
    high: float
    abstains: str = ""

    def counts(self) -> dict[str, int]:
        """The number of pairs of each kind."""
        return {name: int((self.kind == number).sum()) for number, name in enumerate(KINDS)}


def cartography(
    mean: Floats, variance: Floats, owner: NDArray[np.int64], *, chance: float, seed: int = 0
) -> Cartography:
    """Sort pairs by mean and variance of their positive probability over the epochs.

    Two normals are fitted to the log odds of the means; the lower one stands for the pairs that training could not
    learn. If one normal fits as well (Bayesian information criterion), no pair is called wrong. A pair is ambiguous if
    its probability has a standard deviation above 0.2 over the epochs, if the mixture is less than 80 % sure of it, or
    if its probability is at most twice the chance level.

    With two normals the interval is a bootstrap over images. With one normal it reaches from 0 to the larger of
    3 / images (rule of three) and twice the share of pairs with at most twice the chance probability: a wrong pair has
    the chance probability on average, so at least half of them are among those (Markov's inequality).

    No pair is judged if fewer than 20 were seen, or if the model tells pairs apart no better than chance: a mean
    probability within three standard errors (over images) of the chance, or below twice the chance.

    Args:
        mean, variance: (T,) of the positive probability over the epochs, NaN for a pair never seen (`PairMoments`).
        owner: (T,) image row of each caption, the unit of the bootstrap.
        chance: mean positive probability that a random model gives a pair.
        seed: of the bootstrap.

    Raises:
        ValueError: no pair was seen, or the shapes differ.

    Source: Swayamdipta et al. 2020 ("dataset cartography"); the two normals after Arazo et al. 2019.
    """
    if not mean.shape == variance.shape == owner.shape or mean.ndim != 1:
        raise ValueError(f"wanted mean, variance and owner of one shape (T,), got {mean.shape}, {variance.shape}")
    seen = np.isfinite(mean)
    if not seen.any():
        raise ValueError("no pair was seen in training: there is nothing to sort")
    kind = np.full(len(mean), UNSEEN, np.int8)
    posterior = np.full(len(mean), np.nan)
    images, place = np.unique(owner[seen], return_inverse=True)
    if reason := _blind(mean[seen], place, chance):
        return Cartography(kind, posterior, np.nan, np.nan, np.nan, reason)
    odds = _log_odds(mean[seen])
    start = _two_normals(odds)
    two = start is not None and _better_than_one(odds, start)
    if start is None or not two:
        posterior[seen], share, low = 0.0, 0.0, 0.0
        high = min(1.0, max(3 / len(images), 2 * float((mean[seen] <= 2 * chance).mean())))
    else:
        posterior[seen], share = _posterior(odds, start), float(start[0])
        generator = np.random.default_rng(seed)
        shares = []
        for _ in range(SAMPLES):
            weight = np.bincount(generator.integers(0, len(images), len(images)), minlength=len(images))[place]
            found = _two_normals(odds, weight.astype(np.float64), start)
            shares.append(share if found is None else float(found[0]))
        low, high = (float(end) for end in np.quantile(shares, [0.025, 0.975]))
    wrong = posterior >= SURE
    unsure = (posterior > 1 - SURE) & ~wrong
    kind[seen] = 0
    kind[wrong] = 2
    unsure |= ~wrong & (np.nan_to_num(mean, nan=1.0) <= 2 * chance)
    kind[seen & (unsure | (np.sqrt(np.nan_to_num(variance)) > UNSTEADY))] = 1
    return Cartography(kind, posterior, share, min(low, share), max(high, share))


def _blind(mean: Floats, place: NDArray[np.int64], chance: float) -> str:
    """Why pairs with these mean probabilities cannot be judged; empty if they can. `place` is the image of each."""
    if len(mean) < LEAST_PAIRS:
        return f"training saw {len(mean)} pairs, too few to judge them by: at least {LEAST_PAIRS} are needed"
    counts = np.bincount(place)
    by_image = np.bincount(place, weights=mean) / counts
    error = by_image.std() / np.sqrt(len(counts))
    if mean.mean() < max(2 * chance, chance + 3 * error):
        return (
            f"the model hardly tells pairs apart: the mean probability of a pair is {mean.mean():.4f} over the epochs, "
            f"{chance:.4f} by chance"
        )
    return ""


def _log_odds(probability: Floats) -> Floats:
    clear = np.clip(probability, 1e-6, 1 - 1e-6)
    odds: Floats = np.log(clear) - np.log1p(-clear)
    return odds


def _two_normals(values: Floats, weight: Floats | None = None, start: Floats | None = None) -> Floats | None:
    """Share, mean, deviation of the lower and mean, deviation of the upper normal by EM; None for equal values."""
    weight = np.ones(len(values)) if weight is None else weight
    if start is None:
        low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
        if high - low < 1e-9:
            return None
        scale = max((high - low) / 4, 1e-3)
        start = np.array([0.3, low, scale, max(middle, low + scale), scale])
    found = start
    for _ in range(500):
        lower = weight * _posterior(values, found)
        upper = weight - lower
        parts = [lower.sum() / weight.sum()]
        for part in (lower, upper):
            total = max(part.sum(), 1e-9)
            mean = (part @ values) / total
            parts += [mean, max(np.sqrt((part @ (values - mean) ** 2) / total), 0.05)]
        after = np.array(parts)
        moved = np.abs(after - found).max()
        found = after
        if moved < 1e-6:
            break
    if found[1] > found[3]:
        found = np.array([1 - found[0], found[3], found[4], found[1], found[2]])
    return found


def _log_density(values: Floats, mean: float, deviation: float) -> Floats:
    density: Floats = -(((values - mean) / deviation) ** 2) / 2 - np.log(deviation * np.sqrt(2 * np.pi))
    return density


def _posterior(values: Floats, found: Floats) -> Floats:
    """The probability that each value comes from the lower normal."""
    share = np.clip(found[0], 1e-9, 1 - 1e-9)
    lower = np.log(share) + _log_density(values, found[1], found[2])
    upper = np.log(1 - share) + _log_density(values, found[3], found[4])
    posterior: Floats = np.exp(lower - np.logaddexp(lower, upper))
    return posterior


def _better_than_one(values: Floats, found: Floats) -> bool:
    one = _log_density(values, values.mean(), max(values.std(), 0.05)).sum()
    share = np.clip(found[0], 1e-9, 1 - 1e-9)
    lower = np.log(share) + _log_density(values, found[1], found[2])
    upper = np.log(1 - share) + _log_density(values, found[3], found[4])
    gain = np.logaddexp(lower, upper).sum() - one
    # Requires two modes rather than one with a long tail: the means differ by more than the sum of the deviations.
    return bool(gain > 1.5 * np.log(len(values)) and found[3] - found[1] > found[2] + found[4])
