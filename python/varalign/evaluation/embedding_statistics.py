"""Statistics of embeddings: similarity of pairs and of non-pairs, modality gap, alignment, uniformity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varalign.evaluation.retrieval import Array, as_matrix, check_pairs

# I images, T texts, D embedding


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
        `image_uniformity`, `text_uniformity`: see `uniformity`; NaN for fewer than two points.
        NaN in gives NaN out.

    Raises:
        ValueError: shapes, dtypes or ids that do not fit together.
    """
    images_ID = _unit("image_embeddings", image_embeddings)
    texts_TD = _unit("text_embeddings", text_embeddings, images_ID.device)
    text_E, image_E = check_pairs(images_ID, texts_TD, text_image_ids)
    count, others = len(text_E), len(images_ID) * len(texts_TD) - len(text_E)
    pairs = torch.zeros((), dtype=torch.float64, device=text_E.device)
    for start in range(0, count, 1 << 16):
        part = slice(start, start + (1 << 16))
        pairs += (images_ID[image_E[part]] * texts_TD[text_E[part]]).sum()
    everything = images_ID.sum(dim=0) @ texts_TD.sum(dim=0)
    cosine = float(pairs) / count
    return {
        "cosine_similarity": cosine,
        "cosine_similarity_non_pairs": float(everything - pairs) / others if others else math.nan,
        "modality_gap": float((images_ID.mean(dim=0) - texts_TD.mean(dim=0)).norm()),
        "alignment": 2.0 - 2.0 * cosine,
        "image_uniformity": uniformity(images_ID),
        "text_uniformity": uniformity(texts_TD),
    }
