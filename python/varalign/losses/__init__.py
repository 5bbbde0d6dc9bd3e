"""Contrastive losses: the schedulable one, its plain-PyTorch reference, and other people's to compare with.

Importing this package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from varalign.losses.others import OTHERS

if TYPE_CHECKING:
    from varalign.losses.contrastive import ContrastiveLoss, ContrastiveOutput
    from varalign.schedules.direction_stats import DirectionStats

__all__ = ["LOSSES", "ContrastiveLoss", "ContrastiveOutput", "DirectionStats"]

LOSSES = ("clip", *OTHERS)
"""Names of all losses."""


def __getattr__(name: str) -> Any:
    if name == "DirectionStats":
        return import_module("varalign.schedules.direction_stats").DirectionStats
    if name in __all__:
        return getattr(import_module("varalign.losses.contrastive"), name)
    raise AttributeError(f"module 'varalign.losses' has no attribute {name!r}")
