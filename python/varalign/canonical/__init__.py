"""Closed-form alignment of the features of two frozen encoders: the start, and which pairs are wrong."""

from varalign.canonical.choice import (
    ClosedFormChoice,
    Grid,
    Trial,
    best_logit_scale,
    choose_closed_form,
    mean_recall_at_1,
    negative_loss,
)
from varalign.canonical.covariance import RunningCovariance
from varalign.canonical.mixture import Mixture
from varalign.canonical.pair_scores import PairScores, pair_scores
from varalign.canonical.start import ClosedForm, closed_form

__all__ = [
    "ClosedForm",
    "ClosedFormChoice",
    "Grid",
    "Mixture",
    "PairScores",
    "RunningCovariance",
    "Trial",
    "best_logit_scale",
    "choose_closed_form",
    "closed_form",
    "mean_recall_at_1",
    "negative_loss",
    "pair_scores",
]
