"""Some of many rows, evenly spread: banks, anchors and held-out pairs are drawn so."""

from __future__ import annotations

import torch
from torch import Tensor


def evenly(count: int, most: int, device: torch.device) -> Tensor:
    """(n,) int64 ascending: at most `most` of the rows 0 to `count` − 1, evenly spread, the first and the last too."""
    return torch.linspace(0, count - 1, min(count, most), device=device).long()
