"""Evaluation of a model on a split: the numbers of `eval --json`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varalign.canonical.hub_correction import HubCorrection, corrected_ranks
from varalign.data.errors import DataError
from varalign.data.pair_ids import pair_ids
from varalign.evaluation.embedding_statistics import cosine_similarity, summary
from varalign.evaluation.intervals import recall_intervals
from varalign.evaluation.retrieval import ranks, recalls
from varalign.inputs.pair_features import sent
from varalign.inputs.parts import Parts
from varalign.inputs.sources import Rows
from varalign.inputs.tower_loop import TEXT_BATCH, encoded_rows
from varalign.losses.pair_loss import Ids, batched_loss


@dataclass(frozen=True)
class SplitEmbeddings:
    """Unit vectors of some images and of their texts, both as retrieval's candidates: copies of an image count as one.

    Attributes:
        images: (I, D) float32 on the device. rows: (I,) their image rows.
        texts: (T, D), grouped by image. captions: (T,) their caption rows. owner: (T,) their images, as rows of
            `images`, ascending.
        pairs, first: as of `varalign.data.index.Candidates`.
        first_ids: ids of `first_pairs`, as the losses take them, where a caption belongs to several images.
        unreadable: number of images that could not be read.
    """

    images: Tensor
    rows: Rows
    texts: Tensor
    captions: Rows
    owner: Rows
    pairs: Rows
    first: Rows
    first_ids: Ids | None
    unreadable: int

    def first_pairs(self) -> tuple[Tensor, Tensor]:
        """(P, D) images that have a caption, and (P, D) the first caption of each in file order."""
        image, text = torch.from_numpy(self.first).to(self.images.device).unbind(1)
        return self.images[image], self.texts[text]


def embed_split(parts: Parts, image_rows: Rows, *, every_caption: bool = False) -> SplitEmbeddings:
    """Embed images and their texts, without gradient.

    Args:
        parts: model and data.
        image_rows: the images.
        every_caption: each caption is a text of its own, whatever the options say of equal ones.

    Raises:
        DataError: none of the images can be read.
    """
    rows, images = embed_images(parts, image_rows)
    data = replace(parts.data, same_caption="distinct") if every_caption else parts.data
    kept = data.candidates(rows)
    images = images[torch.from_numpy(kept.places).to(images.device)]
    captioned = kept.rows[kept.first[:, 0]]
    return SplitEmbeddings(
        images,
        kept.rows,
        embed_texts(parts, kept.captions),
        kept.captions,
        kept.owner,
        kept.pairs,
        kept.first,
        sent(pair_ids(data, captioned, data.first_captions(captioned)), images.device),
        unreadable=len(image_rows) - len(rows),
    )


def embed_images(parts: Parts, image_rows: Rows) -> tuple[Rows, Tensor]:
    """The images that can be read, and their unit vectors (I, D) on the device.

    Raises:
        DataError: none of them can be read.
    """
    found = list(encoded_rows(parts, "image", image_rows, parts.config.batch_size, head=parts.model.project_images))
    if not found:
        raise DataError(f"none of the {len(image_rows)} images of this split can be read; see `varalign data check`")
    return np.concatenate([part for part, _ in found]), torch.cat([part for _, part in found])


def embed_texts(parts: Parts, captions: Rows) -> Tensor:
    """Unit vectors (T, D) of captions, on the device."""
    found = encoded_rows(parts, "text", captions, TEXT_BATCH, head=parts.model.project_texts)
    return torch.cat([part for _, part in found])


def evaluate(
    parts: Parts,
    split: str,
    correction: HubCorrection | None = None,
    *,
    statistics: bool = True,
    found: SplitEmbeddings | None = None,
) -> dict[str, Any]:
    """Evaluate on a split.

    Args:
        parts: model and data; the batch size of its options is that of the loss.
        split: `train`, `dev` or `test`.
        correction: of the scores that rank; the statistics and the loss are those of the similarities.
        statistics: False leaves out the statistics of the embeddings but `cosine_similarity`: they take as long as the
            recalls.
        found: the split's embeddings, where they are there already.

    Returns:
        `i2t_recall@1` … `t2i_recall@10` (fractions), `images`, `texts`, `intervals` (the [low, high] of each recall),
        `cosine_similarity` and the other statistics of the embeddings, `loss` (½/½ symmetric, the model's logit scale,
        first caption of each image), `logit_scale`; `unreadable`, a number of images, where some could not be read;
        with a correction `uncorrected`, the recalls and `intervals` without it.
    """
    found = embed_split(parts, parts.data.rows(split)) if found is None else found
    scale, pairs = float(parts.model.evaluation_scale), torch.from_numpy(found.pairs).to(found.texts.device)
    plain = i2t, t2i = ranks(found.images, found.texts, pairs)
    if correction is not None:
        i2t, t2i = corrected_ranks(found.images, found.texts, pairs, correction)
    result: dict[str, Any] = dict(recalls(i2t, t2i))
    result["intervals"] = recall_intervals(i2t, t2i, found.pairs)
    if correction is not None:
        result["uncorrected"] = {**recalls(*plain), "intervals": recall_intervals(*plain, found.pairs)}
    if statistics:
        result |= summary(found.images, found.texts, pairs)
    else:
        result["cosine_similarity"] = cosine_similarity(found.images, found.texts, pairs)
    result["loss"] = batched_loss(*found.first_pairs(), scale, parts.config.batch_size, found.first_ids)
    result["logit_scale"] = scale
    return result | ({"unreadable": found.unreadable} if found.unreadable else {})
