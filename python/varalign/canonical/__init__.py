"""Closed-form alignment of the features of two frozen encoders: the start of training, and scores of wrong pairs."""

from varalign.canonical.choice import Grid, Trial, choose_settings, mean_recall_at_1, negative_loss
from varalign.canonical.covariance import RunningCovariance
from varalign.canonical.maps import ClosedForm, Whitening
from varalign.canonical.mixture import Mixture
from varalign.canonical.pair_scores import PairScores, pair_scores

__all__ = [
    "ClosedForm",
    "Grid",
    "Mixture",
    "PairScores",
    "RunningCovariance",
    "Trial",
    "Whitening",
    "choose_settings",
    "mean_recall_at_1",
    "negative_loss",
    "pair_scores",
]
