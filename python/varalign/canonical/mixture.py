"""A mixture model of pair scores: a known density for wrong pairs and a fitted normal for right pairs.

n scores, b bootstrap samples, g bins of the scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOW, HIGH, BINS = -8.0, 16.0, 2400  # range of the densities, in standard deviations of wrong pairs; bins of 0.01
BANDWIDTH = 0.15  # deviation of the kernel that smooths the density of wrong pairs
SMALLEST_DEVIATION = 0.2
MOST_SKEWNESS = 0.9  # of right pairs' scores; a skew-normal reaches 0.995


@dataclass(frozen=True)
class Mixture:
    """share_right · Normal(mean, deviation) + (1 − share_right) · the density of wrong pairs."""

    share_right: float
    mean: float
    deviation: float
    wrong_density: Tensor  # (BINS,) float64

    def probability_right(self, scores: Tensor) -> Tensor:
        """Posterior probability that each pair is right, (n,) float64; never falls as the score rises."""
        centres = bin_centres()
        parameters = torch.tensor([[self.share_right, self.mean, self.deviation]], dtype=torch.float64)
        table = _posterior(centres, self.wrong_density, parameters)[0]
        # A normal that is wider than the density of wrong pairs exceeds it again at very low scores. The posterior is
        # made monotone, because a lower score never speaks for a pair.
        peak = int(((centres - self.mean).abs()).argmin())
        table[:peak] = table[:peak].flip(0).cummin(0).values.flip(0) if peak else table[:peak]
        table[peak:] = table[peak:].cummax(0).values
        probability: Tensor = table[bins_of(scores)]
        return probability


def bin_centres() -> Tensor:
    """Middle of each bin, (BINS,) float64."""
    width = (HIGH - LOW) / BINS
    return LOW + width * (torch.arange(BINS, dtype=torch.float64) + 0.5)


def bins_of(scores: Tensor) -> Tensor:
    """Bin of each score; scores outside the range fall into the first or last bin."""
    width = (HIGH - LOW) / BINS
    return ((scores.double().cpu() - LOW) / width).floor().long().clamp(0, BINS - 1)


def normal_density() -> Tensor:
    """N(0, 1) over the bins, the theoretical density of wrong pairs."""
    return torch.exp(-(bin_centres() ** 2) / 2) / math.sqrt(2 * math.pi)


def smoothed_density(counts: Tensor) -> Tensor:
    """Density of wrong pairs from the histogram (BINS,) of the scores of many non-pairs.

    The histogram is smoothed with a Gaussian kernel. Adding a thousandth of N(0, 1.5²) keeps the density above 0 where
    no non-pair was seen.
    """
    width = (HIGH - LOW) / BINS
    reach = int(5 * BANDWIDTH / width)
    kernel = torch.exp(-((torch.arange(-reach, reach + 1, dtype=torch.float64) * width / BANDWIDTH) ** 2) / 2)
    kernel = kernel / kernel.sum()
    density = counts.double() / counts.sum() / width
    smooth = torch.nn.functional.conv1d(density[None, None], kernel[None, None], padding=reach)[0, 0]
    floor = torch.exp(-((bin_centres() / 1.5) ** 2) / 2) / (1.5 * math.sqrt(2 * math.pi))
    return 0.999 * smooth + 0.001 * floor


def _right_density(centres: Tensor, parameters: Tensor) -> Tensor:
    """Density of right pairs, (b, g), for parameters (b, 3) share, mean, deviation (normal) or (b, 4) with skewness."""
    mean, deviation = parameters[:, 1, None], parameters[:, 2, None]
    if parameters.shape[1] == 3:
        return torch.exp(-(((centres - mean) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))
    # A skew-normal of that mean, deviation and skewness (Azzalini 1985): 2/w phi(z) Phi(a z), z = (x - l)/w.
    skewness = parameters[:, 3, None]
    root = skewness.abs() ** (2 / 3)
    delta = skewness.sign() * (math.pi / 2 * root / (root + ((4 - math.pi) / 2) ** (2 / 3))).sqrt()
    width = deviation / (1 - 2 * delta**2 / math.pi).sqrt()
    z = (centres - mean) / width + delta * math.sqrt(2 / math.pi)
    lean = torch.special.ndtr(delta / (1 - delta**2).sqrt() * z)
    return 2 * torch.exp(-(z**2) / 2) * lean / (width * math.sqrt(2 * math.pi))


def _posterior(centres: Tensor, wrong_density: Tensor, parameters: Tensor) -> Tensor:
    """P(right | bin), (b, g)."""
    share = parameters[:, 0, None]
    right, wrong = share * _right_density(centres, parameters), (1 - share) * wrong_density
    posterior: Tensor = right / (right + wrong).clamp_min(1e-300)
    return posterior


def fit_mixture(
    counts: Tensor, wrong_density: Tensor, *, start: Tensor | None = None, steps: int = 1000, skewed: bool = False
) -> Tensor:
    """Fit share, mean and deviation of the right pairs by expectation-maximisation, for many histograms at once.

    Args:
        counts: (b, g) histograms of scores, at least 0.
        wrong_density: (g,) density of a wrong pair's score.
        start: (3,) parameters to start from. None: several starts, of which the result with the highest likelihood is
            taken.
        steps: maximum number of steps; the fit stops earlier when no parameter moves by 1e-6.
        skewed: right pairs are skew-normal instead of normal; further steps then start from the fitted normal and match
            the first three moments instead of maximising the likelihood.

    Returns:
        (b, 3) float64: share right, mean, deviation; with `skewed` (b, 4), skewness last.

    Source: Dempster, Laird and Rubin 1977.
    """
    counts = counts.double()
    used = counts.sum(0).nonzero()[:, 0]
    counts, wrong_density, centres = counts[:, used], wrong_density[used], bin_centres()[used]
    shares = counts / counts.sum(1, keepdim=True)
    if start is not None:
        best = _expectation_maximisation(shares, wrong_density, centres, start.expand(len(counts), 3), steps)
    else:
        ends = []
        mean = shares @ centres
        for share in (0.9, 0.5, 0.2):
            first = torch.stack(
                [torch.full_like(mean, share), (mean / share).clamp(0.5, 8.0), torch.ones_like(mean)], 1
            )
            ends.append(_expectation_maximisation(shares, wrong_density, centres, first, steps))
        likelihoods = torch.stack([_log_likelihood(shares, wrong_density, centres, end) for end in ends])
        best = torch.stack(ends)[likelihoods.argmax(0), torch.arange(len(counts))]
    if not skewed:
        return best
    best = torch.cat([best, torch.zeros(len(best), 1, dtype=best.dtype)], 1)
    return _expectation_maximisation(shares, wrong_density, centres, best, steps)


def _log_likelihood(counts: Tensor, wrong_density: Tensor, centres: Tensor, parameters: Tensor) -> Tensor:
    share = parameters[:, 0, None]
    right = _right_density(centres, parameters)
    likelihood: Tensor = (counts * (share * right + (1 - share) * wrong_density).clamp_min(1e-300).log()).sum(1)
    return likelihood


def _expectation_maximisation(
    counts: Tensor, wrong_density: Tensor, centres: Tensor, first: Tensor, steps: int
) -> Tensor:
    parameters = first
    for _ in range(steps):
        right = counts * _posterior(centres, wrong_density, parameters)
        share = right.sum(1)
        # The mean of right pairs is at least 0, the mean of wrong pairs.
        mean = ((right @ centres) / share.clamp_min(1e-12)).clamp_min(0.0)
        away = centres - mean[:, None]
        spread = (right * away**2).sum(1) / share.clamp_min(1e-12)
        columns = [share, mean, spread.sqrt().clamp_min(SMALLEST_DEVIATION)]
        if first.shape[1] == 4:
            third = (right * away**3).sum(1) / share.clamp_min(1e-12)
            columns.append((third / columns[2] ** 3).clamp(-MOST_SKEWNESS, MOST_SKEWNESS))
        after = torch.stack(columns, 1)
        moved = float((after - parameters).abs().max())
        parameters = after
        if moved < 1e-6:
            break
    return parameters
