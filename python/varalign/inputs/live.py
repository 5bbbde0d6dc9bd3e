"""Live sources: images decoded and captions tokenized ahead of the towers. B batch, S image side, L tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.data.damage import noisy_pixels
from varalign.data.decoded import DecodedCache
from varalign.data.images import Augment, Pixels, Preprocess
from varalign.data.noise import Noise
from varalign.data.pipeline import ImageBatch, ImagePipeline
from varalign.data.tokens.tokenizers import Tokenizer
from varalign.data.tokens.word_dropout import drop_words
from varalign.encoders.towers import Towers
from varalign.inputs.sources import ImageInputs, Rows, chunks
from varalign.runs.quarantine import summary
from varalign.runs.run_errors import RunFailed

Kind = Literal["training", "plain"]


class TooManyBadImages(RunFailed):
    """More images could not be read than `--max-bad` allows; the message counts and names the first."""


@dataclass
class LiveImages:
    """Images decoded ahead by the Rust pipeline and encoded by the tower at each step: an `ImageSource`.

    Attributes:
        paths: (I,) image files by row.
        names: (I,) their names, for messages.
        preprocess, augment, seed, threads: as `ImagePipeline` takes them.
        device: where the pixels go.
        max_bad: share of `paths` that may be unreadable.
        noise: noise injected on purpose into the pixels, if any.
        noise_in: whether it goes into training batches or into plain ones.
        unreadable: rows found unreadable so far, with the reason.
        decoded: makes or opens the cache that training batches are cropped from; called once, by `prepare` or the first
            of them.
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
    noise_in: Kind = "training"
    unreadable: dict[int, str] = field(default_factory=dict)
    decoded: Callable[[], DecodedCache | None] | None = None
    cached = False

    def __post_init__(self) -> None:
        # Tensors: dividing by a Python number, CUDA multiplies by its inverse, which rounds otherwise.
        levels, mean, std = 255.0, self.preprocess.mean, self.preprocess.std
        self._normal = [torch.tensor(value, dtype=torch.float32, device=self.device) for value in (levels, mean, std)]

    @cached_property
    def _decoded(self) -> DecodedCache | None:
        return self.decoded() if self.decoded is not None else None

    @cached_property
    def _training(self) -> ImagePipeline:
        return self._pipeline("training", self.augment, self._decoded)

    @cached_property
    def _evaluation(self) -> ImagePipeline:
        return self._pipeline("plain", None, None)

    def _pipeline(self, kind: Kind, augment: Augment | None, decoded: DecodedCache | None) -> ImagePipeline:
        return ImagePipeline(
            self.paths,
            self.preprocess,
            augment=augment,
            seed=self.seed,
            threads=self.threads,
            decoded=decoded,
            dtype=self._dtype(kind),
            memory_format="channels_last",
        )

    def _dtype(self, kind: Kind) -> Literal["float32", "uint8"]:
        """A GPU normalises the levels itself, a quarter of the bytes to pin and send; noise wants normalised pixels."""
        noisy = kind == self.noise_in and self.noise.pixels
        return "uint8" if self.device.type == "cuda" and not noisy else "float32"

    def prepare(self) -> None:
        """Make or open the decoded cache, where there is to be one."""
        _ = self._decoded

    def batches(
        self, order: Sequence[Rows], *, epoch: int, whole: Sequence[Rows] | None = None
    ) -> Iterator[ImageInputs]:
        """Training batches; an unreadable image is replaced by one that is not in its batch.

        The replacement is a function of (seed, epoch, row) and of which images can be read, not of earlier batches, nor
        of the process that has the row.
        """
        whole = order if whole is None else whole
        pool = np.unique(np.concatenate(list(whole))) if whole else np.empty(0, np.int64)
        for batch, around in zip(self._training.batches(order, epoch=epoch), whole, strict=True):
            rows, positions = batch.rows, self._note(batch)
            if positions:
                rows = self._replace(rows.copy(), batch.pixels, positions, pool, epoch, around)
            yield self._inputs("training", rows, batch.pixels, batch.wait)

    def plain(self, rows: Rows, batch_size: int) -> Iterator[ImageInputs]:
        """Evaluation batches without augmentation."""
        for batch in self._evaluation.batches(chunks(rows, batch_size)):
            kept, pixels, positions = batch.rows, batch.pixels, self._note(batch)
            if positions:
                kept, pixels = np.delete(kept, positions), np.delete(pixels, positions, axis=0)
            if len(kept):
                yield self._inputs("plain", kept, pixels, batch.wait)

    def features(self, towers: Towers, inputs: Tensor) -> Tensor:
        """The image tower's output."""
        return towers.encode_images(inputs)

    def _inputs(self, kind: Kind, rows: Rows, pixels: Pixels, wait: float) -> ImageInputs:
        started = time.perf_counter()
        if kind == self.noise_in and self.noise.pixels:
            pixels = noisy_pixels(cast(NDArray[np.float32], pixels), rows, self.noise, self.seed)
        tensor = torch.from_numpy(pixels)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # from pinned memory the copy does not hold up the host
        tensor = tensor.to(self.device, non_blocking=True)
        if tensor.dtype == torch.uint8:
            levels, mean, std = self._normal
            tensor = ((tensor.permute(0, 2, 3, 1).float() / levels - mean) / std).permute(0, 3, 1, 2)
        tensor = tensor.contiguous(memory_format=torch.channels_last)
        return ImageInputs(rows, tensor, wait + time.perf_counter() - started)

    def _note(self, batch: ImageBatch) -> list[int]:
        """Remember the unreadable images of a batch; returns their positions in it."""
        for position, reason in batch.errors:
            self.unreadable[int(batch.rows[position])] = reason
        if batch.errors and len(self.unreadable) > self.max_bad * len(self.paths):
            names = {self.names[row]: reason for row, reason in self.unreadable.items()}
            raise TooManyBadImages(
                f"{len(names)} of {len(self.paths)} images cannot be read, more than --max-bad "
                f"{self.max_bad:g} allows: {summary(names)}; mend or remove them, or allow more; a run's "
                "quarantine.jsonl names those that it met, `varalign data check` all of a data folder"
            )
        return [position for position, _ in batch.errors]

    def _replace(self, rows: Rows, pixels: Pixels, positions: list[int], pool: Rows, epoch: int, whole: Rows) -> Rows:
        for position in positions:
            generator = np.random.default_rng((self.seed, epoch, int(rows[position])))
            taken = {*rows.tolist(), *whole.tolist()}
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
    """Captions tokenized once and encoded by the tower at each step: a `TextSource`.

    Args:
        captions: (T,) all captions.
        tokenizer: turns them into ids.
        device: where ids go; lengths stay on the CPU, where the encoders pack and cut by them.
        word_dropout: chance of a token to be left out in training.
        seed: of the draws of `word_dropout`.
    """

    cached = False

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
        self.device = device
        self._dropout, self._seed = word_dropout, seed

    def by_length(self, rows: Rows) -> Rows:
        """The rows in the order of their numbers of tokens, most first: batches of them have little padding."""
        return rows[np.argsort(-self._lengths[rows], kind="stable")]

    def inputs(self, rows: Rows, epoch: int | None = None) -> tuple[Tensor, ...]:
        """Ids (B, L) on the device and lengths (B,) on the CPU; with an epoch, some words are left out."""
        ids, lengths = self._ids[rows], self._lengths[rows]
        if epoch is not None and self._dropout:
            draws = {"pad_id": self._pad_id, "seed": self._seed, "epoch": epoch}
            ids, lengths = drop_words(ids, lengths, rows, self._dropout, **draws)
        return torch.from_numpy(ids).to(self.device, non_blocking=True), torch.from_numpy(lengths)

    def features(self, towers: Towers, inputs: tuple[Tensor, ...]) -> Tensor:
        """The text tower's output."""
        return towers.encode_texts(*inputs)
