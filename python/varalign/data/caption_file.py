"""What reading a captions file gives, whichever form it has."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MAX_LINE_BYTES = 1 << 16


@dataclass(frozen=True)
class CaptionFile:
    """What one captions file says, in file order.

    path: the file. image_names, captions, lines: (T,) each; `lines` are 1-based, 0 for JSON. splits: image name to
    "train", "dev" or "test" where the file carries splits, else None. notes: lines that the user should see.
    empty_lines: the lines left out because their caption is empty (with `skip_empty` only).
    """

    path: Path
    image_names: list[str]
    captions: list[str]
    lines: list[int]
    splits: dict[str, str] | None = None
    notes: list[str] = field(default_factory=list)
    empty_lines: list[int] = field(default_factory=list)
