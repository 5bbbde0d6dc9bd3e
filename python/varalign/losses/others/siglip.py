"""SigLIP: each pair is classified by itself, with a sigmoid instead of a softmax."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from varalign.losses.objective import Batch, Objective, Values


class SigLIP(Objective):
    """-sum over all (image, text) of log sigmoid(±(logit + bias)), over the batch size; the bias is learned.

    It has no two directions: its rows' and its columns' sums are the same, so that every weighting by ½ gives it.

    Args:
        strength: the bias at the start; -10 as in the paper, so that the many negatives do not dominate at first.

    Source: Zhai et al. 2023.
    """

    strength_range = (-100.0, 100.0)
    directed = False

    def __init__(self, strength: float = -10.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(float(strength)))

    def forward(self, batch: Batch) -> Values:
        z = batch.logits + self.bias
        values = -logsigmoid(torch.where(batch.positive, z, -z))
        return values.sum(1), values.sum(0), None


LOSS = SigLIP
