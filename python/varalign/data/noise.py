"""Noise injected on purpose: wrong pairs, damaged captions, damaged images, each a pure function of (seed, row).

`--noise swap-images=0.4,drop-words=0.1` names kinds and rates. A rate is a share between 0 and 1:

    swap-images     of the images: they exchange all their captions with one another, none keeps its own
    swap-captions   of the single captions: they change images with one another
    drop-words      of the words (a caption keeps at least one)
    replace-words   of the words: each becomes another word of the vocabulary
    shuffle-words   of the words: those of a caption exchange their places
    blur            of the images; strength: the Gaussian's deviation as a share of the image's side (0.02)
    pixel-noise     of the images; strength: the deviation of the normal noise, in normalised units (0.5)
    occlude         of the images; strength: the share of the area that a square of the mean colour covers (0.25)

A strength other than the default follows a colon: `blur=0.5:0.05`. For one seed a higher rate damages what a lower one
damages and more, so that recall against noise is a curve and not a scatter. Wrong pairs are made here, damaged words
and pixels in `varalign.data.damage`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varalign.data.draws import NOISE_STREAMS
from varalign.data.errors import DataError


@dataclass(frozen=True)
class Noise:
    """Kinds of noise with their rates (shares, 0 to 1) and, for images, strengths; `str()` is what `parse_noise` reads.

    Raises DataError for a rate outside 0 to 1 or a strength that is not positive (for `occlude`: above 1).
    """

    swap_images: float = 0.0
    swap_captions: float = 0.0
    drop_words: float = 0.0
    replace_words: float = 0.0
    shuffle_words: float = 0.0
    blur: float = 0.0
    pixel_noise: float = 0.0
    occlude: float = 0.0
    blur_strength: float = 0.02
    pixel_noise_strength: float = 0.5
    occlude_strength: float = 0.25

    def __post_init__(self) -> None:
        for name in _names():
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise DataError(f"--noise {_option(name)}: wanted a rate between 0 and 1, got {value:g}")
        for name in _STRENGTHS:
            value = getattr(self, name)
            if not (0.0 < value < math.inf) or (name == "occlude_strength" and value > 1.0):
                limit = "between 0 and 1" if name == "occlude_strength" else "above 0"
                raise DataError(
                    f"--noise {_option(name.removesuffix('_strength'))}: wanted a strength {limit}, got {value:g}"
                )

    @property
    def pairs(self) -> bool:
        """Whether pairs are swapped: `noisy_pairs` has something to do."""
        return self.swap_images > 0 or self.swap_captions > 0

    @property
    def words(self) -> bool:
        """Whether captions change: `noisy_captions` has something to do."""
        return self.drop_words > 0 or self.replace_words > 0 or self.shuffle_words > 0

    @property
    def pixels(self) -> bool:
        """Whether images change: `noisy_pixels` has something to do."""
        return self.blur > 0 or self.pixel_noise > 0 or self.occlude > 0

    def __bool__(self) -> bool:
        return self.pairs or self.words or self.pixels

    def __str__(self) -> str:
        parts = []
        for name in _names():
            if rate := getattr(self, name):
                strength = getattr(self, f"{name}_strength", None)
                chosen = strength is not None and strength != getattr(type(self), f"{name}_strength")
                parts.append(f"{_option(name)}={_number(rate)}" + (f":{_number(strength)}" if chosen else ""))
        return ",".join(parts) or "none"


_STRENGTHS = tuple(field.name for field in fields(Noise) if field.name.endswith("_strength"))


def _names() -> tuple[str, ...]:
    return tuple(field.name for field in fields(Noise) if not field.name.endswith("_strength"))


def _option(name: str) -> str:
    return name.replace("_", "-")


def _number(value: Any) -> str:
    return repr(float(value)).removesuffix(".0")


NOISE_KINDS = tuple(_option(name) for name in _names())


def parse_noise(text: str | None) -> Noise:
    """Read `swap-images=0.4,drop-words=0.1`; underscores work too; `none`, the empty string and None are no noise.

    Raises:
        DataError: a kind that is unknown (the known ones are listed) or stands twice, a rate or strength that is no
            number or outside its range.
    """
    values: dict[str, float] = {}
    if text is None or text.strip() in ("", "none"):
        return Noise()
    for part in text.split(","):
        kind, equals, given = part.strip().partition("=")
        name = kind.strip().lower().replace("-", "_")
        if name not in _names():
            raise DataError(f"--noise: wanted kinds out of {', '.join(NOISE_KINDS)}, got {kind.strip()!r}")
        if name in values:
            raise DataError(f"--noise: {_option(name)} stands twice in {text!r}; give it one rate")
        rate, colon, strength = given.partition(":")
        try:
            values[name] = float(rate)
            if colon and f"{name}_strength" in _STRENGTHS:
                values[f"{name}_strength"] = float(strength)
            elif colon:
                raise ValueError
        except ValueError:
            form = "RATE or RATE:STRENGTH" if f"{name}_strength" in _STRENGTHS else "RATE"
            got = repr(given) if equals else "no rate"
            raise DataError(f"--noise {_option(name)}: wanted {_option(name)}={form} with numbers, got {got}") from None
    return Noise(**values)


def _count(rate: float, population: int) -> int:
    """How many of the population a rate means: rounded, and never one alone, which would have nobody to swap with."""
    count = round(rate * population)
    return min(population, 2) if count == 1 else count


def _derangement(count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """A permutation that leaves nothing in its place, every one equally likely; drawn anew until one is (2.7 times)."""
    while True:
        drawn = generator.permutation(count)
        if not (drawn == np.arange(count)).any():
            return drawn


def _swap_captions(
    now: NDArray[np.int64], before: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Exchange image rows among captions so that each gets one that is neither its present nor its original one.

    A random permutation, then each caption that kept an image changes with a random other one where both gain by it.
    Where most captions are of one image this cannot succeed for all; those keep what they had.
    """
    new = now[generator.permutation(len(now))]
    for _ in range(100):
        kept = np.flatnonzero((new == now) | (new == before))
        if len(kept) == 0:
            return new
        for one, other in zip(kept.tolist(), generator.integers(0, len(now), len(kept)).tolist(), strict=True):
            mine, theirs = new[one], new[other]
            if theirs not in (now[one], before[one]) and mine not in (now[other], before[other]):
                new[one], new[other] = theirs, mine
    return new


