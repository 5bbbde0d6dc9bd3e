"""Evaluation of a model on a split: the numbers of `eval --json`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.data.errors import DataError
from varalign.data.index import first_of_each
from varalign.evaluation.embedding_statistics import summary
from varalign.evaluation.retrieval import retrieval
from varalign.inputs.open_data import Data
from varalign.inputs.parts import Parts
from varalign.inputs.sources import Rows
from varalign.inputs.tower_loop import TEXT_BATCH, encoded_rows, gathered
from varalign.losses.pair_loss import batched_loss


def embed_split(parts: Parts, image_rows: Rows, batch_size: int) -> tuple[Tensor, Rows, Tensor, Rows]:
    """Unit vectors of images and of all their captions, without gradient; copies of an image count as one.

    Returns:
        image_embeddings (I, D) float32 on the device, the image rows that could be read (I,), text_embeddings (T, D),
        caption rows (T,).

    Raises:
        DataError: none of the images can be read.
    """
    model = parts.model
    found = list(encoded_rows(parts, "image", image_rows, batch_size, head=model.project_images))
    if not found:
        raise DataError(f"none of the {len(image_rows)} images of this split can be read; see `varalign data check`")
    rows, images = np.concatenate([part for part, _ in found]), torch.cat([part for _, part in found])
    captions = parts.data.caption_rows(rows)
    rows, firsts = one_of_each(rows, parts.data.image_ids)
    captions = captions[np.argsort(owners(parts.data, captions, rows), kind="stable")]
    texts = [part for _, part in encoded_rows(parts, "text", captions, TEXT_BATCH, head=model.project_texts)]
    return images[torch.from_numpy(firsts).to(images.device)], rows, torch.cat(texts), captions


def one_of_each(rows: Rows, image_ids: Rows) -> tuple[Rows, Rows]:
    """The rows without those whose image (by id: copies count as one) came before, and their places in `rows`."""
    _, places = np.unique(image_ids[rows], return_index=True)
    places = np.sort(places).astype(np.int64)
    return rows[places], places


def tower_features(parts: Parts, batch_size: int) -> tuple[NDArray[np.float32], NDArray[np.float32], list[int]]:
    """The towers' outputs, before the heads, of all images and captions of the data.

    Returns:
        image_features (I, Dx), zeros where one cannot be read; text_features (T, Dy); the rows that cannot be read.
    """
    images, captions = (np.arange(n, dtype=np.int64) for n in (len(parts.data.split), len(parts.data.caption_owner)))
    found = encoded_rows(parts, "image", images, batch_size)
    x, missing = gathered(found, len(images), parts.model.image_feature_dim)
    found = encoded_rows(parts, "text", captions, TEXT_BATCH)
    y, _ = gathered(found, len(captions), parts.model.text_feature_dim)
    return x.numpy(), y.numpy(), missing.tolist()


def assess(parts: Parts, split: str, *, batch_size: int) -> dict[str, Any]:
    """Evaluate on a split.

    Args:
        parts: model and data.
        split: `train`, `dev` or `test`.
        batch_size: images a batch of the loss, the run's own.

    Returns:
        `i2t_recall@1` … `t2i_recall@10` (fractions), `images`, `texts`, `cosine_similarity` and the other statistics of
        the embeddings, `loss` (½/½ symmetric, the model's logit scale, first caption of each image).
    """
    images, rows, texts, captions = embed_split(parts, parts.data.rows(split), batch_size)
    return measure(parts, images, rows, texts, captions, batch_size=batch_size)


def measure(
    parts: Parts, images: Tensor, rows: Rows, texts: Tensor, captions: Rows, *, batch_size: int
) -> dict[str, Any]:
    """The numbers of `assess` from embeddings that are there."""
    owner = owners(parts.data, captions, rows)
    text_image_ids = torch.from_numpy(owner).to(texts.device)
    result: dict[str, Any] = dict(retrieval(images, texts, text_image_ids))
    result |= summary(images, texts, text_image_ids)
    first = first_of_each(owner)
    result["loss"] = batched_loss(
        images, texts[torch.from_numpy(first).to(texts.device)], float(parts.model.evaluation_scale), batch_size
    )
    result["logit_scale"] = float(parts.model.evaluation_scale)
    return result


def owners(data: Data, captions: Rows, rows: Rows) -> Rows:
    """(T,) the place in `rows` of each caption's image, or of the copy of it that stands there."""
    return positions_of(data.image_ids[data.caption_owner[captions]], data.image_ids[rows])


def positions_of(values: Rows, among: Rows) -> Rows:
    """Where each of `values` stands in `among`."""
    order = np.argsort(among, kind="stable")
    return order[np.searchsorted(among, values, sorter=order)].astype(np.int64)
