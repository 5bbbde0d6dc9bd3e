"""What the tests of exports share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Train = Callable[..., Path]


def images_of(image_folder: Path, count: int = 3) -> list[Path]:
    """The first image files of the test data."""
    return sorted((image_folder / "Images").glob("*.jpg"))[:count]
