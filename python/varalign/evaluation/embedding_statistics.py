"""Statistics of embeddings: similarity of pairs and of non-pairs, modality gap, alignment, uniformity."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from varalign.evaluation.retrieval import Array, as_given, as_matrix, check_pairs

# I images, T texts, D embedding

SAMPLE = 5000
"""Most points whose uniformity is computed from all pairs; of more, from the pairs of so many of them."""
_BLOCK = 1 << 16  # rows in float64 at once


def _unit(name: str, given: Array, device: torch.device | None = None) -> Tensor:
    """The rows in float64, scaled to unit length; a row of zeros, whose cosine is undefined, becomes NaN."""
    rows = as_matrix(name, given, device)
    scaled: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return scaled


def uniformity(embeddings: Array, *, t: float = 2.0, chunk: int = 1024) -> float:
    """How evenly the points cover the sphere: the log of the mean Gaussian potential of two different points.

    log mean_{i<j} exp(−t ‖x_i − x_j‖²): 0 if all points are equal; lower is more even (about −2t for random directions
    in high dimensions). NaN for fewer than two points.

    Args:
        embeddings: (N, D) floating point, N ≥ 2; scaled to unit length here.
        t: sharpness of the potential, above 0.
        chunk: rows compared at once; the largest matrix is (chunk, N).

    Source: Wang & Isola 2020, "Understanding contrastive representation learning through alignment and uniformity on
    the hypersphere", §4.1.2.
    """
    points = _unit("embeddings", embeddings)
    count = len(points)
    if count < 2:
        return math.nan
    points = points.to(torch.float32)  # the exponent's error of about 1e-6 does not show in a mean over pairs
    total = torch.zeros((), dtype=torch.float64, device=points.device)
    for start in range(0, count, chunk):
        block = points[start : start + chunk]
        # within the block each pair counts twice, beside the diagonal; with later rows each pair counts once
        inside = (block @ block.T).mul_(2 * t).sub_(2 * t).exp_()
        inside.fill_diagonal_(0.0)
        total += 0.5 * inside.sum(dtype=torch.float64)
        later = points[start + chunk :]
        if len(later):
            total += (block @ later.T).mul_(2 * t).sub_(2 * t).exp_().sum(dtype=torch.float64)
    mean = float(total) / (count * (count - 1) / 2)
    return -math.inf if mean == 0.0 else math.log(mean)


def estimated_uniformity(embeddings: Array, *, t: float = 2.0, chunk: int = 1024) -> tuple[float, float]:
    """`uniformity` of at most `SAMPLE` of the points, and its standard error.

    Of more points, so many are drawn without repetition, the same ones at each call. Their mean potential is a
    U-statistic: its error is 2 √(Var h / n · (1 − n / N)) with h the mean potential of a point. The log's is that
    divided by the mean.

    Args:
        embeddings, t, chunk: as of `uniformity`.

    Returns:
        The figure and its error: 0 where all pairs were taken, NaN with the figure.

    Source: Hoeffding 1948, "A class of statistics with asymptotically normal distribution".
    """
    rows = as_given("embeddings", embeddings)
    count = len(rows)
    if count <= SAMPLE:
        return uniformity(rows, t=t, chunk=chunk), 0.0
    if not bool(torch.isfinite(rows.sum(dtype=torch.float64))):
        return math.nan, math.nan
    drawn = np.sort(np.random.default_rng(count).choice(count, SAMPLE, replace=False))
    points = _unit("embeddings", rows[torch.from_numpy(drawn).to(rows.device)]).to(torch.float32)
    potential = torch.empty(SAMPLE, dtype=torch.float64, device=points.device)
    for start in range(0, SAMPLE, chunk):
        block = (points[start : start + chunk] @ points.T).mul_(2 * t).sub_(2 * t).exp_()
        block[torch.arange(len(block)), torch.arange(start, start + len(block))] = 0.0
        potential[start : start + chunk] = block.sum(dim=1, dtype=torch.float64) / (SAMPLE - 1)
    mean = float(potential.mean())
    if mean == 0.0:
        return -math.inf, math.nan
    error = 2 * float(potential.std()) / mean * math.sqrt((1 / SAMPLE) * (1 - SAMPLE / count))
    return math.log(mean), error


def cosine_similarity(image_embeddings: Array, text_embeddings: Array, text_image_ids: Array) -> float:
    """Mean over the true pairs, −1 to 1; arguments as of `summary`."""
    images_ID = as_given("image_embeddings", image_embeddings)
    texts_TD = as_given("text_embeddings", text_embeddings, images_ID.device)
    text_E, image_E = check_pairs(images_ID, texts_TD, text_image_ids)
    return float(_pair_sum(images_ID, texts_TD, text_E, image_E)) / len(text_E)


def summary(image_embeddings: Array, text_embeddings: Array, text_image_ids: Array) -> dict[str, float]:
    """The figures of one split, from every image, every text and every true pair.

    Args:
        image_embeddings: (I, D) floating point; scaled to unit length here.
        text_embeddings: (T, D), likewise.
        text_image_ids: (T,) the row of each text's image, or (E, 2) pairs of a text and an image, as in `ranks`.

    Returns:
        `cosine_similarity`: mean over the E true pairs (T where each text has one image), −1 to 1.
        `cosine_similarity_non_pairs`: mean over the other I·T − E; NaN without any. From sums, no (I, T) matrix:
        Σ_ij u_i·v_j = (Σ_i u_i)·(Σ_j v_j).
        `modality_gap`: Euclidean distance of the mean image and the mean text, 0 to 2 (Liang et al. 2022, "Mind the
        gap", §2). `alignment`: mean squared distance of true pairs, 0 to 4 (Wang & Isola 2020, §4.1.1, exponent 2);
        for unit vectors it is 2 − 2·`cosine_similarity`.
        `image_uniformity`, `text_uniformity`: see `estimated_uniformity`; NaN for fewer than two points. Beside each,
        where it is of a sample, its standard error under `image_uniformity_error`, `text_uniformity_error`.
        NaN in gives NaN out.

    Raises:
        ValueError: shapes, dtypes or ids that do not fit together.
    """
    images_ID = as_given("image_embeddings", image_embeddings)
    texts_TD = as_given("text_embeddings", text_embeddings, images_ID.device)
    text_E, image_E = check_pairs(images_ID, texts_TD, text_image_ids)
    count, others = len(text_E), len(images_ID) * len(texts_TD) - len(text_E)
    pairs = _pair_sum(images_ID, texts_TD, text_E, image_E)
    of_images, of_texts = _sum("image_embeddings", images_ID), _sum("text_embeddings", texts_TD)
    cosine = float(pairs) / count
    figures = {
        "cosine_similarity": cosine,
        "cosine_similarity_non_pairs": float(of_images @ of_texts - pairs) / others if others else math.nan,
        "modality_gap": float((of_images / len(images_ID) - of_texts / len(texts_TD)).norm()),
        "alignment": 2.0 - 2.0 * cosine,
    }
    for side, rows in (("image", images_ID), ("text", texts_TD)):
        figures[f"{side}_uniformity"], error = estimated_uniformity(rows)
        if error:
            figures[f"{side}_uniformity_error"] = error
    return figures


def _pair_sum(images_ID: Tensor, texts_TD: Tensor, text_E: Tensor, image_E: Tensor) -> Tensor:
    """() float64, the sum of the pairs' cosines."""
    pairs = torch.zeros((), dtype=torch.float64, device=text_E.device)
    for start in range(0, len(text_E), _BLOCK):
        part = slice(start, start + _BLOCK)
        u, v = _unit("image_embeddings", images_ID[image_E[part]]), _unit("text_embeddings", texts_TD[text_E[part]])
        pairs += (u * v).sum()
    return pairs


def _sum(name: str, rows: Tensor) -> Tensor:
    """(D,) float64, the sum of the rows (N, D), each of unit length."""
    blocks = (_unit(name, rows[start : start + _BLOCK]).sum(dim=0) for start in range(0, len(rows), _BLOCK))
    return torch.stack(list(blocks)).sum(dim=0)
