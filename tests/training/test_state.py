"""The state of a run: what a checkpoint keeps of it, and where it stands."""

from __future__ import annotations

import torch
from varalign.training.state import Position, _flattened, _restore


def test_optimiser_state_round_trip() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([weight], lr=0.1)
    for _ in range(3):
        weight.grad = torch.ones(3)
        optimiser.step()
    other_weight = torch.nn.Parameter(weight.detach().clone())
    other = torch.optim.AdamW([other_weight], lr=0.1)
    stored = {name: tensor.clone() for name, tensor in _flattened(optimiser).items()}
    _restore(other, stored)
    for parameter, engine in ((weight, optimiser), (other_weight, other)):
        parameter.grad = torch.full((3,), 0.5)
        engine.step()
    assert torch.equal(weight, other_weight)


def test_a_position_keeps_the_best_score_and_counts_the_epochs_since() -> None:
    position = Position()
    assert not position.evaluated
    for epochs, score in ((0, 0.2), (1, 0.3), (2, 0.3)):
        position.step = position.epoch * 5 + epochs * 5
        position.count_epochs(epochs)
        position.take_score(score)
        assert position.evaluated
    assert (position.best_score, position.best_step, position.best_epoch, position.stale) == (0.3, 5, 1, 1)
