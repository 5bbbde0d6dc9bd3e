"""Where a step's inputs come from: one source a side, live (through the tower) or cached (rows of features).

A source hands over inputs on the training device; `features` turns them into tower outputs inside the autocast.
B batch, S image side, L tokens, D feature dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.data.damage import noisy_pixels
from varalign.data.decoded import DecodedCache
from varalign.data.device_cache import DeviceCache, Normalisation, send
from varalign.data.images import Augment, Pixels, Preprocess
from varalign.data.noise import Noise
from varalign.data.pipeline import ImagePipeline
from varalign.data.tokenizers import Tokenizer
from varalign.data.word_dropout import drop_words
from varalign.encoders.dual_encoder import DualEncoder
from varalign.runs.folder import RunFailed
from varalign.runs.quarantine import summary

Rows = NDArray[np.int64]


class TooManyBadImages(RunFailed):
    """More images could not be read than `--max-bad` allows; the message counts and names the first."""


@dataclass
class ImageInputs:
    """One batch of images.

    Attributes:
        rows: (B,) rows of the data set, replacements in place.
        tensor: pixels (B, 3, S, S) or features (B, D), float32, on the device.
        wait: seconds the caller waited for it, and for its way to the device as far as that holds the host up.
    """

    rows: Rows
    tensor: Tensor
    wait: float = 0.0


class ImageSource(Protocol):
    """Batches of images for training and for evaluation."""

    def prepare(self) -> None:
        """Make what training batches come from, before a run begins: what cannot be is refused here."""

    def batches(self, order: Sequence[Rows], *, epoch: int) -> Iterator[ImageInputs]:
        """Training batches, augmented where that is on, in the given order."""

    def plain(self, rows: Rows, batch_size: int) -> Iterator[ImageInputs]:
        """Evaluation batches in order; rows that cannot be read are left out of them."""

    def features(self, model: DualEncoder, inputs: Tensor) -> Tensor:
        """The tower's output (B, D) of a batch's tensor."""


class TextSource(Protocol):
    """Captions by row."""

    def inputs(self, rows: Rows, epoch: int | None = None) -> tuple[Tensor, ...]:
        """What `features` needs for these captions, on the device; as training sees them where an epoch is given."""

    def features(self, model: DualEncoder, inputs: tuple[Tensor, ...]) -> Tensor:
        """The tower's output (B, D)."""


@dataclass
class FeatureRows:
    """Rows of a feature matrix kept on the device: both an `ImageSource` and a `TextSource`.

    Attributes:
        matrix: (N, D) float32 on the device.
        unreadable: rows that no feature could be made for, with the reason.
    """

    matrix: Tensor
    unreadable: Mapping[int, str] = field(default_factory=dict)

    def prepare(self) -> None:
        """Nothing: the rows are there."""

    def batches(self, order: Sequence[Rows], *, epoch: int) -> Iterator[ImageInputs]:
        """Rows of the matrix, the same every epoch."""
        for rows in order:
            yield ImageInputs(rows, self._take(rows))

    def plain(self, rows: Rows, batch_size: int) -> Iterator[ImageInputs]:
        """Rows of the matrix that are readable."""
        good = rows[~np.isin(rows, list(self.unreadable))] if self.unreadable else rows
        for start in range(0, len(good), batch_size):
            part = good[start : start + batch_size]
            yield ImageInputs(part, self._take(part))

    def inputs(self, rows: Rows, epoch: int | None = None) -> tuple[Tensor, ...]:
        """Rows of the matrix, the same every epoch."""
        return (self._take(rows),)

    def features(self, model: DualEncoder, inputs: Tensor | tuple[Tensor, ...]) -> Tensor:
        """The rows themselves."""
        return inputs if isinstance(inputs, Tensor) else inputs[0]

    def _take(self, rows: Rows) -> Tensor:
        return self.matrix[torch.from_numpy(rows).to(self.matrix.device, non_blocking=True)]


