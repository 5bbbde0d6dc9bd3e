"""What several tests of data share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


@pytest.fixture(scope="session")
def photograph() -> Callable[..., NDArray[np.uint8]]:
    """Makes pictures with about the spectrum of photographs, where noise would be an unfair input."""

    def make(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
        rng = np.random.default_rng(seed)
        levels = np.full((height, width, 3), 128.0)
        for scale in (3, 8, 24, 80):
            shape = (height // scale + 2, width // scale + 2, 3)
            coarse = rng.normal(0, 6 * scale**0.4, shape).astype(np.float32)
            layers = [
                Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)
            ]
            levels += np.stack([np.asarray(layer) for layer in layers], -1)
        return np.clip(levels, 0, 255).astype(np.uint8)

    return make
