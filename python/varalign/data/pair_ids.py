"""Which images and texts of a batch belong together, as ids: a text belongs to the images that have its id."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from varalign.data.index import CaptionIndex, Rows, ranges

# M images and N texts of a batch; a class: what a text is made of, a set of text ids


@dataclass(frozen=True)
class PairIds:
    """Ids of a batch: text j belongs to image i where the text's id is among the image's.

    Attributes:
        images: (M,), or (M, K) where some images need several; an image's ids differ from each other.
        texts: (N,).
    """

    images: Rows
    texts: Rows


def pair_ids(index: CaptionIndex, image_rows: ArrayLike, captions: ArrayLike) -> PairIds | None:
    """Ids of images and their texts, where some text stands at several of the images; None where none does.

    A text that is the mean of several captions belongs to the images at which all of these captions stand. Texts of the
    same images have one id: an image needs several ids only where two of its texts belong to different images. Where
    one image needs K, the ids of the others are filled up with ids that no text has; K is a power of 2.

    Args:
        image_rows: (M,) image rows, no two of them copies of one image.
        captions: (N,) caption rows of these images, a text each, or (N, k) of texts that are means of k captions.
    """
    rows, drawn = np.asarray(image_rows, dtype=np.int64), np.asarray(captions, dtype=np.int64)
    drawn = drawn.reshape(len(drawn), -1)
    shared = np.flatnonzero(index.is_shared[drawn].all(axis=1))
    if not len(shared):
        return None
    # A row of `sets` is a class: text ids, each once, with -1 in place of repeats.
    sets = np.sort(index.text_ids[drawn[shared]], axis=1)
    sets[:, 1:][sets[:, 1:] == sets[:, :-1]] = -1
    classes, class_of = np.unique(np.sort(sets, axis=1), axis=0, return_inverse=True)
    which, image = _images_of(index, rows, classes)
    bounds = np.searchsorted(which, np.arange(len(classes) + 1))
    several = np.flatnonzero(np.diff(bounds) > 1)
    if not len(several):
        return None
    own, texts = index.image_ids[rows], index.image_ids[index.caption_owner[drawn[:, 0]]]
    new = int(max(own.max(), texts.max())) + 1
    groups: dict[bytes, int] = {}  # classes of the same images, by their places in the batch
    id_of = np.full(len(classes), -1)  # the id of each class, -1 for that of the text's own image
    for c in several.tolist():
        id_of[c] = new + groups.setdefault(image[bounds[c] : bounds[c + 1]].tobytes(), len(groups))
    id_of = id_of[class_of.reshape(-1)]
    texts[shared] = np.where(id_of >= 0, id_of, texts[shared])
    members = [np.frombuffer(key, dtype=image.dtype) for key in groups]
    alone = np.flatnonzero(np.isin(own, texts))
    places = np.concatenate([alone, *members])
    ids = np.concatenate([own[alone], np.repeat(new + np.arange(len(members)), [len(part) for part in members])])
    return PairIds(_table(places, ids, len(rows)), texts)


def _images_of(index: CaptionIndex, rows: Rows, classes: Rows) -> tuple[Rows, Rows]:
    """Every pair of a class, ascending, and an image (its place in `rows`) at which all of the class's texts stand."""
    place, text = index.texts_at(rows)
    by_text = np.argsort(text, kind="stable")
    place, text = place[by_text], text[by_text]
    of_class, column = np.nonzero(classes >= 0)
    starts = np.searchsorted(text, classes[of_class, column])
    entry, found = ranges(starts, np.searchsorted(text, classes[of_class, column], side="right") - starts)
    codes, times = np.unique(of_class[entry] * len(rows) + place[found], return_counts=True)
    which, image = np.divmod(codes, len(rows))
    whole = times == (classes >= 0).sum(axis=1)[which]
    return which[whole], image[whole]


def _table(places: Rows, ids: Rows, images: int) -> Rows:
    """(M,) or (M, K) the ids of each image, given one by one with the image's place."""
    order = np.argsort(places, kind="stable")
    counts = np.bincount(places, minlength=images)
    width = 1 << int(counts.max() - 1).bit_length()  # a power of 2: kernels are compiled for each width
    slot = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = min(0, int(ids.min())) - 1 - np.arange(images * width).reshape(images, width)
    table[places[order], slot] = ids[order]
    return table[:, 0] if width == 1 else table
