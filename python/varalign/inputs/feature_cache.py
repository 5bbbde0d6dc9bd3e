"""Frozen towers are run once: their features lie on disk under a key of weights, preprocessing and data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
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
from varalign.encoders.dual_encoder import DualEncoder
from varalign.inputs.sources import ImageSource, LiveImages, TextSource

Say = Callable[[str], None]


def default_cache() -> Path:
    """`$VARALIGN_CACHE`, else `~/.cache/varalign`."""
    named = os.environ.get("VARALIGN_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "varalign"


def image_features(
    model: DualEncoder, source: ImageSource, count: int, dim: int, path: Path, say: Say
) -> tuple[Tensor, dict[int, str]]:
    """Features of all images, from the cache file or made now and kept there.

    Args:
        model: its image tower is run in evaluation mode without gradient.
        source: gives the pixels.
        count: I, number of images.
        dim: D, the tower's output dimensions.
        path: the cache file.
        say: called with a line of progress.

    Returns:
        (I, D) float32 on the CPU, zeros in rows that cannot be read, and those rows with their reasons.
    """
    cached = _read(path, (count, dim))
    if cached is not None:
        say(f"image features: {count} rows from the cache")
        reasons = json.loads(bytes(cached["reasons"].tolist())) if "reasons" in cached else {}
        return cached["features"], {row: reasons.get(str(row), "unreadable") for row in cached["unreadable"].tolist()}
    matrix = torch.zeros(count, dim)
    found = np.zeros(count, bool)
    done = 0
    model.eval()
    with torch.inference_mode():
        for inputs in source.plain(np.arange(count, dtype=np.int64), 64):
            matrix[torch.from_numpy(inputs.rows)] = source.features(model, inputs.tensor).float().cpu()
            found[inputs.rows] = True
            if (done := done + len(inputs.rows)) // 1024 != (done - len(inputs.rows)) // 1024:
                say(f"image features: {done} of {count}")
    rows = np.flatnonzero(~found)
    noted = source.bad if isinstance(source, LiveImages) else {}
    unreadable = {row: noted.get(row, "unreadable") for row in rows.tolist()}
    tensors = {"features": matrix, "unreadable": torch.from_numpy(rows)}
    if unreadable:
        tensors["reasons"] = torch.tensor(list(json.dumps(unreadable).encode()), dtype=torch.uint8)
    _write(path, tensors, say)
    return matrix, unreadable


def text_features(model: DualEncoder, source: TextSource, count: int, dim: int, path: Path, say: Say) -> Tensor:
    """Features of all captions, (T, D) float32 on the CPU; see `image_features`."""
    cached = _read(path, (count, dim))
    if cached is not None:
        say(f"text features: {count} rows from the cache")
        return cached["features"]
    matrix = torch.zeros(count, dim)
    model.eval()
    with torch.inference_mode():
        for start in range(0, count, 256):
            rows = np.arange(start, min(start + 256, count), dtype=np.int64)
            matrix[start : start + len(rows)] = source.features(model, source.inputs(rows)).float().cpu()
            if start // 8192 != (start + 256) // 8192:
                say(f"text features: {start + len(rows)} of {count}")
    _write(path, {"features": matrix}, say)
    return matrix


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