@dataclass
class LiveImages:
    """Images decoded ahead by the Rust pipeline and encoded by the tower at each step.

    Attributes:
        paths: (I,) image files by row.
        names: (I,) their names, for messages.
        preprocess, augment, seed, threads: as `ImagePipeline` takes them.
        device: where the pixels go.
        max_bad: share of `paths` that may be unreadable.
        noise: noise injected on purpose into the pixels, if any.
        noise_in: whether it goes into training batches or into plain ones.
        bad: rows found unreadable so far, with the reason.
        decoded: makes or opens the cache that training batches are cropped from; called once, by `prepare` or the first
            of them.
        resident: brings that cache to the device, where training batches are made then; called once, after `decoded`.
    """

    paths: Sequence[Path]
    names: Sequence[str]
    preprocess: Preprocess
    augment: Augment | None
    seed: int
    threads: int
    device: torch.device
    max_bad: float
    noise: Noise = field(default_factory=Noise)
    noise_in: Literal["training", "plain"] = "training"
    bad: dict[int, str] = field(default_factory=dict)
    decoded: Callable[[], DecodedCache | None] | None = None
    resident: Callable[[DecodedCache], DeviceCache] | None = None

    def __post_init__(self) -> None:
        self._normalised = Normalisation(self.preprocess, self.device)
        self._evaluation = ImagePipeline(
            self.paths,
            self.preprocess,
            seed=self.seed,
            threads=self.threads,
            dtype=self._travels_as("plain"),
            memory_format="channels_last",
        )

    @cached_property
    def _decoded(self) -> DecodedCache | None:
        return self.decoded() if self.decoded is not None else None

    @cached_property
    def _resident(self) -> DeviceCache | None:
        return self.resident(self._decoded) if self.resident is not None and self._decoded is not None else None

    @cached_property
    def _training(self) -> ImagePipeline:
        return ImagePipeline(
            self.paths,
            self.preprocess,
            augment=self.augment,
            seed=self.seed,
            threads=self.threads,
            decoded=self._decoded,
            dtype=self._travels_as("training"),
            memory_format="channels_last",
        )

    def prepare(self) -> None:
        """Make or open the decoded cache, where there is to be one, and bring it to the device."""
        _ = self._decoded, self._resident

    def batches(self, order: Sequence[Rows], *, epoch: int) -> Iterator[ImageInputs]:
        """Training batches; an unreadable image is replaced by one that is in no place of its batch.

        The replacement is a function of (seed, epoch, row) and of what can be read, never of what happened before.
        """
        pool = np.unique(np.concatenate(list(order))) if order else np.empty(0, np.int64)
        resident = self._resident
        if resident is None:
            yield from self._from_files(order, epoch, pool)
            return
        for rows in order:
            if resident.holds(rows).all():
                started = time.perf_counter()
                pixels = resident.batch(rows, epoch=epoch)
                yield ImageInputs(rows, pixels, time.perf_counter() - started)
            else:  # an image could not be decoded: the same batch by way of the files, which looks for another one
                yield from self._from_files([rows], epoch, pool)

    def _from_files(self, order: Sequence[Rows], epoch: int, pool: Rows) -> Iterator[ImageInputs]:
        for batch in self._training.batches(order, epoch=epoch):
            rows, pixels = batch.rows, batch.pixels
            if batch.errors:
                self._note(rows, batch.errors)
                rows = self._replace(rows.copy(), pixels, [position for position, _ in batch.errors], pool, epoch)
            yield self._inputs("training", rows, pixels, batch.wait)

    def plain(self, rows: Rows, batch_size: int) -> Iterator[ImageInputs]:
        """Evaluation batches without augmentation."""
        order = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        for batch in self._evaluation.batches(order):
            kept, pixels = batch.rows, batch.pixels
            if batch.errors:
                self._note(kept, batch.errors)
                good = np.ones(len(kept), bool)
                good[[position for position, _ in batch.errors]] = False
                kept, pixels = kept[good], pixels[good]
            if len(kept):
                yield self._inputs("plain", kept, pixels, batch.wait)

    def features(self, model: DualEncoder, inputs: Tensor) -> Tensor:
        """The image tower's output."""
        return model.encode_images(inputs)

    def _travels_as(self, kind: str) -> Literal["float32", "uint8"]:
        """A GPU normalises levels itself, a quarter of the bytes to pin and to send; noise wants normalised pixels."""
        noisy = kind == self.noise_in and self.noise.pixels
        return "uint8" if self.device.type == "cuda" and not noisy else "float32"

    def _inputs(self, kind: str, rows: Rows, pixels: Pixels, wait: float) -> ImageInputs:
        started = time.perf_counter()
        if kind == self.noise_in and self.noise.pixels:
            pixels = noisy_pixels(cast(NDArray[np.float32], pixels), rows, self.noise, self.seed)
        tensor = send(pixels, self.device)
        if tensor.dtype == torch.uint8:
            tensor = self._normalised(tensor.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        tensor = tensor.contiguous(memory_format=torch.channels_last)
        return ImageInputs(rows, tensor, wait + time.perf_counter() - started)

    def _note(self, rows: Rows, errors: Sequence[tuple[int, str]]) -> None:
        for position, reason in errors:
            self.bad[int(rows[position])] = reason
        if len(self.bad) > self.max_bad * len(self.paths):
            raise TooManyBadImages(
                f"{len(self.bad)} of {len(self.paths)} images cannot be read, more than --max-bad "
                f"{self.max_bad:g} allows: {summary({self.names[row]: reason for row, reason in self.bad.items()})}; "
                f"quarantine.jsonl in the run folder names those met so far, `varalign data check` lists them all"
            )

    def _replace(self, rows: Rows, pixels: Pixels, positions: list[int], pool: Rows, epoch: int) -> Rows:
        for position in positions:
            generator = np.random.default_rng((self.seed, epoch, int(rows[position])))
            taken = set(rows.tolist())
            for candidate in generator.permutation(pool):
                if int(candidate) in taken:
                    continue
                (batch,) = self._training.batches([np.array([candidate], np.int64)], epoch=epoch)
                if not batch.errors:
                    pixels[position], rows[position] = batch.pixels[0], candidate
                    break
            else:
                raise TooManyBadImages(
                    f"{self.names[rows[position]]} cannot be read and no image outside its batch can take its place"
                )
        return rows


class LiveCaptions:
    """Captions tokenized once and encoded by the tower at each step.

    Args:
        captions: (T,) all captions.
        tokenizer: turns them into ids.
        device: where ids go; lengths stay on the CPU, where the encoders pack and cut by them.
        word_dropout: chance of a token to be left out in training.
        seed: of the draws of `word_dropout`.
    """

    def __init__(
        self,
        captions: Sequence[str],
        tokenizer: Tokenizer,
        device: torch.device,
        *,
        word_dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        tokens = tokenizer(captions)
        self._ids, self._lengths = np.ascontiguousarray(tokens.ids), np.ascontiguousarray(tokens.lengths)
        self._pad_id = tokenizer.pad_id
        self._device = device
        self._dropout, self._seed = word_dropout, seed

    def inputs(self, rows: Rows, epoch: int | None = None) -> tuple[Tensor, ...]:
        """Ids (B, L) on the device and lengths (B,) on the CPU; with an epoch, some words are left out."""
        ids, lengths = self._ids[rows], self._lengths[rows]
        if epoch is not None and self._dropout:
            ids, lengths = drop_words(
                ids, lengths, rows, self._dropout, pad_id=self._pad_id, seed=self._seed, epoch=epoch
            )
        return torch.from_numpy(ids).to(self._device, non_blocking=True), torch.from_numpy(lengths)

    def features(self, model: DualEncoder, inputs: tuple[Tensor, ...]) -> Tensor:
        """The text tower's output."""
        ids, lengths = inputs
        return model.encode_texts(ids, lengths)
