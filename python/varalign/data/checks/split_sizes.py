"""How many images and texts each split has, and how well a recall measured on it is known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varalign.data.index import CaptionIndex

FEW = 30
"""Images below which a measured recall says little: at 30, the 95 % interval around 50 % is 36 points wide."""
ENOUGH = {"train": 50, "dev": FEW, "test": FEW}
"""Images from which on a split is fit for training. Below 50 training images nothing was ever measured here."""


def split_sizes(data: CaptionIndex) -> list[str]:
    """A line for each split: its images and captions, and what dev and test allow.

    The uncertainty is half of the 95 % interval of a share of 50 % (binomial): 1.96 · sqrt(0.25 / images).
    """
    lines = []
    for name, enough in ENOUGH.items():
        rows = data.rows(name)
        line = f"{name}: {len(rows):,} images, {len(data.caption_rows(rows)):,} captions"
        if name != "train" and len(rows):
            line += f", so a recall near 50 % is known to ±{min(50.0, 98 / math.sqrt(len(rows))):.1f} points"
        lines.append(line + (f" (few: wanted at least {enough})" if len(rows) < enough else ""))
    return lines
