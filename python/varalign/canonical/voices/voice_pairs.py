"""Features of images and of their texts, as the voices are fitted to them, and the folds of cross-validation.

I images, T texts, dx and dy feature dimensions, L lexical dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from varalign.canonical.evenly import evenly
from varalign.data.tokens.lexicon import Lexicon

FOLDS = 5


@dataclass(frozen=True)
class Pairs:
    """Images and texts; text j and image `owner[j]` are a pair.

    Attributes:
        images: (I, dx) features, float32.
        texts: (T, dy + L) features, float32; the last L columns are the lexical vectors.
        owner: (T,) int64 rows of the images.
        lexical: L, 0 without lexical vectors.
        weights: (T,) how much each pair counts in a fit, at least 0; None: all alike.
        image_ids: (I,) int64, equal for copies of an image; None: all differ.
        text_ids: (T,) int64, equal for texts that are one; such a text belongs to each of its images. None: all differ.
        captions: (T,) int64 rows of the captions of the data; None: not known.
    """

    images: Tensor
    texts: Tensor
    owner: Tensor
    lexical: int = 0
    weights: Tensor | None = None
    image_ids: Tensor | None = None
    text_ids: Tensor | None = None
    captions: Tensor | None = None

    def groups(self) -> Tensor:
        """(I,) int64 from 0: the same number for copies of an image."""
        if self.image_ids is None:
            return torch.arange(len(self.images), device=self.images.device)
        return torch.unique(self.image_ids, return_inverse=True)[1]

    def same_texts(self) -> Tensor:
        """(T,) int64 from 0: the same number for texts that are one."""
        if self.text_ids is None:
            return torch.arange(len(self.texts), device=self.texts.device)
        return torch.unique(self.text_ids, return_inverse=True)[1]

    def part(self, images: Tensor, texts: Tensor | None = None) -> Pairs:
        """The pairs of some images, a mask (I,), and of these only the texts of a mask (T,)."""
        kept = images[self.owner] if texts is None else images[self.owner] & texts
        place = images.cumsum(0) - 1

        def of(values: Tensor | None, mask: Tensor) -> Tensor | None:
            return None if values is None else values[mask]

        return replace(
            self,
            images=self.images[images],
            texts=self.texts[kept],
            owner=place[self.owner[kept]],
            weights=of(self.weights, kept),
            image_ids=of(self.image_ids, images),
            text_ids=of(self.text_ids, kept),
            captions=of(self.captions, kept),
        )

    def chunks(self, images: int = 1024) -> Iterator[Pairs]:
        """The pairs of consecutive images, a bounded number at a time; weights are given, ids are not."""
        order = torch.argsort(self.owner, stable=True)
        bounds = torch.searchsorted(self.owner[order], torch.arange(0, len(self.images) + images, images).to(order))
        for which, start in enumerate(range(0, len(self.images), images)):
            rows = order[bounds[which] : bounds[which + 1]]
            yield Pairs(
                self.images[start : start + images],
                self.texts[rows],
                self.owner[rows] - start,
                self.lexical,
                None if self.weights is None else self.weights[rows],
            )

    def captioned(self) -> Pairs:
        """The same without the images that have no text."""
        has = torch.zeros(len(self.images), dtype=torch.bool, device=self.images.device)
        has[self.owner] = True
        return self if bool(has.all()) else self.part(has)

    def worded(self, lexicon: Lexicon | None, captions: Sequence[str] | None) -> Pairs:
        """The same with lexical vectors; `captions` are all of the data. Without a lexicon as they are."""
        if lexicon is None or captions is None:
            return self
        assert self.captions is not None and not self.lexical
        words = [captions[row] for row in self.captions.tolist()]
        return replace(self, texts=with_words(self.texts, lexicon, words), lexical=lexicon.width)

    def thinned(self, most: int) -> Pairs:
        """The pairs of at most `most` of the images, evenly spread."""
        count = len(self.images)
        if count <= most:
            return self
        kept = torch.zeros(count, dtype=torch.bool, device=self.images.device)
        kept[evenly(count, most, kept.device)] = True
        return self.part(kept)


def with_words(texts: Tensor, lexicon: Lexicon, captions: Sequence[str]) -> Tensor:
    """(T, dy + L) features (T, dy) of texts, followed by their captions' lexical vectors."""
    return torch.cat([texts, torch.from_numpy(lexicon(captions)).to(texts)], dim=1)


def joined(a: Pairs, b: Pairs) -> Pairs:
    """The pairs of both, which know the same of their rows; those of `b` weigh 1."""
    names = ("images", "texts", "image_ids", "text_ids", "captions")
    both: dict[str, Any] = {
        name: None if getattr(a, name) is None else torch.cat([getattr(a, name), getattr(b, name)]) for name in names
    }
    weights = None if a.weights is None else torch.cat([a.weights, torch.ones(len(b.texts)).to(a.weights)])
    return replace(a, **both, owner=torch.cat([a.owner, b.owner + len(a.images)]), weights=weights)


def folds(pairs: Pairs, *, seed: int, count: int = FOLDS, every_text: bool = False) -> list[tuple[Pairs, Pairs]]:
    """Cross-validation by image: each part (the rest of the pairs, the held-out pairs).

    Copies of an image are in one fold. A held-out text that also stands at an image of the rest is left out of the
    held-out pairs, and so is an image that has no text left: what is judged was not in the fit. Where that would leave
    out more than half of the images (texts are labels, which repeat by design), such texts are kept.

    Args:
        pairs: of at least `2 · count` different images.
        seed: of the draw of the folds.
        count: number of folds.
        every_text: such texts are kept, as a test split keeps them.

    Raises:
        ValueError: fewer different images.
    """
    groups, texts = pairs.groups(), pairs.same_texts()
    number = int(groups.max()) + 1 if len(groups) else 0
    if number < 2 * count:
        raise ValueError(f"cross-validation in {count} folds needs at least {2 * count} different images, not {number}")
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed)).to(groups.device)
    fold = (order % count)[groups]
    found = []
    for which in range(count):
        held = fold == which
        seen = torch.zeros(int(texts.max()) + 1, dtype=torch.bool, device=texts.device)
        seen[texts[~held[pairs.owner]]] = True
        whole = pairs.part(held)
        if not every_text:
            unseen = pairs.part(held, ~seen[texts]).captioned()
            whole = whole if 2 * len(unseen.images) < len(whole.images) else unseen
        found.append((pairs.part(~held), whole))
    return found
