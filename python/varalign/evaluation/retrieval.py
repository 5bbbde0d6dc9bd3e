"""Recall@K between images and texts that belong together in any numbers; and top-k search.

Where a text has several images, each of them is a right one.

A worked example, three images with 1, 2 and 1 captions (texts 0 | 1 2 | 3), similarities with the true pairs marked::

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

from varalign.evaluation.smaller import similarities, smaller_counts

# I images, T texts, D embedding, Q queries, C candidates

Array: TypeAlias = "Tensor | NDArray[Any]"
KS = (1, 5, 10)
RECALL_KEYS = tuple(f"{direction}_recall@{k}" for direction in ("i2t", "t2i") for k in KS)
_CHUNK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 24}  # similarities of `top_k` held at once; on the CPU a cache's size


def as_given(name: str, given: Array, device: torch.device | None = None) -> Tensor:
    """The given (rows, D) array as a tensor, on its own device where that has float64 (Apple's MPS has not)."""
    tensor = torch.as_tensor(given).detach()
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise ValueError(f"{name}: wanted a floating-point matrix (rows, D), got {tensor.dtype} {tuple(tensor.shape)}")
    target = device or tensor.device
    return tensor.to(torch.device("cpu") if target.type == "mps" else target)


def as_matrix(name: str, given: Array, device: torch.device | None = None) -> Tensor:
    """`as_given` in float64."""
    return as_given(name, given, device).to(torch.float64)


def _check_ks(ks: Iterable[int]) -> list[int]:
    wanted = list(ks)
    if not wanted or any(k != int(k) or k < 1 for k in wanted):
        raise ValueError(f"ks: wanted whole numbers of at least 1, got {wanted}")
    return [int(k) for k in wanted]


def check_pairs(image_embeddings: Tensor, text_embeddings: Tensor, text_image_ids: Array) -> tuple[Tensor, Tensor]:
    """The pairs of `text_image_ids` as (E,) texts and (E,) images, int64 on the embeddings' device, after all checks.

    Raises ValueError when a matrix is empty, the widths differ, there is not one id a text, or an id is no row.
    """
    images, texts = len(image_embeddings), len(text_embeddings)
    if images == 0 or texts == 0:
        raise ValueError(f"wanted at least one image and one text, got {images} images and {texts} texts")
    if image_embeddings.shape[1] != text_embeddings.shape[1]:
        raise ValueError(
            f"image and text embeddings differ in width: {image_embeddings.shape[1]} and {text_embeddings.shape[1]}"
        )
    ids, device = torch.as_tensor(text_image_ids), image_embeddings.device
    if ids.ndim != 2:
        owners = check_owners(ids, images, texts).to(device)
        return torch.arange(texts, device=device), owners
    if ids.shape[1] != 2 or not len(ids):
        raise ValueError(f"text_image_ids: wanted (pairs, 2), a text and an image each, got {tuple(ids.shape)}")
    return _rows_of(ids[:, 0], texts, "texts").to(device), _rows_of(ids[:, 1], images, "images").to(device)


def check_owners(text_image_ids: Array, images: int, texts: int) -> Tensor:
    """Return `text_image_ids` as int64, after checking that they are a row of the images for each of the texts.

    Raises ValueError when there is not one id a text, or an id is no image row.
    """
    ids = torch.as_tensor(text_image_ids)
    if ids.shape != (texts,) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(
            f"text_image_ids: wanted {texts} whole numbers, one a text, got {ids.dtype} {tuple(ids.shape)}"
        )
    return _rows_of(ids, images, "images")


def _rows_of(ids: Tensor, count: int, of: str) -> Tensor:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"text_image_ids: wanted whole numbers, got {ids.dtype}")
    ids = ids.to(torch.int64)
    wrong = ids[(ids < 0) | (ids >= count)]
    if len(wrong):
        raise ValueError(f"text_image_ids: wanted rows of the {count} {of} (0 to {count - 1}), got {int(wrong[0])}")
    return ids


