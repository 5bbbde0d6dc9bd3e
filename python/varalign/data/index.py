"""Rows of images and captions, and which belong together: the same for data sets and for features files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from varalign.data.same_captions import SameCaption, numbered

Rows = NDArray[np.int64]
# I images, T captions


@dataclass(frozen=True)
class Candidates:
    """What retrieval ranks among some images: copies of an image count as one, which has the captions of them all.

    Attributes:
        places: (I,) positions in the given rows of each image, where it has copies of the first one.
        rows: (I,) the image rows there.
        captions: (T,) a caption row of each text, grouped by the first image that the text stands at.
        owner: (T,) the position in `rows` of that image, ascending.
        pairs: (E, 2) a text (a position in `captions`) and an image (a position in `rows`) that belong together;
            ascending. Where no text stands at two images, text j belongs to image `owner[j]` alone.
        first: (P, 2) each image that has captions, and the text of its first one: positions as in `pairs`, but the
            image first; ascending.
    """

    places: Rows
    rows: Rows
    captions: Rows
    owner: Rows
    pairs: Rows
    first: Rows


SPLITS = {"train": 0, "dev": 1, "test": 2}


class CaptionIndex:
    """Which captions belong to which image, and which images to which split.

    A subclass has `split` (I,) int8 (0 train, 1 dev, 2 test, -1 none), `image_ids` (I,), equal for copies of an image,
    and says in `caption_owner` which image row each caption belongs to, and in `caption_texts` what the captions are.
    With `same_caption` "positive" equal captions are one text, which belongs to every image that it stands at; with
    "distinct" each caption is a text of its own image.
    """

    split: NDArray[np.int8]
    image_ids: Rows
    same_caption: SameCaption = "positive"
    other_splits = "give some of its rows another `split`: 0 train, 1 dev, 2 test"

    @property
    def caption_owner(self) -> Rows:
        """(T,) int64: the image row that each caption belongs to."""
        raise NotImplementedError

    @property
    def caption_texts(self) -> Sequence[str] | None:
        """(T,) the captions; None where they are not known, and each is then a text of its own."""
        return None

    @property
    def image_shards(self) -> Rows | None:
        """(I,) int64: the number of the tar shard that each image lies in; None where images lie in none."""
        return None

    @cached_property
    def equal_captions(self) -> Rows:
        """(T,) int64: the same number for equal captions, whether or not they count as one text."""
        texts = self.caption_texts
        return self._places if texts is None else numbered(texts)

    @property
    def text_ids(self) -> Rows:
        """(T,) int64: equal for captions that are one text."""
        return self.equal_captions if self.same_caption == "positive" else self._places

    @cached_property
    def _places(self) -> Rows:
        return np.arange(len(self.caption_owner), dtype=np.int64)

    @cached_property
    def is_shared(self) -> NDArray[np.bool_]:
        """(T,): whether the caption's text stands at more than one image."""
        counts = np.bincount(self._standing[1], minlength=len(self.text_ids))
        found: NDArray[np.bool_] = counts[self.text_ids] > 1
        return found

    @cached_property
    def _standing(self) -> tuple[Rows, Rows]:
        """(E,) image ids, ascending, and (E,) text ids: every text of every image once."""
        owners, images = np.unique(self.image_ids, return_inverse=True)
        codes = np.unique(images[self.caption_owner] * (len(self.text_ids) + 1) + self.text_ids)
        image, text = np.divmod(codes, len(self.text_ids) + 1)
        return owners[image], text

    def texts_at(self, image_rows: ArrayLike) -> tuple[Rows, Rows]:
        """(E,) positions in the rows, ascending, and (E,) ids of the texts that stand at these images, each once."""
        ids = self.image_ids[np.asarray(image_rows, dtype=np.int64)]
        images, texts = self._standing
        starts = np.searchsorted(images, ids)
        place, found = ranges(starts, np.searchsorted(images, ids, side="right") - starts)
        return place, texts[found]

    @cached_property
    def drawn_captions(self) -> tuple[Rows, Rows]:
        """What training draws from: as `captions_by_image` and `caption_offsets`, but each text of an image once."""
        order = self.captions_by_image
        if self.same_caption == "distinct":
            return order, self.caption_offsets
        codes = self.caption_owner[order] * (len(order) + 1) + self.text_ids[order]
        kept = order[np.sort(np.unique(codes, return_index=True)[1])]
        counts = np.bincount(self.caption_owner[kept], minlength=len(self.split))
        return kept, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @cached_property
    def captions_by_image(self) -> Rows:
        """(T,) caption indices grouped by image row, in file order within an image."""
        return np.argsort(self.caption_owner, kind="stable").astype(np.int64)

    @cached_property
    def caption_offsets(self) -> Rows:
        """(I + 1,): the captions of image i are `captions_by_image[offsets[i]:offsets[i + 1]]`."""
        counts = np.bincount(self.caption_owner, minlength=len(self.split))
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def rows(self, split: str) -> Rows:
        """The image rows of "train", "dev" or "test", ascending; ValueError for another name."""
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")
        return np.flatnonzero(self.split == SPLITS[split]).astype(np.int64)

    def caption_rows(self, image_rows: ArrayLike) -> Rows:
        """All caption indices of those images, grouped by image in the order given, in file order within an image."""
        rows = np.asarray(image_rows, dtype=np.int64).reshape(-1)
        starts = self.caption_offsets[rows]
        found: Rows = self.captions_by_image[ranges(starts, self.caption_offsets[rows + 1] - starts)[1]]
        return found

    def first_captions(self, image_rows: ArrayLike) -> Rows:
        """The first caption in file order of each of those images; ValueError where an image has none."""
        rows = np.asarray(image_rows, dtype=np.int64).reshape(-1)
        starts = self.caption_offsets[rows]
        bare = rows[self.caption_offsets[rows + 1] == starts]
        if len(bare):
            raise ValueError(f"image row {bare[0]} has no caption; {len(bare)} of the {len(rows)} rows have none")
        found: Rows = self.captions_by_image[starts]
        return found

    def candidates(self, image_rows: ArrayLike) -> Candidates:
        """The candidates of retrieval among those images: every text once."""
        rows = np.asarray(image_rows, dtype=np.int64).reshape(-1)
        ids, firsts, image = np.unique(self.image_ids[rows], return_index=True, return_inverse=True)
        order = np.argsort(firsts)  # images in the order of the rows, not of their ids
        position = np.empty(len(ids), np.int64)
        position[order] = np.arange(len(ids))
        owner = np.repeat(position[image], np.diff(self.caption_offsets)[rows])
        by_image = np.argsort(owner, kind="stable")
        places = firsts[order].astype(np.int64)
        captions, owner = self.caption_rows(rows)[by_image], owner[by_image]
        # The texts in the order in which they come, and which of them each caption is.
        _, kept, text = np.unique(self.text_ids[captions], return_index=True, return_inverse=True)
        number = np.empty(len(kept), np.int64)
        number[np.argsort(kept)] = np.arange(len(kept))
        text, kept = number[text], np.sort(kept)
        pairs = np.stack(np.divmod(np.unique(text * len(places) + owner), len(places)), axis=1).astype(np.int64)
        at = np.unique(owner, return_index=True)[1]
        first = np.stack([owner[at], text[at]], axis=1)
        return Candidates(places, rows[places], captions[kept], owner[kept], pairs, first)

    def lacking(self, *, held_out: bool = True) -> list[str]:
        """What each split has too little of for training; empty where training can begin.

        Args:
            held_out: whether dev and test are needed, as by everything that is trained step by step.
        """
        sizes = {name: int((self.split == code).sum()) for name, code in SPLITS.items()}
        needed = {"train": 2, "dev": 1, "test": 1} if held_out else {"train": 2}
        return [
            f"the {name} split has {sizes[name]} images; training needs at least {least}; {self.other_splits}"
            for name, least in needed.items()
            if sizes[name] < least
        ]


def first_of_each(owner: Rows) -> Rows:
    """(I,) int64: the first position of each of 0 to I - 1 in `owner`, which holds each of them at least once.

    With the `owner` of captions grouped by image it gives the first caption of each image: [0, 0, 1, 1] gives [0, 2].
    """
    return np.unique(owner, return_index=True)[1].astype(np.int64)


def ranges(starts: Rows, counts: Rows) -> tuple[Rows, Rows]:
    """The numbers of several ranges one after the other, and which range each is of: [3, 9] and [2, 1] give 3 4 9."""
    which = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return which, starts[which] + within
