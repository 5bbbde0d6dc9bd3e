"""Frozen towers are run once: their features lie on disk under a key of weights, preprocessing and data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from varalign.data.files import write_atomically
from varalign.encoders.towers import Towers
from varalign.inputs.live import LiveCaptions, LiveImages
from varalign.inputs.sources import FeatureRows, Rows, chunks
from varalign.inputs.tower_loop import IMAGE_BATCH, TEXT_BATCH, gathered, run_tower

Say = Callable[[str], None]


def default_cache() -> Path:
    """`$VARALIGN_CACHE`, else `~/.cache/varalign`."""
    named = os.environ.get("VARALIGN_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "varalign"


def image_rows(towers: Towers, source: LiveImages, path: Path, say: Say) -> FeatureRows:
    """Features of all images in float32 arithmetic, from the cache file or made now and kept there.

    Args:
        towers: their image tower is run.
        source: gives the pixels of its I files.
        path: the cache file.
        say: called with lines on progress.

    Returns:
        Rows (I, D) on the source's device; zeros in rows that cannot be read, which are named with their reasons.
    """
    count = len(source.paths)
    cached = _read(path, (count, towers.image_feature_dim))
    if cached is not None:
        say(f"image features: {count} rows from the cache")
        reasons = json.loads(bytes(cached["reasons"].tolist())) if "reasons" in cached else {}
        unreadable = {row: reasons.get(str(row), "unreadable") for row in cached["unreadable"].tolist()}
        return FeatureRows(cached["features"].to(source.device), unreadable)

    def encode(pixels: Tensor) -> Tensor:
        return source.features(towers, pixels)

    batches = ((batch.rows, batch.tensor) for batch in source.plain(_all(count), IMAGE_BATCH))
    found = run_tower(towers, batches, encode, nullcontext)
    matrix, missing = gathered(found, count, towers.image_feature_dim, _progress("image", count, IMAGE_BATCH, say))
    unreadable = {row: source.unreadable.get(row, "unreadable") for row in missing.tolist()}
    tensors = {"features": matrix, "unreadable": torch.from_numpy(missing)}
    if unreadable:
        tensors["reasons"] = torch.tensor(list(json.dumps(unreadable).encode()), dtype=torch.uint8)
    _write(path, tensors, say)
    return FeatureRows(matrix.to(source.device), unreadable)


def text_rows(towers: Towers, source: LiveCaptions, path: Path, say: Say) -> FeatureRows:
    """Features (T, D) of all captions of the source; see `image_rows`."""
    count = len(source)
    cached = _read(path, (count, towers.text_feature_dim))
    if cached is not None:
        say(f"text features: {count} rows from the cache")
        return FeatureRows(cached["features"].to(source.device))

    def encode(inputs: tuple[Tensor, ...]) -> Tensor:
        return source.features(towers, inputs)

    batches = ((rows, source.inputs(rows)) for rows in chunks(_all(count), TEXT_BATCH))
    found = run_tower(towers, batches, encode, nullcontext)
    matrix, _ = gathered(found, count, towers.text_feature_dim, _progress("text", count, TEXT_BATCH, say))
    _write(path, {"features": matrix}, say)
    return FeatureRows(matrix.to(source.device))


def _all(count: int) -> Rows:
    return np.arange(count, dtype=np.int64)


def _progress(side: str, count: int, size: int, say: Say) -> Callable[[int], None]:
    def said(done: int) -> None:
        if done % (16 * size) < size <= done:
            say(f"{side} features: {done} of {count}")

    return said


def kept_arrays(path: Path, key: str, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The arrays that a file keeps under a key, or made now and kept there in place of what it held.

    Args:
        path: a safetensors file; where its folder cannot be written, nothing is kept.
        key: of everything that the arrays depend on.
        make: makes them.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("key") == key:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError):
        pass
    arrays = make()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save_arrays(arrays, metadata={"key": key}))
    return arrays


def _read(path: Path, shape: tuple[int, int]) -> dict[str, Tensor] | None:
    try:
        tensors = load_tensors(path.read_bytes())
    except (OSError, SafetensorError):
        return None
    features = tensors.get("features")
    return tensors if features is not None and tuple(features.shape) == shape else None


def _write(path: Path, tensors: dict[str, Tensor], say: Say) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save_tensors(tensors))
    except OSError as error:  # the run can go on without its cache
        say(f"features are not kept: {path.parent} cannot be written: {error}; name another folder by --cache")
