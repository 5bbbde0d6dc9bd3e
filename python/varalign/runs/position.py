"""How far a run has come: the plain values of a checkpoint that a run goes on from."""

from __future__ import annotations

from dataclasses import dataclass

from varalign.runs.schema import number, record, whole


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        step: optimiser steps done.
        epoch: the epoch under way, from 0.
        batch: batches of this epoch that are done.
        best_score, best_step, best_epoch: the best mean recall on dev so far, and where it was reached; −1 before the
            first evaluation.
        stale: epochs since then.
        nonfinite: steps skipped in a row up to here.
        rate: factor on the learning rate, below 1 after going back to a checkpoint.
        gone_back: how often the run went back.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_score: float = -1.0
    best_step: int = 0
    best_epoch: int = 0
    stale: int = 0
    nonfinite: int = 0
    rate: float = 1.0
    gone_back: int = 0

    @property
    def evaluated(self) -> bool:
        """Whether the evaluation at this step, if there is to be one, has been made."""
        return self.batch == 0 and (self.step > 0 or self.best_score >= 0)

    def count_epochs(self, epochs: int) -> None:
        """Count whole epochs as done; 0 stands for the evaluation before the first step."""
        self.epoch, self.batch, self.stale = self.epoch + epochs, 0, self.stale + 1

    def take_score(self, score: float) -> None:
        """Keep the score of an evaluation if it is the best so far."""
        if score > self.best_score:
            self.best_score, self.best_step, self.best_epoch, self.stale = score, self.step, self.epoch, 0


_NUMBERS = {"best_score", "rate"}
POSITION_SCHEMA = record({name: number if name in _NUMBERS else whole() for name in Position.__dataclass_fields__})
