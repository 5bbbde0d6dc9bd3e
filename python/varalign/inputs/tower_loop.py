"""The one loop that pushes batches through a tower, and what is read through it: rows of the data, and queries."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.data.errors import DataError
from varalign.data.ranks import world
from varalign.data.waiting import waiting
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.sharding import whole
from varalign.encoders.specs import Side
from varalign.encoders.towers import Towers
from varalign.inputs.live import LiveCaptions, LiveImages
from varalign.inputs.parts import Inputs, autocast
from varalign.inputs.sources import Rows, chunks, with_lexical
from varalign.options.config import TrainConfig

IMAGE_BATCH = 64
TEXT_BATCH = 256
T = TypeVar("T")

# A forked process has none of its parent's OpenMP threads, and its first product on several would wait for them for
# ever. torch's own data loader runs its workers on one thread too.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


def run_tower(
    towers: Towers,
    batches: Iterable[tuple[Rows, T]],
    encode: Callable[[T], Tensor],
    arithmetic: Callable[[], AbstractContextManager[Any]],
    *,
    what: str,
    total: int,
) -> Iterator[tuple[Rows, Tensor]]:
    """Push batches through a tower in evaluation mode, without gradient.

    Args:
        towers: what `encode` runs; their mode is put back at the end.
        batches: the rows (B,) of each batch, and what `encode` takes of it.
        encode: to (B, D).
        arithmetic: entered around `encode`.
        what, total: as of `waiting`, in rows.

    Yields:
        The rows and the result, float32, on its device.
    """
    was_training = towers.training
    towers.eval()
    try:
        with waiting(what, total) as bar:
            for rows, inputs in batches:
                # Not around the yield: what a generator has entered stays entered while its caller works.
                with torch.no_grad(), arithmetic():
                    found = encode(inputs).float()
                yield rows, found
                bar.advance(len(rows))
    finally:
        towers.train(was_training)


def split_over_ranks(
    rows: Rows, run: Callable[[Rows], Iterable[tuple[Rows, Tensor]]], unreadable: dict[int, str]
) -> Iterator[tuple[Rows, Tensor]]:
    """Let every rank run a tower over its share of the rows, and give all of them the results of all, in order.

    Args:
        rows: (N,) of which some may turn out unreadable.
        run: from some of the rows to them, batch by batch, with their results (B, D).
        unreadable: of the source; it learns what the other ranks could not read.
    """
    if world().size == 1:
        yield from run(rows)
        return
    own = list(run(world().share(rows)))
    kept = np.concatenate([part for part, _ in own]) if own else rows[:0]
    width = max(world().gathered(own[0][1].shape[1] if own else 0))
    values = torch.cat([found for _, found in own]) if own else torch.zeros(0, width)
    for theirs in world().gathered(dict(unreadable)):
        unreadable.update(theirs)
    yield from world().gathered_rows(kept, values)


def encoded_rows(
    inputs: Inputs, side: Side, rows: Rows, size: int, *, head: Callable[[Tensor], Tensor] | None = None
) -> Iterator[tuple[Rows, Tensor]]:
    """A side's features of these rows as evaluation sees them, batch by batch; unreadable images are left out.

    Args:
        inputs: towers and sources.
        side: whose rows.
        rows: (N,) image rows or caption rows.
        size: rows a batch.
        head: applied to the features, within the same arithmetic: `model.project_images` gives embeddings. It gets
            lexical vectors after the text features where the model reads them; without a head they are left out.
    """
    source: Any = inputs.images if side == "image" else inputs.texts
    width = inputs.towers.image_feature_dim if side == "image" else inputs.towers.text_feature_dim

    def encode(batch: Any) -> Tensor:
        features: Tensor = source.features(inputs.towers, batch)
        return features[:, :width] if head is None else head(features)

    def run(part: Rows) -> Iterator[tuple[Rows, Tensor]]:
        batches: Iterable[tuple[Rows, Any]]
        if side == "image":
            batches = ((batch.rows, batch.tensor) for batch in source.plain(part, size))
        else:
            batches = ((some, source.inputs(some)) for some in chunks(part, size))
        return run_tower(inputs.towers, batches, encode, inputs.autocast, what=f"encoding {side}s", total=len(part))

    if source.cached:
        return run(rows)

    def run_whole(part: Rows) -> Iterator[tuple[Rows, Tensor]]:
        with whole(inputs.towers, side):
            yield from run(part)

    return split_over_ranks(rows, run_whole, getattr(source, "unreadable", {}))


def gathered(batches: Iterable[tuple[Rows, Tensor]], count: int, dim: int) -> tuple[Tensor, Rows]:
    """The results of `run_tower` as one matrix.

    Args:
        batches: of the rows from 0 to `count`, any of which may be missing.
        count, dim: N and D.

    Returns:
        (N, D) float32 on the CPU, zeros in missing rows, and the missing rows.
    """
    matrix, missing = torch.zeros(count, dim), np.ones(count, bool)
    for rows, found in batches:
        matrix[torch.from_numpy(rows)] = found.cpu()
        missing[rows] = False
    return matrix, np.flatnonzero(missing)


def embedded_files(
    model: DualEncoder,
    config: TrainConfig,
    files: Sequence[Path | str],
    *,
    size: int = IMAGE_BATCH,
    unit: bool = True,
) -> NDArray[np.float32]:
    """Vectors (N, D) of N image files, read and encoded as evaluation reads and encodes the images of the data.

    Args:
        files: of images.
        size: files a batch.
        unit: whether the vectors are scaled to unit length.

    Raises:
        DataError: a file cannot be read as an image; it is named.
    """
    source = _files(model, config, files)

    def batches() -> Iterator[tuple[Rows, Tensor]]:
        for rows in chunks(np.arange(len(files)), size):
            for batch in source.plain(rows, size):
                yield batch.rows, batch.tensor
            if source.unreadable:
                raise DataError(source.unreadable[min(source.unreadable)])

    head = model.project_images if unit else model.image_head
    return _queries(model, config, batches(), lambda x: head(model.encode_images(x)), len(files))[0]


def readable_files(
    model: DualEncoder, config: TrainConfig, files: Sequence[Path | str]
) -> tuple[Rows, NDArray[np.float32], dict[int, str]]:
    """Those of N image files that can be read: rows (M,), unit vectors (M, D), and why each other one cannot be."""
    source = _files(model, config, files)
    batches = ((batch.rows, batch.tensor) for batch in source.plain(np.arange(len(files)), IMAGE_BATCH))
    matrix, missing = _queries(
        model, config, batches, lambda x: model.project_images(model.encode_images(x)), len(files)
    )
    rows = np.delete(np.arange(len(files)), missing)
    return rows, matrix[rows], source.unreadable


def _files(model: DualEncoder, config: TrainConfig, files: Sequence[Path | str]) -> LiveImages:
    encoder, device = model.image_encoder, model.log_logit_scale.device
    assert encoder is not None
    paths = [Path(file) for file in files]
    preprocess = replace(encoder.preprocess, decode=config.decode)
    return LiveImages(paths, [path.name for path in paths], preprocess, None, 0, config.threads, device, max_bad=1.0)


def embedded_texts(
    model: DualEncoder,
    config: TrainConfig,
    texts: Sequence[str],
    *,
    size: int = TEXT_BATCH,
    unit: bool = True,
) -> NDArray[np.float32]:
    """Vectors (N, D) of N texts, in the arithmetic that evaluation uses; the options are those of `embedded_files`."""
    encoder, device = model.text_encoder, model.log_logit_scale.device
    assert encoder is not None
    source = with_lexical(LiveCaptions(texts, encoder.tokenizer, device), model.lexicon, texts, device)
    batches = ((rows, source.inputs(rows)) for rows in chunks(np.arange(len(texts)), size))
    head = model.project_texts if unit else model.text_head
    return _queries(model, config, batches, lambda x: head(source.features(model, x)), len(texts))[0]


def _queries(
    model: DualEncoder,
    config: TrainConfig,
    batches: Iterable[tuple[Rows, T]],
    encode: Callable[[T], Tensor],
    count: int,
) -> tuple[NDArray[np.float32], Rows]:
    """(N, D) and the rows that are missing in it."""
    device = model.log_logit_scale.device
    found = run_tower(model, batches, encode, lambda: autocast(config.precision, device), what="encoding", total=count)
    matrix, missing = gathered(found, count, model.shape.embedding_dim)
    return matrix.numpy(), missing
