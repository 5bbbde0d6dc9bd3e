"""What tests of hostile weight files need."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


class Malicious:
    """A pickle of this makes a folder when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def malicious() -> type[Malicious]:
    """Builds an object whose unpickling makes the given folder."""
    return Malicious
