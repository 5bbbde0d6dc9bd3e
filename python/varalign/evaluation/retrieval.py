"""Recall@K between images that have any number of captions and captions that have one image; and top-k search.

A worked example, three images with 1, 2 and 1 captions (texts 0 | 1 2 | 3), similarities with the true pairs marked:

              text 0   text 1   text 2   text 3
    image 0   [0.9]     0.1      0.2      0.3
    image 1    0.8     [0.7]    [0.1]     0.2
    image 2    0.5      0.6      0.4     [0.5]

i2t: image 0 finds its caption first. Image 1's best caption is text 1 (0.7); text 0 lies above: rank 1, counted from 0.
Image 2's caption has 0.5; text 1 lies above and text 0 ties, and a tie counts against the model: rank 2.
Recall@1 is 1/3, Recall@2 is 2/3.
t2i (columns): text 0 finds image 0 (rank 0), text 1 image 1 (rank 0), text 2 has images 0 and 2 above its own (rank 2),
text 3 finds image 2 (rank 0). Recall@1 is 3/4, Recall@2 is 3/4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# I images, T texts, D embedding, Q queries, C candidates, c rows of a chunk

Array: TypeAlias = "Tensor | NDArray[Any]"
KS = (1, 5, 10)
RECALL_KEYS = tuple(f"{direction}_recall@{k}" for direction in ("i2t", "t2i") for k in KS)
# Similarities held at once. On CPU what fits a cache: 1,000 × 5,000 × 256 takes 0.11 s at 2^19 and 0.20 s from 2^21 on.
_CHUNK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 24}


def as_matrix(name: str, given: Array, device: torch.device | None = None) -> Tensor:
    """The given (rows, D) array as a float64 tensor, on its own device where that has float64 (Apple's MPS has not)."""
    tensor = torch.as_tensor(given).detach()
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise ValueError(f"{name}: wanted a floating-point matrix (rows, D), got {tensor.dtype} {tuple(tensor.shape)}")
    target = device or tensor.device
    # first the device, then the precision: the cast would fail on MPS
    return tensor.to(torch.device("cpu") if target.type == "mps" else target).to(torch.float64)


def _check_ks(ks: Iterable[int]) -> list[int]:
    wanted = list(ks)
    if not wanted or any(k != int(k) or k < 1 for k in wanted):
        raise ValueError(f"ks: wanted whole numbers of at least 1, got {wanted}")
    return [int(k) for k in wanted]


def check_pairs(image_embeddings: Tensor, text_embeddings: Tensor, text_image_ids: Array) -> Tensor:
    """Return `text_image_ids` as int64 on the embeddings' device, after checking that the three arrays fit together.

    Raises ValueError when a matrix is empty, the widths differ, there is not one id a text, or an id is no image row.
    """
    images, texts = len(image_embeddings), len(text_embeddings)
    if images == 0 or texts == 0:
        raise ValueError(f"wanted at least one image and one text, got {images} images and {texts} texts")
    if image_embeddings.shape[1] != text_embeddings.shape[1]:
        raise ValueError(
            f"image and text embeddings differ in width: {image_embeddings.shape[1]} and {text_embeddings.shape[1]}"
        )
    return check_owners(text_image_ids, images, texts).to(image_embeddings.device)


def check_owners(text_image_ids: Array, images: int, texts: int) -> Tensor:
    """Return `text_image_ids` as int64, after checking that they are a row of the images for each of the texts.

    Raises ValueError when there is not one id a text, or an id is no image row.
    """
    ids = torch.as_tensor(text_image_ids)
    if ids.shape != (texts,) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(
            f"text_image_ids: wanted {texts} whole numbers, one a text, got {ids.dtype} {tuple(ids.shape)}"
        )
    ids = ids.to(torch.int64)
    wrong = ids[(ids < 0) | (ids >= images)]
    if len(wrong):
        raise ValueError(f"text_image_ids: wanted rows of the {images} images (0 to {images - 1}), got {int(wrong[0])}")
    return ids


def ranks(
    image_embeddings: Array, text_embeddings: Array, text_image_ids: Array, *, chunk: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many wrong candidates stand before, or level with, each query's best right one: 0 is a hit at 1.

    Args:
        image_embeddings: (I, D) floating point, unit vectors (the similarity is the inner product as given).
        text_embeddings: (T, D), likewise; the work is done on the device of the images.
        text_image_ids: (T,) whole numbers, the row of each text's image.
        chunk: images compared at once; only (chunk, T) similarities exist at any time. None: chosen by size.

    Returns:
        (I,) ranks of images (i2t) and (T,) ranks of texts (t2i), int64 NumPy. An image without a caption has rank −1
        (it is a candidate, but no query). A query whose right candidates all have similarity NaN or infinite gets
        the number of candidates, a miss at every K of interest; a wrong candidate with NaN counts as standing before.

    Raises:
        ValueError: shapes, dtypes or ids that do not fit together.
    """
    images_ID = as_matrix("image_embeddings", image_embeddings)
    texts_TD = as_matrix("text_embeddings", text_embeddings, images_ID.device)
    ids_T = check_pairs(images_ID, texts_TD, text_image_ids)
    images, texts = len(images_ID), len(texts_TD)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk: wanted at least 1, got {chunk}")
    step = chunk or max(1, _CHUNK_ELEMENTS.get(images_ID.device.type, 1 << 19) // texts)

    # Two equal candidates must tie, whichever corner of a matrix product they fall into; in float32 they often differ
    # in the last digit. So products are taken in float64 and rounded to float32 before they are compared.
    def rounded(similarities: Tensor) -> Tensor:
        return similarities.to(torch.float32)

    right_T = torch.empty(texts, dtype=torch.float32, device=ids_T.device)
    for start in range(0, texts, 1 << 16):
        part = slice(start, start + (1 << 16))
        right_T[part] = rounded((images_ID[ids_T[part]] * texts_TD[part]).sum(dim=1))
    usable_T = torch.where(torch.isfinite(right_T), right_T, -torch.inf)
    best_I = torch.full((images,), -torch.inf, device=ids_T.device).scatter_reduce(0, ids_T, usable_T, "amax")

    order_T = torch.argsort(ids_T, stable=True)  # texts by image, so that a chunk's true pairs are one slice
    bounds = torch.searchsorted(ids_T[order_T], torch.arange(images + 1, device=ids_T.device)).tolist()
    i2t_I = torch.empty(images, dtype=torch.int64, device=ids_T.device)
    t2i_T = torch.zeros(texts, dtype=torch.int64, device=ids_T.device)
    for start in range(0, images, step):
        stop = min(start + step, images)
        similarity_cT = rounded(images_ID[start:stop] @ texts_TD.T)
        own = order_T[bounds[start] : bounds[stop]]
        similarity_cT[ids_T[own] - start, own] = -torch.inf  # a true pair never stands before itself
        # "not smaller" rather than "greater or equal": NaN counts against the model too
        i2t_I[start:stop] = texts - (similarity_cT < best_I[start:stop, None]).sum(dim=1)
        t2i_T += (stop - start) - (similarity_cT < usable_T).sum(dim=0)
    i2t_I[torch.isinf(best_I)] = texts
    t2i_T[torch.isinf(usable_T)] = images
    i2t_I[torch.bincount(ids_T, minlength=images) == 0] = -1
    return i2t_I.cpu().numpy(), t2i_T.cpu().numpy()


def matrix_ranks(similarity_IT: Tensor, text_image_ids: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`ranks` from all similarities at once, in their own precision: a fifth of the time, equal but for ties.

    Args:
        similarity_IT: (I, T) finite; overwritten.
        text_image_ids: (T,) int64, the row of each text's image.
    """
    ids_T, texts = text_image_ids, torch.arange(len(text_image_ids), device=similarity_IT.device)
    own_T = similarity_IT.gather(0, ids_T[None])[0]
    t2i_T = (similarity_IT >= own_T).sum(0) - 1
    best_I = torch.full((len(similarity_IT),), -torch.inf, device=own_T.device)
    best_I = best_I.scatter_reduce(0, ids_T, own_T, "amax")
    similarity_IT[ids_T, texts] = -torch.inf
    i2t_I = (similarity_IT >= best_I[:, None]).sum(1)
    i2t_I[best_I.isinf()] = -1
    return i2t_I.cpu().numpy(), t2i_T.cpu().numpy()


def retrieval(
    image_embeddings: Array,
    text_embeddings: Array,
    text_image_ids: Array,
    *,
    ks: Sequence[int] = KS,
    chunk: int | None = None,
) -> dict[str, float]:
    """Recall@K in both directions over all images and all texts.

    i2t: an image is hit if any of its captions is among its top K texts. t2i: a caption is hit if its image is among
    its top K images. Ties count against the model, and so does NaN: a similarity of NaN never hits, even where K
    covers every candidate. An image without a caption is a candidate but no query. One image under two rows is two
    candidates that tie: give both rows' captions one row to count it once.

    Args:
        image_embeddings, text_embeddings, text_image_ids, chunk: as in `ranks`.
        ks: the K's, whole numbers of at least 1.

    Returns:
        `i2t_recall@K` for every K, then `t2i_recall@K` (fractions 0 to 1), then `images` (I) and `texts` (T), the
        numbers of candidates, which belong beside the figures.

    Raises:
        ValueError: shapes, dtypes, ids or K's that do not fit.
    """
    wanted = _check_ks(ks)
    return recalls(*ranks(image_embeddings, text_embeddings, text_image_ids, chunk=chunk), wanted)


def recalls(i2t: NDArray[np.int64], t2i: NDArray[np.int64], ks: Sequence[int] = KS) -> dict[str, float]:
    """The figures of `retrieval` from the (I,) and (T,) ranks that `ranks` gives."""
    images, texts = len(i2t), len(t2i)
    figures: dict[str, float] = {}
    for direction, found, candidates in (("i2t", i2t[i2t >= 0], texts), ("t2i", t2i, images)):
        for k in ks:
            figures[f"{direction}_recall@{k}"] = float(np.mean((found < k) & (found < candidates)))
    figures["images"] = images
    figures["texts"] = texts
    return figures


def mean_recall(figures: Mapping[str, Any]) -> float:
    """Mean of all recalls in the figures of `retrieval`: of the usual six, what the best checkpoint is chosen by."""
    return float(np.mean([value for key, value in figures.items() if "_recall@" in key]))


def chance(
    images: int, texts_per_image: int | Sequence[int] | NDArray[Any], ks: Sequence[int] = KS
) -> dict[str, float]:
    """The zero-knowledge row: the exact expected Recall@K of a ranking drawn at random.

    i2t: an image with n of the T captions misses at K with probability C(T − n, K) / C(T, K) (hypergeometric).
    t2i: min(K, I) / I. For 1,000 images with 5 captions each: 0.1 % at 1 both ways; at 10, i2t 0.996 % and t2i 1 %.

    Args:
        images: I, at least 1.
        texts_per_image: captions an image: one number for all, or (I,) counts. Images with 0 are no queries.
        ks: the K's.

    Returns:
        The keys of `retrieval`.

    Raises:
        ValueError: counts that are negative, not I of them, or without any caption.
    """
    wanted = _check_ks(ks)
    given = np.asarray(texts_per_image)
    if images < 1 or given.dtype.kind not in "iu" or given.shape not in ((), (images,)) or (given < 0).any():
        raise ValueError(
            f"texts_per_image: wanted one count, or one for each of {images} images, got {texts_per_image!r}"
        )
    counts, repeats = np.unique(np.broadcast_to(given, (images,)), return_counts=True)
    texts = int(counts @ repeats)
    if texts == 0:
        raise ValueError("texts_per_image: wanted at least one caption, got none")
    counts, repeats = counts[counts > 0], repeats[counts > 0]
    figures: dict[str, float] = {}
    for k in wanted:
        drawn = np.arange(min(k, texts))  # C(T − n, K) / C(T, K) = Π_d (T − n − d) / (T − d)
        missed = np.prod(np.clip(texts - counts[:, None] - drawn, 0, None) / (texts - drawn), axis=1)
        figures[f"i2t_recall@{k}"] = float(np.average(1.0 - missed, weights=repeats))
    for k in wanted:
        figures[f"t2i_recall@{k}"] = min(k, images) / images
    figures["images"] = images
    figures["texts"] = texts
    return figures


def top_k(query_embeddings: Array, candidates: Array, k: int, *, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """The k candidates of highest similarity for each query, best first; equal ones in the order of the candidates.

    Args:
        query_embeddings: (Q, D) or (D,) floating point.
        candidates: (C, D) floating point, texts or images alike.
        k: at least 1; more than C means all C.
        chunk: queries compared at once. None: chosen by size.

    Returns:
        Scores (Q, min(k, C)) float32 and row numbers of the candidates, int64, on the queries' device. A candidate
        with NaN comes last, with score −inf.

    Raises:
        ValueError: k below 1, widths that differ, or no candidate.
    """
    query = torch.as_tensor(query_embeddings)
    queries_QD = as_matrix("query_embeddings", query[None] if query.ndim == 1 else query)
    candidates_CD = as_matrix("candidates", candidates, queries_QD.device)
    if k < 1:
        raise ValueError(f"k: wanted at least 1, got {k}")
    if len(candidates_CD) == 0:
        raise ValueError("candidates: wanted at least one, got none")
    if queries_QD.shape[1] != candidates_CD.shape[1]:
        raise ValueError(f"queries and candidates differ in width: {queries_QD.shape[1]} and {candidates_CD.shape[1]}")
    k = min(k, len(candidates_CD))
    step = chunk or max(1, _CHUNK_ELEMENTS.get(queries_QD.device.type, 1 << 19) // len(candidates_CD))
    scores = torch.empty((len(queries_QD), k), dtype=torch.float32, device=queries_QD.device)
    indices = torch.empty((len(queries_QD), k), dtype=torch.int64, device=queries_QD.device)
    for start in range(0, len(queries_QD), step):
        part = slice(start, start + step)
        similarity = (queries_QD[part] @ candidates_CD.T).to(torch.float32)
        similarity = torch.where(torch.isnan(similarity), -torch.inf, similarity)
        # torch.topk may pick any of several equal ones: take all above the k-th value, then the first that equal it
        last = similarity.topk(k, dim=1).values[:, -1:]
        above, level = similarity > last, similarity == last
        wanted = above | (level & (level.cumsum(dim=1) <= k - above.sum(dim=1, keepdim=True)))
        found = wanted.nonzero()[:, 1].view(-1, k)
        scores[part], order = similarity.gather(1, found).sort(dim=1, descending=True, stable=True)
        indices[part] = found.gather(1, order)
    home = query.device
    return scores.to(home), indices.to(home)
