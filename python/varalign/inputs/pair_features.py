"""Features of pairs, batch by batch: from cached rows or straight from the towers, one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.canonical.choice import DEV_IMAGES
from varalign.data.errors import DataError
from varalign.data.features import FeatureSet
from varalign.data.index import first_of_each
from varalign.data.pair_ids import PairIds, pair_ids
from varalign.inputs.open_data import Data
from varalign.inputs.parts import Inputs
from varalign.inputs.sources import FeatureRows, Rows, chunks
from varalign.inputs.tower_loop import (
    IMAGE_BATCH,
    TEXT_BATCH,
    encoded_rows,
    run_tower,
    split_over_ranks,
)

ROW_BATCH = 2048  # rows of features at a time


@dataclass(frozen=True)
class PairFeatures:
    """Features of some images and of all their captions.

    Attributes:
        rows: (I,) image rows. image_features: (I, Dx).
        captions: (T,) caption rows. text_features: (T, Dy). owner: (T,) positions in `rows`, ascending.
    """

    rows: Rows
    image_features: Tensor
    captions: Rows
    text_features: Tensor
    owner: Tensor


def first_pairs(data: Data, pairs: PairFeatures) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """The images that have a caption and the first one of each, as rows of the features, (P,) and (P,).

    The third are their ids, as the losses take them, where such a caption belongs to several of the images.
    """
    first = first_of_each(pairs.owner.cpu().numpy())
    images = pairs.owner.cpu().numpy()[first]
    device = pairs.owner.device
    ids = sent(pair_ids(data, pairs.rows[images], pairs.captions[first]), device)
    return torch.from_numpy(images).to(device), torch.from_numpy(first).to(device), ids


def sent(ids: PairIds | None, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """The ids as tensors on the device."""
    return None if ids is None else (torch.from_numpy(ids.images).to(device), torch.from_numpy(ids.texts).to(device))


def thinned(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most `DEV_IMAGES` of the rows, evenly spread: what is chosen on dev need not read more."""
    if len(rows) <= DEV_IMAGES:
        return rows
    return rows[np.linspace(0, len(rows) - 1, DEV_IMAGES).astype(np.int64)]


def dev_pairs(inputs: Inputs) -> PairFeatures:
    """The pairs of the dev split, of at most `DEV_IMAGES` images; with lexical vectors where the model reads them."""
    return all_pairs(inputs, thinned(inputs.data.rows("dev")), training=False, lexical=True)


def batches_of_pairs(inputs: Inputs, rows: Rows, *, training: bool, lexical: bool = False) -> Iterator[PairFeatures]:
    """Features of these images and their captions, batch by batch, from the cache or through the towers.

    Args:
        inputs: data, towers and sources.
        rows: image rows.
        training: images as training sees them (augmented, with injected noise) instead of as evaluation does.
        lexical: lexical vectors follow the text features where the model reads them.

    Raises:
        DataError: a feature is NaN or infinite; image or caption is named.
    """
    size = ROW_BATCH if isinstance(inputs.images, FeatureRows) else IMAGE_BATCH
    if training:

        def run(part: Rows) -> Iterator[tuple[Rows, Tensor]]:
            order = chunks(part, size)
            return run_tower(
                inputs.towers,
                ((batch.rows, batch.tensor) for batch in inputs.images.batches(order, epoch=0)),
                lambda x: inputs.images.features(inputs.towers, x),
                inputs.autocast,
                what="encoding pairs",
                total=len(part),
            )

        images = run(rows) if inputs.images.cached else split_over_ranks(rows, run, inputs.images.unreadable)
    else:
        images = encoded_rows(inputs, "image", rows, size)
    for found, x in images:
        captions = inputs.data.caption_rows(found)
        whole: Callable[[Tensor], Tensor] | None = (lambda features: features) if lexical else None
        texts = [features for _, features in encoded_rows(inputs, "text", captions, TEXT_BATCH, head=whole)]
        y = torch.cat(texts) if texts else x.new_zeros(0, inputs.towers.text_feature_dim)
        _require_finite(inputs, "image", x, found)
        _require_finite(inputs, "text", y, captions)
        counts = np.diff(inputs.data.caption_offsets)[found]
        owner = torch.from_numpy(np.repeat(np.arange(len(found)), counts)).to(x.device)
        yield PairFeatures(found, x, captions, y, owner)


def all_pairs(inputs: Inputs, rows: Rows, *, training: bool, lexical: bool = False) -> PairFeatures:
    """`batches_of_pairs` as one, in memory."""
    found = list(batches_of_pairs(inputs, rows, training=training, lexical=lexical))
    firsts = np.cumsum([0, *(len(part.rows) for part in found)])
    return PairFeatures(
        np.concatenate([part.rows for part in found]),
        torch.cat([part.image_features for part in found]),
        np.concatenate([part.captions for part in found]),
        torch.cat([part.text_features for part in found]),
        torch.cat([part.owner + int(first) for part, first in zip(found, firsts, strict=False)]),
    )


def _require_finite(inputs: Inputs, side: str, features: Tensor, rows: Rows) -> None:
    good = torch.isfinite(features).all(dim=1).cpu().numpy()
    if good.all():
        return
    bad = rows[~good]
    data, row = inputs.data, int(bad[0])
    names = data.image_names if side == "image" else None if isinstance(data, FeatureSet) else data.captions
    raise DataError(
        f"the {side} features of row {row}{'' if names is None else f' ({names[row]!r})'} hold NaN or infinity, those "
        f"of {len(bad)} of {len(rows)} rows seen with it: see what the encoder gave, or leave them out"
    )
