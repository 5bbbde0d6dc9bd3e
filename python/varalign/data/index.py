"""Rows of images and captions, and which belong together: the same for data sets and for features files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Candidates:
    """What retrieval ranks among some images: copies of an image count as one, which has the captions of them all.

    Attributes:
        places: (I,) positions in the given rows of each image, where it has copies of the first one.
        rows: (I,) the image rows there.
        captions: (T,) caption rows, grouped by image.
        owner: (T,) the position in `rows` of each caption's image, ascending.
    """

    places: NDArray[np.int64]
    rows: NDArray[np.int64]
    captions: NDArray[np.int64]
    owner: NDArray[np.int64]


SPLITS = {"train": 0, "dev": 1, "test": 2}


class CaptionIndex:
    """Which captions belong to which image, and which images to which split.

    A subclass has `split` (I,) int8 (0 train, 1 dev, 2 test, -1 none), `image_ids` (I,), equal for copies of an image,
    and says in `caption_owner` which image row each caption belongs to. I images, T captions.
    """

    split: NDArray[np.int8]
    image_ids: NDArray[np.int64]

    @property
    def caption_owner(self) -> NDArray[np.int64]:
        """(T,) int64: the image row that each caption belongs to."""
        raise NotImplementedError

    @cached_property
    def captions_by_image(self) -> NDArray[np.int64]:
        """(T,) caption indices grouped by image row, in file order within an image."""
        return np.argsort(self.caption_owner, kind="stable").astype(np.int64)

    @cached_property
    def caption_offsets(self) -> NDArray[np.int64]:
        """(I + 1,): the captions of image i are `captions_by_image[offsets[i]:offsets[i + 1]]`."""
        counts = np.bincount(self.caption_owner, minlength=len(self.split))
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def rows(self, split: str) -> NDArray[np.int64]:
        """The image rows of "train", "dev" or "test", ascending; ValueError for another name."""
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")
        return np.flatnonzero(self.split == SPLITS[split]).astype(np.int64)

    def caption_rows(self, image_rows: ArrayLike) -> NDArray[np.int64]:
        """All caption indices of those images, grouped by image in the order given, in file order within an image."""
        rows = np.asarray(image_rows, dtype=np.int64).reshape(-1)
        starts = self.caption_offsets[rows]
        counts = self.caption_offsets[rows + 1] - starts
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        found: NDArray[np.int64] = self.captions_by_image[np.repeat(starts, counts) + within]
        return found

    def first_captions(self, image_rows: ArrayLike) -> NDArray[np.int64]:
        """The first caption in file order of each of those images; ValueError where an image has none."""
        rows = np.asarray(image_rows, dtype=np.int64).reshape(-1)
        starts = self.caption_offsets[rows]
        bare = rows[self.caption_offsets[rows + 1] == starts]
        if len(bare):
            raise ValueError(f"image row {bare[0]} has no caption; {len(bare)} of the {len(rows)} rows have none")
        found: NDArray[np.int64] = self.captions_by_image[starts]
        return found

    def candidates(self, image_rows: ArrayLike) -> Candidates:
        """The candidates of retrieval among those images."""
        rows = np.asarray(image_rows, dtype=np.int64).reshape(-1)
        ids, firsts, image = np.unique(self.image_ids[rows], return_index=True, return_inverse=True)
        order = np.argsort(firsts)  # images in the order of the rows, not of their ids
        position = np.empty(len(ids), np.int64)
        position[order] = np.arange(len(ids))
        counts = np.diff(self.caption_offsets)[rows]
        owner = np.repeat(position[image], counts)
        by_image = np.argsort(owner, kind="stable")
        places = firsts[order].astype(np.int64)
        return Candidates(places, rows[places], self.caption_rows(rows)[by_image], owner[by_image])

    def lacking(self) -> list[str]:
        """What each split has too little of for training; empty where training can begin."""
        sizes = {name: int((self.split == code).sum()) for name, code in SPLITS.items()}
        return [
            f"the {name} split has {sizes[name]} images; training needs at least {least}"
            for name, least in (("train", 2), ("dev", 1), ("test", 1))
            if sizes[name] < least
        ]


def first_of_each(owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """(I,) int64: the first position of each of 0 to I - 1 in `owner`, which holds each of them at least once.

    With the `owner` of captions grouped by image it gives the first caption of each image: [0, 0, 1, 1] gives [0, 2].
    """
    return np.unique(owner, return_index=True)[1].astype(np.int64)
