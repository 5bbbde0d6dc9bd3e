"""Closed-form pair scores: how likely each caption belongs to its image, computed before any training.

n images diagnosed, t their captions, f folds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from varalign.canonical.covariance import RunningCovariance, require_finite
from varalign.canonical.maps import Whitening
from varalign.canonical.mixture import BINS, Mixture, bins_of, fit_mixture, normal_density, smoothed_density
from varalign.data.waiting import counted
from varalign.evaluation.products import exact_products
from varalign.evaluation.retrieval import check_owners

FOLDS = 5
ROUNDS = 3  # fits
DIMENSIONS, POWER = 256, 0.5  # of the closed form
SAMPLES = 200  # of the bootstrap
FOLD_IMAGES = 1200  # images scored against each other at a time: with five captions each the matrix has 28 MiB
RIDGES = (0.3, 1.0, 3.0, 10.0, 30.0)
CHOICE_IMAGES = 2000  # images whose scores choose the ridge
LEAST_IMAGES = 50  # with fewer, a fold has too few non-pairs, and random pairs score as high as right ones
SIGNIFICANT = 3.5  # least `significance` of informative features; random features reached 3.0 in 36 draws
NULL_SAMPLE = 1 << 20  # non-pairs of a fold whose scores estimate the density of wrong pairs


@dataclass(frozen=True)
class PairScores:
    """The result of `pair_scores`; values of captions and images that were not scored are NaN.

    Attributes:
        scores: (T,) float64, score of each caption; wrong pairs have mean 0 and deviation 1, right pairs score higher.
        image_scores: (I,) float64, score of each image with the mean of all its captions.
        probability_right: (T,) float64, posterior of the mixture; with by="image" that of the image's score.
        wrong_share: estimated share of wrong pairs (of images with wrong captions when by="image").
        low, high: 95 % interval of `wrong_share`.
        mixture: the fitted mixture; its share, mean and deviation are those of the right pairs.
        pairs: number of captions scored.
        ridge: ridge of the closed form.
        by: "image" or "pair".
        images: number of different images scored.
        significance: mean score of the n images after the first fit, in units of 1/√n, which is the mean's deviation
            under features that carry no information about the pairs. Later fits weight pairs by their scores, so that
            even random features score above 0.
    """

    scores: Tensor
    image_scores: Tensor
    probability_right: Tensor
    wrong_share: float
    low: float
    high: float
    mixture: Mixture
    pairs: int
    ridge: float
    by: str
    images: int
    significance: float

    @property
    def abstains(self) -> str:
        """Why the scores cannot judge the pairs; empty if they can."""
        blind = self.significance < SIGNIFICANT
        return too_few(self.images) or ("the features hardly tell pairs from pairs drawn at random" if blind else "")


def pair_scores(
    image_features: Tensor,
    text_features: Tensor,
    text_image_ids: Tensor,
    rows: Tensor | None = None,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    by: Literal["image", "pair", "auto"] = "image",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> PairScores:
    """Score every pair with a closed form that was fitted on other images.

    The images are divided into folds. Each fold is scored by the maps fitted on the other folds, so that a wrong
    caption does not influence the maps that score it. A pair's score is the mean over both directions of
    (s − mean of its non-pairs) / (deviation of its non-pairs), then shifted and scaled so that the scores of non-pairs
    have mean 0 and deviation 1. A wrong pair has the score distribution of a non-pair. The mixture consists of the
    known density of the non-pairs' scores and a normal for the right pairs. Each further round weights the pairs of
    the fit by their probability of being right.

    The ridge is the one of `RIDGES` at which a held-out image's captions most often outscore a non-pair. Wrong pairs do
    so half the time at any ridge, so the choice needs no labels. Few images need a larger ridge.

    Args:
        image_features: (I, dx).
        text_features: (T, dy).
        text_image_ids: (T,) rows of image_features.
        rows: (n,) the images to diagnose. None: all that have captions.
        image_ids: (I,) equal for copies of one image; copies share a fold and are not non-pairs. None: all differ.
        text_ids: (T,) equal for equal captions, which are not non-pairs of any image that has one. None: all differ.
        by: the unit that is right or wrong. "image": all captions of an image together. "pair": each caption alone.
            "auto": "image" if, after the first round, captions of one image are wrong together (`wrong_together`).
        seed: of the folds and the bootstrap.
        device: device of the products.

    The interval is a bootstrap over images, because the captions of an image are not independent. It covers the
    intervals of three models: normal right pairs with the wrong-pair density estimated on the non-pairs; normal right
    pairs with N(0, 1) for wrong pairs; and skew-normal right pairs. What the scores alone cannot decide, such as
    whether a low tail belongs to right or to wrong pairs, thus widens the interval. The estimate is that of the first
    model. The bootstrap keeps folds and ridge.

    Raises:
        ValueError: too few images, ids that are no rows, no non-pairs, an unknown `by`, or NaN features; the message
            names the rows.
    """
    x, y = torch.as_tensor(image_features), torch.as_tensor(text_features)
    ids = check_owners(text_image_ids, len(x), len(y))
    rows = torch.unique(ids) if rows is None else torch.unique(torch.as_tensor(rows).long())
    rows = rows[torch.isin(rows, ids)]
    groups = torch.arange(len(x)) if image_ids is None else torch.as_tensor(image_ids)
    if groups.shape != (len(x),) or groups.is_floating_point():
        raise ValueError(
            f"image_ids: wanted {len(x)} whole numbers, one an image, got {groups.dtype} {tuple(groups.shape)}"
        )
    groups = torch.unique(groups[rows], return_inverse=True)[1]
    if by not in ("image", "pair", "auto"):
        raise ValueError(f'by: wanted "image", "pair" or "auto", got {by!r}')
    different = int(groups.max() if len(groups) else -1) + 1
    require_enough(different)
    texts = torch.isin(ids, rows).nonzero()[:, 0]
    require_finite(x[rows], "image_features of the diagnosed images")
    require_finite(y[texts], "text_features of the diagnosed captions")
    owner = local_rows(rows, len(x))[ids[texts]]
    same = None if text_ids is None else _shared(torch.as_tensor(text_ids)[texts], groups[owner])
    scorer = _Scorer(x[rows], y[texts], owner, groups, same, seed, torch.device(device))

    weights, ridge = torch.ones(len(texts), dtype=torch.float64), None
    for number in counted(range(ROUNDS), "scoring pairs", ROUNDS):
        scorer.fit(weights)
        if ridge is None:
            ridge = max(counted(RIDGES, "choosing the ridge", len(RIDGES)), key=scorer.separation)
        # With by="image" only the last round needs scores of single captions.
        result = scorer.score(ridge, captions=by != "image" or number == ROUNDS - 1)
        if number == 0:
            significance = float(result.image.mean()) * math.sqrt(len(result.image))
        if by == "auto":
            mixture, probability = _fit(result, "pair", owner)
            by = "image" if wrong_together(1 - probability, owner) else "pair"
        mixture, probability = _fit(result, by, owner)
        # The weights are the probabilities themselves: with a threshold at ½ the rounds may alternate between two sets.
        weights = probability
    assert ridge is not None
    low, high = _interval(result, by, owner, groups, mixture, seed)
    return PairScores(
        scores=_spread(len(y), texts, result.pair),
        image_scores=_spread(len(x), rows, result.image),
        probability_right=_spread(len(y), texts, probability),
        wrong_share=1 - mixture.share_right,
        low=low,
        high=high,
        mixture=mixture,
        pairs=len(texts),
        ridge=float(ridge),
        by=by,
        images=different,
        significance=significance,
    )


def too_few(images: int) -> str:
    """Why pairs of this number of different images cannot be judged; empty if there are enough."""
    if images >= LEAST_IMAGES:
        return ""
    return f"{images} different images are too few to judge pairs by: at least {LEAST_IMAGES} are needed"


def require_enough(images: int) -> None:
    """Raise ValueError if there are too few different images with captions to score in folds."""
    if images < 2 * FOLDS:
        raise ValueError(
            f"pair scores in {FOLDS} folds need at least {2 * FOLDS} different images with captions, got {images}"
        )


def local_rows(rows: Tensor, count: int) -> Tensor:
    """Position in `rows` of each of `count` images, −1 for those not among them."""
    table = torch.full((count,), -1, dtype=torch.long)
    table[rows] = torch.arange(len(rows))
    return table


def wrong_together(wrong: Tensor, owner: Tensor) -> bool:
    """Whether the captions of an image are wrong together, judged by the covariance of their probabilities.

    Let w be the mean and v the variance of the probabilities p. On average a wrong caption's p is v / (w (1 - w)) above
    a right one's. Two captions of one image then have the covariance v² / (w (1 - w)) if an image's captions are wrong
    together, and 0 if they are independent. The answer is yes if the covariance is above the middle of the two.

    Args:
        wrong: (t,) probability of each caption being wrong.
        owner: (t,) its image, 0 and up.
    """
    wrong = wrong.double()
    share = float(wrong.mean())
    away = wrong - share
    total = torch.zeros(int(owner.max()) + 1, dtype=torch.float64).index_add_(0, owner, away)
    captions = torch.bincount(owner, minlength=len(total)).double()
    together, pairs = float((total**2).sum() - (away**2).sum()), float((captions * (captions - 1)).sum())
    expected = float((away**2).mean()) ** 2 / max(share * (1 - share), 1e-12)
    return pairs > 0 and together / pairs > expected / 2


def _spread(size: int, where: Tensor, values: Tensor) -> Tensor:
    """(size,) float64 with `values` at the rows `where`, and NaN elsewhere."""
    return torch.full((size,), math.nan, dtype=torch.float64).index_copy_(0, where, values)


@dataclass
class _Scored:
    pair: Tensor  # (t,) scores of captions
    image: Tensor  # (n,) scores of images
    pair_null: Tensor  # (BINS,) histogram of the scores of non-pairs
    image_null: Tensor


class _Scorer:
    """Holds the folds; fits on all folds but one, and scores that one."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        owner: Tensor,
        groups: Tensor,
        text_ids: Tensor | None,
        seed: int,
        device: torch.device,
    ) -> None:
        self.x, self.y, self.owner, self.groups, self.device = x, y, owner, groups, device
        self.text_ids = text_ids  # (t,); None where no text stands at two images
        count = int(groups.max()) + 1
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        self.fold = (order % FOLDS)[groups]  # of each image
        self.whitenings: list[Whitening] = []

    def _blocks(self, fold: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A fold's images, at most `FOLD_IMAGES` at a time, their captions, and each caption's place in the images."""
        held, texts = (self.fold == fold).nonzero()[:, 0], (self.fold[self.owner] == fold).nonzero()[:, 0]
        for images in held.chunk(-(-len(held) // FOLD_IMAGES)):
            local = local_rows(images, len(self.x))[self.owner[texts]]
            mine = (local >= 0).nonzero()[:, 0]
            yield images, texts[mine], local[mine]

    def fit(self, weights: Tensor) -> None:
        """Fit one whitening for each fold, on the merged covariances of the other folds."""
        parts = []
        for fold in range(FOLDS):
            part = RunningCovariance(self.x.shape[1], self.y.shape[1], self.device)
            for images, mine, own in self._blocks(fold):
                part.update_owned(self.x[images], self.y[mine], own, weights[mine])
            parts.append(part)
        self.whitenings = []
        for fold in range(FOLDS):
            rest = RunningCovariance(self.x.shape[1], self.y.shape[1], self.device)
            for other, part in enumerate(parts):
                if other != fold:
                    rest.merge(part)
            self.whitenings.append(Whitening(rest))

    def separation(self, ridge: float) -> float:
        """How often the captions of an image outscore a non-pair, over the first folds with enough images together."""
        folds = next((f + 1 for f in range(FOLDS) if int((self.fold <= f).sum()) >= CHOICE_IMAGES), FOLDS)
        scored = self.score(ridge, captions=False, folds=folds)
        below = scored.image_null.cumsum(0) - scored.image_null / 2
        used = scored.image[self.fold < folds]
        return float(below[bins_of(used)].mean() / scored.image_null.sum())

    def score(self, ridge: float, *, captions: bool, folds: int = FOLDS) -> _Scored:
        """Scores of the held-out images, of their captions if wanted, and histograms of the non-pairs' scores."""
        zeros = torch.zeros(BINS, dtype=torch.float64)
        out = _Scored(torch.zeros(len(self.y)).double(), torch.zeros(len(self.x)).double(), zeros, zeros.clone())
        for fold, whitening in enumerate(self.whitenings[:folds]):
            found = whitening.solve(ridge=ridge, power=POWER, dimensions=DIMENSIONS)
            for images, mine, own in self._blocks(fold):
                own, group = own.to(self.device), self.groups[images].to(self.device)
                at = None if self.text_ids is None else _standing(self.text_ids[mine].to(self.device), own, group)
                u, v = found.embed_images(self.x[images]), found.embed_texts(self.y[mine])
                together = torch.zeros(len(images), v.shape[1], device=self.device).index_add_(0, own, v)
                together = torch.nn.functional.normalize(together, dim=1)
                each = torch.arange(len(images), device=self.device)
                alike = group[:, None] == group[None] if at is None else at[0] @ at[0].T > 0
                out.image[images] = _scores(u, together, each, alike, out.image_null)
                if captions:
                    right = group[:, None] == group[own][None] if at is None else at[0][:, at[1]] > 0
                    out.pair[mine] = _scores(u, v, own, right, out.pair_null)
        return out


def _shared(text_ids: Tensor, group: Tensor) -> Tensor | None:
    """The text ids (t,) as they are, or None where no text is at captions of two groups (t,) of images."""
    pairs = torch.unique(torch.stack([text_ids, group]), dim=1)
    return text_ids if len(torch.unique(text_ids)) < pairs.shape[1] else None


def _standing(text_ids: Tensor, own: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """(n, texts) 1 where an image, or a copy of it, has the text, else 0; and (t,) which text each caption is."""
    number = torch.unique(text_ids, return_inverse=True)[1]
    place = torch.unique(group, return_inverse=True)[1]
    has = torch.zeros(int(place.max()) + 1, int(number.max()) + 1, device=own.device)
    has[place[own], number] = 1
    return has[place], number


def _scores(u: Tensor, v: Tensor, own: Tensor, right: Tensor, null: Tensor) -> Tensor:
    """Scores of the pairs (own[j], j); the scores of non-pairs are added to the histogram `null` in place.

    right: (n, t) bool, what is no non-pair: images and texts that belong together.
    """
    # One matrix of similarities and no other of its size, below 32 MiB: the system maps each larger one anew, page by
    # page, which took as long as the arithmetic.
    with exact_products():
        s = u @ v.T
    i, j = right.nonzero(as_tuple=True)  # sums of bool take ten times as long
    if len(i) == right.numel():
        raise ValueError("pair scores compare pairs with non-pairs, and here every text is right for every image")
    rows = (right.shape[1] - torch.bincount(i, minlength=len(u))).clamp_min(1)
    columns = (right.shape[0] - torch.bincount(j, minlength=len(v))).clamp_min(1)
    stride = max(1, s.numel() // NULL_SAMPLE) | 1  # odd, and no divisor of the columns: the sample covers all columns
    if s.shape[1] % stride == 0:
        stride += 2
    place = torch.arange(0, s.numel(), stride, device=s.device)
    place = place[~right.flatten()[place]]
    sampled, each = s.flatten()[place], torch.arange(len(own), device=own.device)
    pairs = s[own, each]
    kept = s.masked_fill_(right, 0.0)
    row_mean, column_mean = kept.sum(1) / rows, kept.sum(0) / columns
    kept.square_()
    row_scale = _inverse_deviation(kept.sum(1) / rows - row_mean**2)
    column_scale = _inverse_deviation(kept.sum(0) / columns - column_mean**2)
    row_shift, column_shift = row_mean * row_scale, column_mean * column_scale

    def standardised(values: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """½ [(s − row mean)/row deviation + (s − column mean)/column deviation], as one product and one shift."""
        z = values * (0.5 * (row_scale[i] + column_scale[j])) - 0.5 * (row_shift[i] + column_shift[j])
        return z.double()

    # The mean of two standardised scores has a deviation below 1: shift and scale make it 1 again.
    non_pairs = standardised(sampled, place // s.shape[1], place % s.shape[1])
    shift, scale = non_pairs.mean(), _inverse_deviation(non_pairs.var(correction=0))
    null += torch.bincount(bins_of((non_pairs - shift) * scale), minlength=BINS).double()
    return ((standardised(pairs, own, each) - shift) * scale).cpu()


def _inverse_deviation(variance: Tensor) -> Tensor:
    """1/√variance, and 0 for a constant row: a query whose similarities are all equal gets the score 0."""
    return torch.where(variance > 1e-12, variance.clamp_min(1e-12).rsqrt(), torch.zeros_like(variance))


def _fit(scored: _Scored, by: str, owner: Tensor) -> tuple[Mixture, Tensor]:
    """The fitted mixture, and each caption's probability of being right."""
    scores, null = (scored.image, scored.image_null) if by == "image" else (scored.pair, scored.pair_null)
    density = smoothed_density(null)
    share, mean, deviation = fit_mixture(torch.bincount(bins_of(scores), minlength=BINS)[None], density)[0].tolist()
    mixture = Mixture(share, mean, deviation, density)
    probability = mixture.probability_right(scores)
    return mixture, probability[owner] if by == "image" else probability


def _interval(
    scored: _Scored, by: str, owner: Tensor, groups: Tensor, mixture: Mixture, seed: int
) -> tuple[float, float]:
    """95 % interval of the share of wrong pairs: bootstrap by image under three models of the scores."""
    scores = scored.image if by == "image" else scored.pair
    group = groups if by == "image" else groups[owner]
    generator = torch.Generator().manual_seed(seed + 1)
    count, bins = int(groups.max()) + 1, bins_of(scores)
    counts = torch.zeros(SAMPLES, BINS, dtype=torch.float64)
    for row in counts:
        drawn = torch.bincount(torch.randint(count, (count,), generator=generator), minlength=count)
        row += torch.bincount(bins, weights=drawn[group].double(), minlength=BINS)
    low = high = 1 - mixture.share_right
    counts = _coarse(counts)
    for density, skewed in ((mixture.wrong_density, False), (normal_density(), False), (mixture.wrong_density, True)):
        wrong = 1 - fit_mixture(counts, density, steps=300, skewed=skewed)[:, 0]
        low, high = min(low, float(wrong.quantile(0.025))), max(high, float(wrong.quantile(0.975)))
    # EM ends slightly above a share of 0: a bound of less than one image (or pair) becomes 0. A bootstrap has no width
    # at the edge; if none of n is wrong, the 95 % interval reaches to 3 / n (rule of three).
    return (low if low * len(scores) >= 1 else 0.0), min(1.0, max(high, 3 / len(scores)))


def _coarse(counts: Tensor) -> Tensor:
    """The same counts with every five bins merged into their middle one, which saves four fifths of the bootstrap."""
    out = torch.zeros_like(counts)
    out[:, 2::5] = counts.reshape(len(counts), -1, 5).sum(2)
    return out
