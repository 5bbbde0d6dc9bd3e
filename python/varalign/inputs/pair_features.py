"""Features of training pairs, batch by batch: from cached rows or straight from the towers, one pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from varalign.data.errors import DataError
from varalign.data.features import FeatureSet
from varalign.inputs.build import Parts
from varalign.inputs.sources import FeatureRows, Rows

IMAGE_BATCH = 64  # images through a tower at a time
ROW_BATCH = 2048  # rows of features at a time
TEXT_BATCH = 256


@dataclass(frozen=True)
class PairFeatures:
    """Features of some images and of all their captions.

    Attributes:
        rows: (I,) image rows. image_features: (I, Dx).
        captions: (T,) caption rows. text_features: (T, Dy). owner: (T,) positions in `rows`.
    """

    rows: Rows
    image_features: Tensor
    captions: Rows
    text_features: Tensor
    owner: Tensor


def batches_of_pairs(parts: Parts, rows: Rows, *, training: bool) -> Iterator[PairFeatures]:
    """Features of these images and their captions, batch by batch, from the cache or through the towers.

    Args:
        parts: data, model and sources.
        rows: image rows.
        training: images as training sees them (augmented, with injected noise) instead of as evaluation does.

    Raises:
        DataError: a feature is NaN or infinite; image or caption is named.
    """
    size = ROW_BATCH if isinstance(parts.images, FeatureRows) else IMAGE_BATCH
    order = [rows[start : start + size] for start in range(0, len(rows), size)]
    was_training = parts.model.training
    parts.model.eval()
    try:
        inputs = parts.images.batches(order, epoch=0) if training else parts.images.plain(rows, size)
        for batch in inputs:
            captions = parts.data.caption_rows(batch.rows)
            x, y = _features(parts, batch.tensor, captions)
            _require_finite(parts, "image", x, batch.rows)
            _require_finite(parts, "text", y, captions)
            counts = np.diff(parts.data.caption_offsets)[batch.rows]
            owner = torch.from_numpy(np.repeat(np.arange(len(batch.rows)), counts)).to(x.device)
            yield PairFeatures(batch.rows, x, captions, y, owner)
    finally:
        parts.model.train(was_training)


def _features(parts: Parts, images: Tensor, captions: Rows) -> tuple[Tensor, Tensor]:
    # Not in the generator: what is entered there stays entered while the caller has its turn.
    with torch.no_grad(), parts.autocast():
        x = parts.images.features(parts.model, images).float()
        texts = [x.new_zeros(0, parts.model.text_feature_dim)]
        for start in range(0, len(captions), TEXT_BATCH):
            inputs = parts.texts.inputs(captions[start : start + TEXT_BATCH])
            texts.append(parts.texts.features(parts.model, inputs).float())
        return x, torch.cat(texts)


def all_pairs(parts: Parts, rows: Rows, *, training: bool) -> PairFeatures:
    """`batches_of_pairs` as one, in memory."""
    found = list(batches_of_pairs(parts, rows, training=training))
    firsts = np.cumsum([0, *(len(part.rows) for part in found)])
    return PairFeatures(
        np.concatenate([part.rows for part in found]),
        torch.cat([part.image_features for part in found]),
        np.concatenate([part.captions for part in found]),
        torch.cat([part.text_features for part in found]),
        torch.cat([part.owner + int(first) for part, first in zip(found, firsts, strict=False)]),
    )


def _require_finite(parts: Parts, side: str, features: Tensor, rows: Rows) -> None:
    good = torch.isfinite(features).all(dim=1).cpu().numpy()
    if good.all():
        return
    bad = rows[~good]
    data, row = parts.data, int(bad[0])
    names = data.image_names if side == "image" else None if isinstance(data, FeatureSet) else data.captions
    raise DataError(
        f"the {side} features of row {row}{'' if names is None else f' ({names[row]!r})'} hold NaN or infinity, those "
        f"of {len(bad)} of {len(rows)} rows seen with it: see what the encoder gave, or leave them out"
    )
