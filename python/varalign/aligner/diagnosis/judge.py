"""The judges: they decide which pairs are wrong, by closed-form scores of features or by a run's pair statistics.

T captions. A judge whose evidence is too weak abstains: it gives a reason instead of a share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from varalign.aligner.diagnosis.gather import Bools, Settings, Subject
from varalign.canonical.pair_scores import PairScores, pair_scores, too_few
from varalign.data.errors import DataError
from varalign.evaluation.cartography import Cartography, cartography
from varalign.options.device import pick_device

ROUNDING = 1e-5
"""Largest range of a feature over the rows, relative to its largest value, that counts as rounding error."""


@dataclass(frozen=True)
class Judgement:
    """The result of the judges.

    Attributes:
        judged: (T,) whether the pair was judged.
        rank: (T,) lower is more suspicious; None if the judges abstain.
        share, low, high: share of wrong pairs and its 95 % interval; None if the judges abstain.
        method: "closed-form" (from features, before training) or "moments" (from a run's epochs).
        by: "image" if the captions of an image are wrong together, else "pair".
        abstains: why there is no share; empty if there is one.
        scores: the closed form's scores, unless it abstains or there are no features.
        kinds: the kind of each pair over a run's epochs, unless that judge abstains or there is no run.
        kinds_abstain: why that judge abstains; empty if it does not, or if there is no run.
    """

    judged: Bools
    rank: NDArray[np.float64] | None
    share: float | None
    low: float | None
    high: float | None
    method: str
    by: str
    abstains: str = ""
    scores: PairScores | None = None
    kinds: Cartography | None = None
    kinds_abstain: str = ""


def judge(subject: Subject, settings: Settings) -> Judgement:
    """Judge by the features; without features, or if their judge abstains, by the statistics over the epochs.

    Raises:
        DataError: there are neither features nor statistics of the epochs, or a feature is not finite.
    """
    owner = subject.data.caption_owner
    asked = np.isin(owner, subject.rows)
    if subject.x is None and subject.moments is None:
        raise DataError(
            f"{subject.name}: its encoders were trained from random weights, so there are no features to judge pairs "
            "by, and no checkpoint with statistics of the pairs: train at least an epoch, or pass --features FILE"
        )
    kinds = _kinds(subject, asked, settings.seed)
    if subject.x is None and kinds is None:
        raise DataError(f"{subject.name}: training saw no pair of this split; --split train has those it saw")
    scores = _scores(subject, settings)
    silent = "" if kinds is None else kinds.abstains
    seen = None if silent else kinds
    if isinstance(scores, PairScores) and not scores.abstains:
        rank = scores.scores.numpy()
        if scores.by == "image":  # rank by the image's score; the caption's score breaks ties within an image
            rank = scores.image_scores.numpy()[owner] + 1e-6 * rank
        found = (scores.wrong_share, scores.low, scores.high, "closed-form", scores.by)
        return Judgement(asked, rank, *found, scores=scores, kinds=seen, kinds_abstain=silent)
    if seen is not None:
        assert subject.moments is not None
        found = (seen.wrong_share, seen.low, seen.high, "moments", "pair")
        return Judgement(asked & (seen.kind >= 0), subject.moments.probability_mean, *found, kinds=seen)
    by_features = scores.abstains if isinstance(scores, PairScores) else scores
    reasons = [reason for reason in (by_features, silent) if reason]
    method = "moments" if scores is None else "closed-form"
    return Judgement(asked, None, None, None, None, method, "pair", abstains="; ".join(reasons))


def _scores(subject: Subject, settings: Settings) -> PairScores | str | None:
    """The closed form's scores, or why it abstains; None without features."""
    if subject.x is None or subject.y is None:
        return None
    rows, captions = torch.from_numpy(subject.rows), torch.from_numpy(subject.data.caption_rows(subject.rows))
    if reason := too_few(len(np.unique(subject.data.image_ids[subject.rows]))):
        return reason
    for side, matrix in (("image", subject.x[rows]), ("text", subject.y[captions])):
        if bool((matrix.amax(0) - matrix.amin(0) <= ROUNDING * matrix.abs().amax(0)).all()):
            return f"every {side} has the same features: check the output of the encoder"
    try:
        return pair_scores(
            subject.x,
            subject.y,
            torch.from_numpy(subject.data.caption_owner),
            rows,
            image_ids=torch.from_numpy(subject.data.image_ids),
            text_ids=torch.from_numpy(subject.data.text_ids),
            by=settings.by,
            seed=settings.seed,
            device=pick_device(settings.device),
        )
    except ValueError as error:
        raise DataError(f"{subject.name}: {error}") from None


def _kinds(subject: Subject, asked: Bools, seed: int) -> Cartography | None:
    if subject.moments is None:
        return None
    mean = np.where(asked, subject.moments.probability_mean, np.nan)
    if not np.isfinite(mean).any():
        return None  # training saw no pair of this split
    variance, owner = subject.moments.probability_variance, subject.data.caption_owner
    return cartography(mean, variance, owner, chance=subject.chance, seed=seed)
