"""Finds images that are one picture, or nearly: saved anew, scaled, brighter, or cut by a hundredth.

The perceptual hash of an image (256 bits) is that of the library imagehash, `phash(image, hash_size=16)`: which of the
256 lowest frequencies of the grey image at 64 x 64 pixels are above their median. It is computed here in a few lines of
SciPy: the library would bring PyWavelets along. Hashes of 64 bits are too short: of 8,091 photographs of Flickr8k, 26
pairs lie within 10 bits of 64, one of which is the same picture; within 56 bits of 256 lies that one alone.

The bits that differ, median and 95 % of photographs: saved at JPEG quality 20: 2 and 6; half the size: 0 and 2;
contrast 0.7: 2 and 4; 1.3 times as bright: 11 and 24; a hundredth cut off each side: 15 and 24; two: 30 and 40.
Where all images are taken alike (products before white), different ones lie within 24 bits too: look at the page.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varalign.data.errors import DataError
from varalign.data.features import load_features
from varalign.data.files import read_bytes
from varalign.data.images import decode_image
from varalign.data.waiting import counted

# I images, P pairs

BITS = 256
DIFFERING = 24
"""Bits up to which two images count as near-duplicates."""
COSINE = 0.95
"""Cosine similarity of centred features from which on two images count as near-duplicates: of Flickr8k one pair, the
same picture, has more, the next ones have 0.85 (MobileNet) and 0.90 (EfficientNet-Lite2)."""
_ROWS = 2048
_SIDE, _LOW = 64, 16


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of images that are nearly the same, the most alike first.

    pairs: (P, 2) image rows, the lower first. bits: (P,) of their hashes that differ, -1 where one cannot be read.
    cosine: (P,) similarity of their centred features, NaN where there are none.
    """

    pairs: NDArray[np.int64]
    bits: NDArray[np.int64]
    cosine: NDArray[np.float64]

    def groups(self, image_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """(I,) int64: one number for images that are joined by pairs, or by equal `image_ids`."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        size = len(image_ids)
        first, second = np.concatenate([self.pairs, np.stack([np.arange(size), image_ids], axis=1)]).T
        graph = coo_array((np.ones(len(first)), (first, second)), shape=(size, size))
        return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def alike(pair: Mapping[str, Any]) -> str:
    """How alike the images of a pair are, in words; its `bits` and `cosine` are None where they are not known."""
    known = [] if pair["bits"] is None else [f"{pair['bits']} of {BITS} bits differ"]
    return ", ".join([*known, *([] if pair["cosine"] is None else [f"cosine {pair['cosine']:.3f}"])])


def find_near_duplicates(
    paths: Sequence[Path],
    names: Sequence[str],
    *,
    bits: int = DIFFERING,
    features: Path | str | None = None,
    threads: int | None = None,
) -> NearDuplicates:
    """Compare every image with every other by its hash, and by its features where there are some.

    paths, names: (I,) files and names of the images. bits: most of the 256 bits that may differ.
    features: a features file with the names of its images; those that are among `names` are compared by cosine too.
    threads: for decoding; None takes the processors there are. 8,091 images of 128 pixels take 8 s of one core.
    Raises DataError where `bits` is out of range, or the features file has no names or other ones.
    """
    if not 0 <= bits < BITS // 4:
        raise DataError(f"--differing-bits {bits}: wanted 0 to {BITS // 4 - 1} of {BITS}")
    hashes, readable = perceptual_hashes(paths, threads)
    signs = np.where(hashes, 1.0, -1.0).astype(np.float32)
    signs[~readable] = 0.0
    pairs, products = pairs_above(signs, BITS - 2 * bits)
    rows, vectors = (np.zeros(0, np.int64), np.zeros((0, 1), np.float32))
    if features is not None:
        rows, vectors = _centred_features(features, names)
        close, _ = pairs_above(vectors, COSINE)
        pairs = np.unique(np.concatenate([pairs, np.sort(rows[close], axis=1)]), axis=0)
        products = (signs[pairs[:, 0]] * signs[pairs[:, 1]]).sum(axis=1)
    found = np.where(readable[pairs].all(axis=1), (BITS - products) / 2, -1).astype(np.int64)
    place = np.full(len(names), -1)
    place[rows] = np.arange(len(rows))
    known = (place[pairs] >= 0).all(axis=1)
    cosine = np.full(len(pairs), np.nan)
    left, right = place[pairs[known]].T
    cosine[known] = (vectors[left] * vectors[right]).sum(axis=1)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -np.nan_to_num(cosine), np.where(found < 0, BITS, found)))
    return NearDuplicates(pairs[order], found[order], cosine[order])


def files_alike(
    paths: Sequence[Path], others: Sequence[Path], *, bits: int = DIFFERING, threads: int | None = None
) -> NDArray[np.int64]:
    """(I,) int64: for each image file the first of the others that is nearly the same, -1 where none is.

    paths, others: files; one that cannot be read is like none. bits: most of the 256 bits that may differ.
    """
    hashes, read = perceptual_hashes([*paths, *others], threads)
    signs = np.where(hashes, 1.0, -1.0).astype(np.float32)
    signs[~read] = 0.0
    return first_above(signs[: len(paths)], signs[len(paths) :], BITS - 2 * bits)


def features_alike(
    features: NDArray[np.float32], others: NDArray[np.float32], *, cosine: float = COSINE
) -> NDArray[np.int64]:
    """(I,) int64: for each row the first of the others that is nearly the same image by its features, -1 where none is.

    features: (I, D). others: (J, D), J at least 1; their mean is subtracted from both. cosine: least similarity.
    """
    mean = others.astype(np.float64).mean(axis=0)
    vectors, known = (_unit(values.astype(np.float64) - mean) for values in (features, others))
    return first_above(vectors, known, cosine)


def first_above(vectors: NDArray[np.float32], others: NDArray[np.float32], least: float) -> NDArray[np.int64]:
    """(I,) int64: for each row the first of the others with an inner product of at least that, -1 where there is none.

    vectors: (I, D). others: (J, D).
    """
    found = np.full(len(vectors), -1, dtype=np.int64)
    for start in range(0, len(vectors), _ROWS):
        above = vectors[start : start + _ROWS] @ others.T >= least
        rows = np.flatnonzero(above.any(axis=1))
        found[start + rows] = above[rows].argmax(axis=1)
    return found


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    """The rows divided by their lengths."""
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return vectors.astype(np.float32)


def perceptual_hashes(paths: Sequence[Path], threads: int | None = None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(I, 256) hashes, and (I,) which images can be read: the hash of one that cannot is all False."""
    with ThreadPoolExecutor(threads or min(32, os.cpu_count() or 1)) as pool:
        found = list(counted(pool.map(_hash_of_file, paths), "comparing images", len(paths)))
    hashes = np.zeros((len(paths), BITS), dtype=np.bool_)
    for row, one in enumerate(found):
        if one is not None:
            hashes[row] = one
    return hashes, np.array([one is not None for one in found], dtype=np.bool_)


def _hash_of_file(path: Path) -> NDArray[np.bool_] | None:
    try:
        return perceptual_hash(decode_image(read_bytes(path)))
    except ValueError:
        return None


def perceptual_hash(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(256,) the hash of (H, W, 3) pixels."""
    from PIL import Image
    from scipy.fft import dctn

    grey = Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    low: NDArray[Any] = dctn(np.asarray(grey, dtype=np.float64))[:_LOW, :_LOW]
    return np.asarray(low > np.median(low)).ravel()


def pairs_above(vectors: NDArray[np.float32], least: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """All pairs of rows whose inner product is at least that: (P, 2) rows, the lower first, and (P,) products.

    Products of blocks: exact for signs, and faster than bits counted by NumPy.
    """
    pairs, products = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
    for start in range(0, len(vectors), _ROWS):
        block = vectors[start : start + _ROWS] @ vectors[start:].T
        left, right = np.nonzero(block >= least)
        keep = left < right
        pairs.append(np.stack([left[keep], right[keep]], axis=1) + start)
        products.append(block[left[keep], right[keep]])
    return np.concatenate(pairs), np.concatenate(products)


def _centred_features(file: Path | str, names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows among `names` of a features file's images, and their features less the mean, as unit vectors."""
    data = load_features(file)
    if data.image_names is None:
        raise DataError(f"--features {file}: wanted the names of its images beside it ({Path(file).stem}.names.jsonl)")
    row_of = {name: row for row, name in enumerate(names)}
    here = [place for place, name in enumerate(data.image_names) if name in row_of]
    if not here:
        raise DataError(f"--features {file}: none of its images is among those of the data folder")
    rows = np.array([row_of[data.image_names[place]] for place in here], dtype=np.int64)
    vectors = data.image_features[here].astype(np.float64)
    return rows, _unit(vectors - vectors.mean(axis=0))
