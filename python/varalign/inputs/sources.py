"""Where a step's inputs come from: one source a side, live (through the tower) or cached (rows of features).

A source gives inputs on the training device; `features` turns them into tower outputs inside the autocast.
B batch, S image side, D feature dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.data.errors import DataError
from varalign.data.tokens.lexicon import Lexicon
from varalign.encoders.towers import Towers

Rows = NDArray[np.int64]


@dataclass
class ImageInputs:
    """One batch of images.

    Attributes:
        rows: (B,) rows of the data set, replacements in place.
        tensor: pixels (B, 3, S, S) or features (B, D), float32, on the device.
        wait: seconds that the caller waited for it, and for the host's part of its way to the device.
        total: images of the batch of which these are one process's share; 0: these are the batch.
    """

    rows: Rows
    tensor: Tensor
    wait: float = 0.0
    total: int = 0


class ImageSource(Protocol):
    """Batches of images for training and for evaluation.

    Attributes:
        unreadable: rows that could not be read so far, with the reason.
        cached: whether its rows are features already, which need no tower: every process takes them all.
    """

    unreadable: dict[int, str]

    @property
    def cached(self) -> bool: ...

    def prepare(self) -> None:
        """Make what training batches come from before a run begins, so that faults of it end the command early."""

    def batches(
        self, order: Sequence[Rows], *, epoch: int, whole: Sequence[Rows] | None = None
    ) -> Iterator[ImageInputs]:
        """Training batches, augmented where that is on, in the given order.

        `whole`: the batches of which these are one process's shares.
        """

    def plain(self, rows: Rows, batch_size: int) -> Iterator[ImageInputs]:
        """Evaluation batches in order, without the rows that cannot be read."""

    def features(self, towers: Towers, inputs: Tensor) -> Tensor:
        """The tower's output (B, D) of a batch's tensor."""


class TextSource(Protocol):
    """Captions by row; `cached` as of an `ImageSource`."""

    @property
    def cached(self) -> bool: ...

    def inputs(self, rows: Rows, epoch: int | None = None) -> tuple[Tensor, ...]:
        """What `features` needs for these captions, on the device; as training sees them where an epoch is given."""

    def features(self, towers: Towers, inputs: tuple[Tensor, ...]) -> Tensor:
        """The tower's output (B, D)."""


@dataclass
class FeatureRows:
    """Rows of a feature matrix kept on the device: both an `ImageSource` and a `TextSource`.

    Attributes:
        matrix: (N, D) float32 on the device.
        unreadable: rows that no feature could be made for, with the reason.
    """

    matrix: Tensor
    unreadable: dict[int, str] = field(default_factory=dict)
    cached = True

    def prepare(self) -> None:
        """Nothing: the rows are there."""

    def batches(
        self, order: Sequence[Rows], *, epoch: int, whole: Sequence[Rows] | None = None
    ) -> Iterator[ImageInputs]:
        """Rows of the matrix, the same every epoch."""
        for rows in order:
            yield ImageInputs(rows, self._take(rows))

    def plain(self, rows: Rows, batch_size: int) -> Iterator[ImageInputs]:
        """Rows of the matrix that are readable."""
        for part in chunks(readable(rows, self.unreadable), batch_size):
            yield ImageInputs(part, self._take(part))

    def inputs(self, rows: Rows, epoch: int | None = None) -> tuple[Tensor, ...]:
        """Rows of the matrix, the same every epoch."""
        return (self._take(rows),)

    def features(self, towers: Towers, inputs: Tensor | tuple[Tensor, ...]) -> Tensor:
        """The rows themselves."""
        return inputs if isinstance(inputs, Tensor) else inputs[0]

    def _take(self, rows: Rows) -> Tensor:
        return self.matrix[torch.from_numpy(rows).to(self.matrix.device, non_blocking=True)]


@dataclass
class LexicalTexts:
    """A `TextSource` whose features are followed by the captions' lexical vectors, made when they are first asked for.

    Attributes:
        source: gives the tower's features (B, D).
        lexicon: gives the vectors (B, L).
        captions: T of them, one a row of the source.
        device: where the features are.
    """

    source: TextSource
    lexicon: Lexicon
    captions: Sequence[str]
    device: torch.device

    def __post_init__(self) -> None:
        self._vectors = torch.zeros(len(self.captions), self.lexicon.width, device=self.device)
        self._made = np.zeros(len(self.captions), bool)

    @property
    def cached(self) -> bool:
        """Whether the tower's features are there."""
        return self.source.cached

    def inputs(self, rows: Rows, epoch: int | None = None) -> tuple[Tensor, ...]:
        """The source's inputs, and the lexical vectors last."""
        new = np.unique(rows[~self._made[rows]])
        if len(new):
            vectors = torch.from_numpy(self.lexicon([self.captions[row] for row in new.tolist()]))
            self._vectors[torch.from_numpy(new).to(self.device)] = vectors.to(self.device)
            self._made[new] = True
        return (*self.source.inputs(rows, epoch), self._vectors[torch.from_numpy(rows).to(self.device)])

    def features(self, towers: Towers, inputs: tuple[Tensor, ...]) -> Tensor:
        """(B, D + L)."""
        found = self.source.features(towers, inputs[:-1])
        return torch.cat([found, inputs[-1].to(found.dtype)], dim=1)


def with_lexical(
    source: TextSource, lexicon: Lexicon | None, captions: Sequence[str] | None, device: torch.device
) -> TextSource:
    """The source, with lexical vectors where the model has a lexicon: the one place that appends them.

    Args:
        captions: of all rows of the source.

    Raises:
        DataError: the model reads captions, and the data have none.
    """
    if lexicon is None:
        return source
    if captions is None:
        raise DataError(
            "this model reads the captions' words, and the features file has none beside it: put STEM.texts.jsonl there"
        )
    return LexicalTexts(source, lexicon, captions, device)


def readable(rows: Rows, unreadable: Mapping[int, str]) -> Rows:
    """The rows without the unreadable ones."""
    return rows[~np.isin(rows, list(unreadable))] if unreadable else rows


def chunks(rows: Rows, size: int) -> list[Rows]:
    """The rows in order, `size` at a time."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
