"""The state of a run: what a checkpoint keeps of it, and where it stands."""

from __future__ import annotations

import torch
from varalign.training.state import _flattened, _restore


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
