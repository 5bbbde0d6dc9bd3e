"""Packed linear layers give the products of plain ones, and leave the tower as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from varalign.encoders.packed import _can_pack, packed_linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 7, 20), (1, 20), (65, 20)])
def test_products_are_those_of_float64(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    tower, x = nn.Sequential(nn.Linear(20, 33, bias=bias), nn.GELU(), nn.Linear(33, 5)), torch.randn(shape)
    exact = tower.double()(x.double())
    tower.float()
    with torch.no_grad(), packed_linear(tower, torch.float32):
        assert torch.allclose(tower(x).double(), exact, atol=2e-6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), packed_linear(tower, torch.bfloat16):
        found = tower(x)
    assert found.dtype == torch.bfloat16 and torch.allclose(found.double(), exact, atol=0.02)


def test_the_tower_is_as_it_was_behind_it_and_after_an_error() -> None:
    tower = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).double())
    with pytest.raises(KeyError), packed_linear(tower, torch.float32):
        assert ("forward" in vars(tower[0])) == _can_pack(torch.float32) and "forward" not in vars(tower[1])
        raise KeyError
    assert "forward" not in vars(tower[0]) and tower[0](torch.ones(1, 4)).requires_grad