def ranks(
    image_embeddings: Array,
    text_embeddings: Array,
    text_image_ids: Array,
    *,
    chunk: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many wrong candidates stand before, or level with, each query's best right one: 0 is a hit at 1.

    Similarities are compared as float64 products rounded to float32: two equal candidates must tie, whichever corner of
    a matrix product they fall into, and in float32 they often differ in the last digit.

    Args:
        image_embeddings: (I, D) floating point, unit vectors (the similarity is the inner product as given).
        text_embeddings: (T, D), likewise; the work is done on the device of the images.
        text_image_ids: (T,) whole numbers, the row of each text's image; or (E, 2), each pair of a text and an image
            that belong together, where a text may have several.
        chunk: most images compared at once. None: chosen by the device.

    Returns:
        (I,) ranks of images (i2t) and (T,) ranks of texts (t2i), int64 NumPy. An image without a text, or a text
        without an image, has rank −1 (it is a candidate, but no query). A query whose right candidates all have
        similarity NaN or infinite gets the number of candidates, a miss at every K of interest; a wrong candidate with
        NaN counts as standing before.

    Raises:
        ValueError: shapes, dtypes or ids that do not fit together.
    """
    images_ID = as_given("image_embeddings", image_embeddings)
    texts_TD = as_given("text_embeddings", text_embeddings, images_ID.device)
    text_E, image_E = check_pairs(images_ID, texts_TD, text_image_ids)
    images, texts = len(images_ID), len(texts_TD)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk: wanted at least 1, got {chunk}")
    right_E = similarities(images_ID, texts_TD, image_E, text_E)
    usable_E = torch.where(torch.isfinite(right_E), right_E, -torch.inf)
    best_I, best_T = _best(usable_E, image_E, images), _best(usable_E, text_E, texts)
    # Those that are not smaller, rather than the greater or equal: NaN counts against the model too.
    of_image, of_text = smaller_counts(images_ID, texts_TD, (text_E, image_E), (best_I, best_T), chunk=chunk)
    i2t_I, t2i_T = texts - of_image, images - of_text
    i2t_I[torch.isinf(best_I)] = texts
    t2i_T[torch.isinf(best_T)] = images
    i2t_I[torch.bincount(image_E, minlength=images) == 0] = -1
    t2i_T[torch.bincount(text_E, minlength=texts) == 0] = -1
    return i2t_I.cpu().numpy(), t2i_T.cpu().numpy()


def _best(similarity_E: Tensor, query_E: Tensor, queries: int) -> Tensor:
    """(queries,) the largest similarity of each query's pairs; −inf without any."""
    return similarity_E.new_full((queries,), -torch.inf).scatter_reduce(0, query_E, similarity_E, "amax")


def matrix_ranks(similarity_IT: Tensor, pairs: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`ranks` from all similarities at once, in their own precision: a fifth of the time, equal but for ties.

    Args:
        similarity_IT: (I, T) finite; overwritten.
        pairs: (E, 2) int64, texts and their images.
    """
    text_E, image_E = pairs.unbind(1)
    own_E = similarity_IT[image_E, text_E]
    best_I, best_T = _best(own_E, image_E, len(similarity_IT)), _best(own_E, text_E, similarity_IT.shape[1])
    similarity_IT[image_E, text_E] = -torch.inf
    i2t_I, t2i_T = (similarity_IT >= best_I[:, None]).sum(1), (similarity_IT >= best_T).sum(0)
    i2t_I[best_I.isinf()] = -1
    t2i_T[best_T.isinf()] = -1
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

    i2t: an image is hit if any of its texts is among its top K texts. t2i: a text is hit if any of its images is among
    its top K images. Ties count against the model, and so does NaN: a similarity of NaN never hits, even where K
    covers every candidate. An image without a text is a candidate but no query. One image under two rows is two
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
    for direction, found, candidates in (("i2t", i2t[i2t >= 0], texts), ("t2i", t2i[t2i >= 0], images)):
        for k in ks:
            figures[f"{direction}_recall@{k}"] = float(np.mean(is_hit(found, k, candidates)))
    figures["images"] = images
    figures["texts"] = texts
    return figures


def is_hit(found: NDArray[np.int64], k: int, candidates: int) -> NDArray[np.bool_]:
    """Which ranks are hits at K among so many candidates; the rank −1 of no query is none."""
    return (found >= 0) & (found < min(k, candidates))


def mean_recall(figures: Mapping[str, Any]) -> float:
    """Mean of all recalls in the figures of `retrieval`: of the usual six, what the best checkpoint is chosen by."""
    return float(np.mean([value for key, value in figures.items() if "_recall@" in key]))


def chance(
    images: int,
    texts_per_image: int | Sequence[int] | NDArray[Any],
    ks: Sequence[int] = KS,
    *,
    images_per_text: Sequence[int] | NDArray[Any] | None = None,
) -> dict[str, float]:
    """The zero-knowledge row: the exact expected Recall@K of a ranking drawn at random.

    i2t: an image with n of the T texts misses at K with probability C(T − n, K) / C(T, K) (hypergeometric); t2i: a text
    with n of the I images likewise, min(K, I) / I where n = 1. For 1,000 images with 5 captions each: 0.1 % at 1 both
    ways; at 10, i2t 0.996 % and t2i 1 %.

    Args:
        images: I, at least 1.
        texts_per_image: texts of an image: one number for all, or (I,) counts. Images with 0 are no queries.
        ks: the K's.
        images_per_text: (T,) images of a text, at least 1; None: each text has one.

    Returns:
        The keys of `retrieval`.

    Raises:
        ValueError: counts that are negative, not one a query, of another sum, or without any text.
    """
    wanted = _check_ks(ks)
    of_images = _counts("texts_per_image", texts_per_image, images)
    pairs = int(of_images.sum())
    if pairs == 0:
        raise ValueError("texts_per_image: wanted at least one caption, got none")
    texts = pairs if images_per_text is None else len(images_per_text)
    of_texts = _counts("images_per_text", 1 if images_per_text is None else images_per_text, texts)
    if int(of_texts.sum()) != pairs:
        raise ValueError(f"images_per_text: wanted the {pairs} pairs of texts_per_image, got {int(of_texts.sum())}")
    figures: dict[str, float] = {}
    for direction, counts, candidates in (("i2t", of_images, texts), ("t2i", of_texts, images)):
        for k in wanted:
            figures[f"{direction}_recall@{k}"] = _expected_hits(counts, candidates, k)
    figures["images"] = images
    figures["texts"] = texts
    return figures


def _counts(name: str, given: Any, queries: int) -> NDArray[Any]:
    found = np.asarray(given)
    if queries < 1 or found.dtype.kind not in "iu" or found.shape not in ((), (queries,)) or (found < 0).any():
        what = "images" if name == "texts_per_image" else "texts"
        raise ValueError(f"{name}: wanted one count, or one for each of {queries} {what}, got {given!r}")
    return np.broadcast_to(found, (queries,))


def _expected_hits(right: NDArray[Any], candidates: int, k: int) -> float:
    """Mean, over the queries with `right` (Q,) > 0 right candidates, of the probability that k draws find one."""
    counts, repeats = np.unique(right[right > 0], return_counts=True)
    if counts.tolist() == [1]:
        return min(k, candidates) / candidates
    drawn = np.arange(min(k, candidates))  # C(T − n, K) / C(T, K) = Π_d (T − n − d) / (T − d)
    missed = np.prod(np.clip(candidates - counts[:, None] - drawn, 0, None) / (candidates - drawn), axis=1)
    return float(np.average(1.0 - missed, weights=repeats))


def reachable(
    text_ids: NDArray[np.int64], owner: NDArray[np.int64], images: int, ks: Sequence[int] = KS
) -> dict[str, float]:
    """Recall@K of a perfect model where each caption is right for its own image alone, though equal captions exist.

    No model tells equal captions apart: they stand together, in an order drawn at random (exact ties, which count
    against the model, are worse). So an image is hit at K by a caption with c copies at it and o at other images with
    the probability 1 − C(o, K) / C(o + c, K), and of the images at which a text stands K are among the text's top K.

    Args:
        text_ids: (T,) equal for equal captions. owner: (T,) the image of each, from 0. images: I.
        ks: the K's.

    Returns:
        The keys of `retrieval`.
    """
    text = np.unique(text_ids, return_inverse=True)[1]
    codes, counts = np.unique(text * images + owner, return_counts=True)  # a pair of a text and an image each
    text_of, image_of = np.divmod(codes, images)
    others = np.bincount(text)[text_of] - counts
    # Of a text's images those with the most copies of the caption first.
    order = np.lexsort((-counts, text_of))
    place = np.empty(len(codes), np.int64)
    place[order] = np.arange(len(codes)) - np.searchsorted(text_of[order], text_of[order])
    i2t, t2i = {}, {}
    for k in _check_ks(ks):
        drawn = np.arange(k)
        missed = np.clip(others[:, None] - drawn, 0, None) / np.clip((others + counts)[:, None] - drawn, 1, None)
        least = np.ones(images)
        np.minimum.at(least, image_of, missed.prod(axis=1))
        i2t[f"i2t_recall@{k}"] = float(1 - least[np.unique(owner)].mean())
        t2i[f"t2i_recall@{k}"] = float(counts[place < k].sum() / len(owner))
    return {**i2t, **t2i, "images": images, "texts": len(owner)}


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
