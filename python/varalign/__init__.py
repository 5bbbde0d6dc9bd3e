"""Image-text alignment from few pairs, with a contrastive loss re-scheduled at every step.

Source: Pillai 2025, arXiv 2503.03202. Names are looked up when they are first used: `import varalign` imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from varalign._core import __version__

if TYPE_CHECKING:
    from varalign.aligner.aligner import Aligner
    from varalign.aligner.load import load
    from varalign.losses.contrastive import ContrastiveLoss, contrastive
    from varalign.options.config import TrainConfig
    from varalign.schedules import LossSchedule, build_schedule
    from varalign.training.run import train

__all__ = [
    "Aligner",
    "ContrastiveLoss",
    "LossSchedule",
    "TrainConfig",
    "__version__",
    "build_schedule",
    "contrastive",
    "load",
    "train",
]

_HOMES = {
    "Aligner": "varalign.aligner.aligner",
    "ContrastiveLoss": "varalign.losses.contrastive",
    "LossSchedule": "varalign.schedules",
    "TrainConfig": "varalign.options.config",
    "build_schedule": "varalign.schedules",
    "contrastive": "varalign.losses.contrastive",
    "load": "varalign.aligner.load",
    "train": "varalign.training.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'varalign' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
