"""Frozen towers are run once: their features lie on disk under a key of weights, preprocessing and data.

Images are in the key by their content and captions by their text: folders that have only names, sizes and times in
common share nothing. The compiled core is in the key too, because it decides which pixels and tokens a file gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from varalign.data.errors import DataError
from varalign.data.files import cache_key, content_key
from varalign.data.images import core_key
from varalign.encoders.specs import Side
from varalign.encoders.towers import Towers
from varalign.inputs.kept import Arrays, kept_arrays
from varalign.inputs.live import LiveCaptions, LiveImages
from varalign.inputs.sources import FeatureRows, chunks
from varalign.inputs.tower_loop import IMAGE_BATCH, TEXT_BATCH, gathered, run_tower

FORMAT = 2
"""Raised whenever features of the same weights and files change, or the form of the file."""

Say = Callable[[str], None]


def image_rows(towers: Towers, source: LiveImages, folder: Path, say: Say) -> FeatureRows:
    """Features of all images in float32 arithmetic, from the cache or made now and kept there.

    Args:
        towers: their image tower is run.
        source: gives the pixels of its I files.
        folder: of the cache.
        say: called with lines on progress, and on a damaged or refused file of the cache.

    Returns:
        Rows (I, D) on the source's device; zeros in rows that cannot be read, which are named with their reasons.
    """
    encoder, count = towers.image_encoder, len(source.paths)
    assert encoder is not None
    content = content_key(source.paths)
    settings = (encoder.weights_fingerprint(), source.preprocess, core_key())
    batches = ((batch.rows, batch.tensor) for batch in source.plain(np.arange(count), IMAGE_BATCH))
    encoded = run_tower(towers, batches, lambda pixels: source.features(towers, pixels), nullcontext)

    def make() -> dict[str, NDArray[Any]]:
        matrix, missing = gathered(encoded, count, encoder.feature_dim, _progress("image", count, IMAGE_BATCH, say))
        if content_key(source.paths) != content:
            raise DataError("image files have changed while their features were made: run this again")
        reasons = {row: source.unreadable.get(row, "unreadable") for row in missing.tolist()}
        return {"features": matrix.numpy(), "reasons": np.frombuffer(json.dumps(reasons).encode(), np.uint8)}

    key = cache_key(FORMAT, "image", *settings, source.names, content)
    found = _kept(folder, "image", key, make, (count, encoder.feature_dim), say)
    unreadable = {int(row): reason for row, reason in json.loads(found["reasons"].tobytes()).items()}
    return FeatureRows(torch.from_numpy(found["features"]).to(source.device), unreadable)


def text_rows(towers: Towers, source: LiveCaptions, captions: Sequence[str], folder: Path, say: Say) -> FeatureRows:
    """Features (T, D) of all captions of the source; see `image_rows`."""
    encoder, count = towers.text_encoder, len(captions)
    assert encoder is not None
    # Batches of equal lengths have little padding; those of 64 fit a CPU's cache, a GPU wants larger ones.
    size = 64 if source.device.type == "cpu" else TEXT_BATCH
    batches = ((rows, source.inputs(rows)) for rows in chunks(source.by_length(np.arange(count)), size))
    encoded = run_tower(towers, batches, lambda inputs: source.features(towers, inputs), nullcontext)

    def make() -> dict[str, NDArray[Any]]:
        matrix, _ = gathered(encoded, count, encoder.feature_dim, _progress("text", count, size, say))
        return {"features": matrix.numpy()}

    settings = (encoder.weights_fingerprint(), encoder.tokenizer.fingerprint, core_key())
    key = cache_key(FORMAT, "text", *settings, json.dumps(list(captions)))
    found = _kept(folder, "text", key, make, (count, encoder.feature_dim), say)
    return FeatureRows(torch.from_numpy(found["features"]).to(source.device))


def _kept(folder: Path, side: Side, key: str, make: Callable[[], Arrays], shape: tuple[int, int], say: Say) -> Arrays:
    path = folder / f"{side}-{key}.safetensors"
    told = f"{side} features: {shape[0]} rows from the cache"
    return kept_arrays(path, key, make, shapes={"features": shape}, told=told, say=say)


def _progress(side: Side, count: int, size: int, say: Say) -> Callable[[int], None]:
    def said(done: int) -> None:
        if done % (16 * size) < size <= done:
            say(f"{side} features: {done} of {count}")

    return said
