"""Injects the noise that `varalign.data.noise` describes into a data set: wrong pairs, damaged words, damaged pixels.

The damage to a word or an image depends on (seed, epoch, row) alone, not on the batch or the order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from varalign.data.datasets import ImageCaptions
from varalign.data.draws import NOISE_STREAMS, noise_draws
from varalign.data.errors import DataError
from varalign.data.features import FeatureSet
from varalign.data.noise import Noise, noisy_pairs

D = TypeVar("D", bound=ImageCaptions | FeatureSet)


def check_feature_noise(noise: Noise) -> None:
    """DataError where noise acts on words or pixels, of which a features file has none."""
    if noise.words or noise.pixels:
        raise DataError(
            f"--noise {noise}: a features file has neither words nor pixels, only swap-images and swap-captions do"
        )


def damaged(data: D, noise: Noise, split: str, seed: int) -> D:
    """The data with wrong pairs and damaged words injected into one split; pixels are damaged after decoding.

    Raises:
        DataError: words or pixels are to be damaged and the data are features.
    """
    if isinstance(data, FeatureSet):
        check_feature_noise(noise)
    changed: dict[str, Any] = {}
    if noise.words and isinstance(data, ImageCaptions):
        chosen = data.caption_rows(data.rows(split))
        train = {word for row in data.caption_rows(data.rows("train")) for word in data.captions[row].split()}
        texts = noisy_captions(
            [data.captions[row] for row in chosen], noise, seed, rows=chosen, vocabulary=sorted(train)
        )
        changed["captions"] = list(data.captions)
        for row, text in zip(chosen.tolist(), texts, strict=True):
            changed["captions"][row] = text
    if noise.pairs:
        owner = "text_image_ids" if isinstance(data, FeatureSet) else "caption_image_ids"
        changed[owner], _ = noisy_pairs(data.caption_owner, data.rows(split), noise, seed)
    return replace(data, **changed) if changed else data


def noisy_captions(
    captions: Sequence[str],
    noise: Noise,
    seed: int,
    epoch: int = 0,
    *,
    rows: NDArray[np.int64] | None = None,
    vocabulary: Sequence[str] | None = None,
) -> list[str]:
    """Drop, then replace, then shuffle words; a caption that no word was drawn in comes back as it was.

    Args:
        captions: N texts; words are what white space separates.
        noise: its three word rates are read.
        seed: whole number of at least 0.
        epoch: the same epoch damages alike; leave it 0 for damage that stays through training.
        rows: (N,) caption rows in the data set, so that a batch is damaged as the whole set is; None: 0 to N − 1.
        vocabulary: words for `replace-words`; give the training set's. None: the words of `captions`, sorted.

    Returns:
        N texts. Damaged ones have single spaces between words.
    """
    if not noise.words:
        return list(captions)
    numbers = np.arange(len(captions)) if rows is None else np.asarray(rows, dtype=np.int64)
    if numbers.shape != (len(captions),):
        raise ValueError(f"rows: wanted one for each of {len(captions)} captions, got shape {numbers.shape}")
    split = [caption.split() for caption in captions]
    lengths = np.array([len(words) for words in split], dtype=np.int64)
    ends = np.cumsum(lengths)
    row_of = np.repeat(numbers, lengths)
    place = np.arange(int(lengths.sum())) - np.repeat(ends - lengths, lengths)

    def draw(stream: str) -> NDArray[np.float64]:
        return noise_draws(stream, seed, epoch, row_of, place)

    drop, replace, shuffle = draw("drop-words"), draw("replace-words"), draw("shuffle-words")
    replacement, position = draw("replacement"), draw("place")
    if vocabulary is None:
        vocabulary = sorted({word for words in split for word in words}) if noise.replace_words else ()
    touched = (drop < noise.drop_words) | (replace < noise.replace_words) | (shuffle < noise.shuffle_words)
    damaged = list(captions)
    for caption in np.flatnonzero(np.bincount(np.repeat(np.arange(len(split)), lengths), touched, len(split))).tolist():
        words, start = split[caption], int(ends[caption] - lengths[caption])
        kept = [i for i in range(len(words)) if drop[start + i] >= noise.drop_words]
        kept = kept or [int(drop[start : start + len(words)].argmax())]  # the word that the lowest rate spares
        text = []
        for i in kept:
            word = words[i]
            if replace[start + i] < noise.replace_words and len(vocabulary) > 1:
                at = int(replacement[start + i] * len(vocabulary))
                word = vocabulary[at] if vocabulary[at] != word else vocabulary[(at + 1) % len(vocabulary)]
            text.append(word)
        moved = [at for at, i in enumerate(kept) if shuffle[start + i] < noise.shuffle_words]
        order = sorted(moved, key=lambda at: position[start + kept[at]])
        for at, word in zip(moved, [text[source] for source in order], strict=True):
            text[at] = word
        damaged[caption] = " ".join(text)
    return damaged


def _blurred(image: NDArray[np.float32], deviation: float) -> NDArray[np.float32]:
    """Gaussian blur of (3, H, W) with the edge repeated, as two products with banded matrices whose rows sum to 1."""
    sides = []
    for side in image.shape[1:]:
        reach = math.ceil(4 * deviation)
        taps = np.arange(-reach, reach + 1)
        weights = np.exp(-0.5 * (taps / deviation) ** 2)
        matrix = np.zeros((side, side))
        target = np.clip(np.arange(side)[:, None] + taps, 0, side - 1)
        np.add.at(matrix, (np.arange(side)[:, None], target), weights / weights.sum())
        sides.append(matrix.astype(np.float32))
    blurred: NDArray[np.float32] = sides[0] @ image @ sides[1].T
    return blurred


def noisy_pixels(
    pixels: NDArray[np.float32], rows: NDArray[Any], noise: Noise, seed: int, epoch: int = 0
) -> NDArray[np.float32]:
    """Blur, then add noise to, then occlude the images that the rates choose, each kind choosing for itself.

    Args:
        pixels: (B, 3, H, W) float32, normalised: 0 is the mean colour.
        rows: (B,) image rows in the data set; which images are hit, and how, depends on (seed, epoch, row) alone.
        noise: its image rates and strengths are read.
        seed: whole number of at least 0.
        epoch: as in `noisy_captions`.

    Returns:
        (B, 3, H, W) float32: `pixels` itself where nothing is to do, else a new array.

    Raises:
        ValueError: an array of another shape or type.
    """
    if pixels.ndim != 4 or pixels.dtype != np.float32 or len(rows) != len(pixels):
        raise ValueError(
            f"pixels: wanted float32 (B, 3, H, W) with one row number an image, "
            f"got {pixels.dtype} {pixels.shape} and {len(rows)} row numbers"
        )
    if not noise.pixels:
        return pixels
    result: NDArray[np.float32] = pixels.copy()
    height, width = pixels.shape[2:]
    numbers = np.asarray(rows, dtype=np.int64)

    def hit(kind: str, rate: float) -> NDArray[np.int64]:
        return np.flatnonzero(noise_draws(kind, seed, epoch, numbers, np.zeros_like(numbers)) < rate)

    for i in hit("blur", noise.blur):
        result[i] = _blurred(result[i], noise.blur_strength * max(height, width))
    for i in hit("pixel-noise", noise.pixel_noise):
        generator = np.random.default_rng([seed, NOISE_STREAMS["pixel-noise"], epoch, int(numbers[i])])
        result[i] += noise.pixel_noise_strength * generator.standard_normal(pixels.shape[1:], dtype=np.float32)
    tall, wide = (min(side, round(side * math.sqrt(noise.occlude_strength))) for side in (height, width))
    for i in hit("occlude", noise.occlude):
        down, right = noise_draws("place", seed, epoch, numbers[[i, i]], np.array([1, 2]))
        top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
        result[i, :, top : top + tall, left : left + wide] = 0.0
    return result
