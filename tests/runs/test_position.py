"""How far a run has come."""

from __future__ import annotations

from varalign.runs.position import Position


def test_a_position_keeps_the_best_score_and_counts_the_epochs_since() -> None:
    position = Position()
    assert not position.evaluated
    for epochs, score in ((0, 0.2), (1, 0.3), (2, 0.3)):
        position.step = position.epoch * 5 + epochs * 5
        position.count_epochs(epochs)
        position.take_score(score)
        assert position.evaluated
    assert (position.best_score, position.best_step, position.best_epoch, position.stale) == (0.3, 5, 1, 1)
