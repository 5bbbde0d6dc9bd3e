"""Frozen towers are run once: their features lie on disk under a key of weights, preprocessing and data.

Images are in the key by their content and captions by their text: folders that have only names, sizes and times in
common share nothing. The compiled core is in the key too, because it decides which pixels and tokens a file gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.data.errors import DataError
from varalign.data.files import cache_key, content_key
from varalign.data.images import core_key
from varalign.encoders.packed import packed_linear
from varalign.encoders.specs import Side
from varalign.encoders.towers import Towers
from varalign.inputs.kept import Arrays, kept_arrays
from varalign.inputs.live import LiveCaptions, LiveImages
from varalign.inputs.sources import FeatureRows, Rows, chunks
from varalign.inputs.tower_loop import IMAGE_BATCH, TEXT_BATCH, gathered, run_tower, split_over_ranks

FORMAT = 3
"""Raised whenever features of the same weights and files change, or the form of the file."""

SAMPLE, LEAST_COSINE = 64, 0.9999
"""Rows of which features in bf16 are compared with those in float32, and the least cosine with which bf16 is taken."""

Say = Callable[[str], None]
Precision = Literal["fp32", "bf16"]
T = TypeVar("T")


def image_rows(
    towers: Towers, source: LiveImages, folder: Path, say: Say, precision: Precision = "fp32"
) -> FeatureRows:
    """Features of all images, from the cache or made now and kept there.

    Args:
        towers: their image tower is run.
        source: gives the pixels of its I files.
        folder: of the cache.
        say: called with lines on the cache, such as of a damaged file, and where bf16 is not taken.
        precision: the arithmetic; bf16 only where a sample's features stay within `LEAST_COSINE` of float32.

    Returns:
        Rows (I, D) on the source's device; zeros in rows that cannot be read, which are named with their reasons.
    """
    encoder, count = towers.image_encoder, len(source.paths)
    assert encoder is not None
    content = content_key(source.paths)
    settings = (encoder.weights_fingerprint(), source.preprocess, core_key(), precision)

    def batches(rows: Rows) -> Iterator[tuple[Rows, Tensor]]:
        return ((batch.rows, batch.tensor) for batch in source.plain(rows, IMAGE_BATCH))

    def make() -> dict[str, NDArray[Any]]:
        encode = partial(source.features, towers)
        run = _TowerRun(towers, "image", encode, source.device, batches, source.unreadable)
        matrix, missing = run.features(np.arange(count), precision, say)
        if content_key(source.paths) != content:
            raise DataError("image files have changed while their features were made: run this again")
        reasons = {row: source.unreadable.get(row, "unreadable") for row in missing.tolist()}
        return {"features": matrix.numpy(), "reasons": np.frombuffer(json.dumps(reasons).encode(), np.uint8)}

    key = cache_key(FORMAT, "image", *settings, source.names, content)
    found = _kept(folder, "image", key, make, (count, encoder.feature_dim), say)
    unreadable = {int(row): reason for row, reason in json.loads(found["reasons"].tobytes()).items()}
    return FeatureRows(torch.from_numpy(found["features"]).to(source.device), unreadable)


def text_rows(
    towers: Towers,
    source: LiveCaptions,
    captions: Sequence[str],
    folder: Path,
    say: Say,
    precision: Precision = "fp32",
) -> FeatureRows:
    """Features (T, D) of all captions of the source; see `image_rows`."""
    encoder, count = towers.text_encoder, len(captions)
    assert encoder is not None
    # Batches of equal lengths have little padding; those of 64 fit a CPU's cache, a GPU wants larger ones.
    size = 64 if source.device.type == "cpu" else TEXT_BATCH

    def batches(rows: Rows) -> Iterator[tuple[Rows, tuple[Tensor, ...]]]:
        return ((part, source.inputs(part)) for part in chunks(source.by_length(rows), size))

    def make() -> dict[str, NDArray[Any]]:
        run = _TowerRun(towers, "text", lambda inputs: source.features(towers, inputs), source.device, batches)
        return {"features": run.features(np.arange(count), precision, say)[0].numpy()}

    settings = (encoder.weights_fingerprint(), encoder.tokenizer.fingerprint, core_key(), precision)
    key = cache_key(FORMAT, "text", *settings, json.dumps(list(captions)))
    found = _kept(folder, "text", key, make, (count, encoder.feature_dim), say)
    return FeatureRows(torch.from_numpy(found["features"]).to(source.device))


class GroupedTexts:
    """A `TextSource` of features of captions that are made, or read from the cache, group by group.

    A run on a few of a folder's images does not wait for the captions of all the others. Which captions share a group,
    and so a batch, is for the caller to say: it must not depend on which were asked for first.

    Args:
        groups: (T,) the group of each caption.
        make: the features (n, D) of the captions in these rows.
        dim: D.
        device: where the features go.
    """

    cached = True

    def __init__(
        self, groups: NDArray[np.int8], make: Callable[[Rows], FeatureRows], dim: int, device: torch.device
    ) -> None:
        self._groups, self._make, self._made = groups, make, np.zeros(len(groups), bool)
        self._found = FeatureRows(torch.zeros(len(groups), dim, device=device))

    def inputs(self, rows: Rows, epoch: int | None = None) -> tuple[Tensor, ...]:
        """Rows of the features, the same every epoch."""
        for group in np.unique(self._groups[rows[~self._made[rows]]]):
            members = np.flatnonzero(self._groups == group)
            self._found.matrix[torch.from_numpy(members).to(self._found.matrix.device)] = self._make(members).matrix
            self._made[members] = True
        return self._found.inputs(rows)

    def features(self, towers: Towers, inputs: tuple[Tensor, ...]) -> Tensor:
        """The rows themselves."""
        return inputs[0]


@dataclass
class _TowerRun(Generic[T]):
    """Runs a frozen tower over rows.

    Attributes:
        towers, side: which tower.
        encode: what a batch holds to features (B, D).
        device: of the tower.
        batches: rows to batches of them; rows that cannot be read are missing.
        unreadable: of the source of the batches.
    """

    towers: Towers
    side: Side
    encode: Callable[[T], Tensor]
    device: torch.device
    batches: Callable[[Rows], Iterable[tuple[Rows, T]]]
    unreadable: dict[int, str] = field(default_factory=dict)

    def features(self, rows: Rows, precision: Precision, say: Say) -> tuple[Tensor, Rows]:
        """Features (N, D) float32 on the CPU of the rows from 0 to N - 1, and the missing rows.

        precision: bf16 gives way to fp32, and that is said, where the least cosine between the two falls below
            `LEAST_COSINE` in a sample of the rows.
        """
        dtype = torch.float32
        if precision == "bf16":
            sample = rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.int64))]
            exact, near = (self._run(sample, len(rows), kind)[0][sample] for kind in (torch.float32, torch.bfloat16))
            cosine = float(torch.cosine_similarity(exact, near).where(exact.any(dim=1), torch.ones(())).min())
            if cosine >= LEAST_COSINE:
                dtype = torch.bfloat16
            else:
                say(f"{self.side} features: made in fp32, in bf16 a cosine of {cosine:.5f} was below {LEAST_COSINE}")
        return self._run(rows, len(rows), dtype)

    def _run(self, rows: Rows, count: int, dtype: torch.dtype) -> tuple[Tensor, Rows]:
        tower = self.towers.encoder(self.side)
        assert tower is not None
        in_half = partial(torch.autocast, self.device.type, dtype)
        arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext if dtype == torch.float32 else in_half
        with packed_linear(tower, dtype):
            what = f"{self.side} features"

            def run(part: Rows) -> Iterator[tuple[Rows, Tensor]]:
                return run_tower(self.towers, self.batches(part), self.encode, arithmetic, what=what, total=len(part))

            return gathered(split_over_ranks(rows, run, self.unreadable), count, tower.feature_dim)


def _kept(folder: Path, side: Side, key: str, make: Callable[[], Arrays], shape: tuple[int, int], say: Say) -> Arrays:
    path = folder / f"{side}-{key}.safetensors"
    told = f"{side} features: {shape[0]} rows from the cache"
    return kept_arrays(path, key, make, shapes={"features": shape}, told=told, say=say)