def noisy_pairs(
    caption_image_ids: NDArray[np.int64], rows: NDArray[np.int64], noise: Noise, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Give images one another's captions.

    `swap-images` first: the chosen images, a share of those in `rows` that have captions, exchange all their captions
    by a derangement. Then `swap-captions`: a share of the single captions change images. A share that rounds to one
    becomes two where there are two.

    Args:
        caption_image_ids: (T,) image row of each caption.
        rows: image rows that may be touched (those of the training split); captions of others stay.
        noise: only its two `swap` rates are read.
        seed: whole number of at least 0.

    Returns:
        (T,) new image rows, and (T,) True where the pair is now wrong.
    """
    new = np.array(caption_image_ids, dtype=np.int64)
    inside = np.isin(new, rows)
    images = np.unique(new[inside])
    if noise.swap_images:
        generator = np.random.default_rng([seed, NOISE_STREAMS["swap-images"]])
        chosen = images[generator.permutation(len(images))[: _count(noise.swap_images, len(images))]]
        if len(chosen) > 1:
            target = np.arange(new.max() + 1)
            target[chosen] = chosen[_derangement(len(chosen), generator)]
            new[inside] = target[new[inside]]
    if noise.swap_captions:
        generator = np.random.default_rng([seed, NOISE_STREAMS["swap-captions"]])
        captions = np.flatnonzero(inside)
        captions = captions[generator.permutation(len(captions))[: _count(noise.swap_captions, len(captions))]]
        if len(captions) > 1:
            new[captions] = _swap_captions(new[captions], np.asarray(caption_image_ids)[captions], generator)
    return new, new != np.asarray(caption_image_ids)
