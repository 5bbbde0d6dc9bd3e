"""The pictures and captions of a data folder in the order of a features file that was made of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from varalign.data.datasets import ImageCaptions
from varalign.data.errors import DataError, first_three
from varalign.data.features import FeatureSet


def matched(features: FeatureSet, folder: ImageCaptions, place: Path) -> ImageCaptions:
    """The folder's images and captions in the order of a features file.

    Images are matched by name, or by row if the file has no names; captions of an image are matched by their order.

    Raises:
        DataError: an image is missing, or has another number of captions.
    """
    names = folder.image_names if features.image_names is None else features.image_names
    row_of = {name: row for row, name in enumerate(folder.image_names)}
    absent = [name for name in names if name not in row_of]
    if absent or len(names) != len(features.split):
        what = (
            f"{len(absent):,} of its images are not there: {first_three(absent)}"
            if absent
            else f"{len(features.split):,} images, the folder has {len(names):,}, and no file of names says which"
        )
        raise DataError(f"--data {place} is not what the features file was made of: {what}")
    rows = np.array([row_of[name] for name in names], np.int64)
    counts = np.diff(features.caption_offsets)
    theirs = np.diff(folder.caption_offsets)[rows]
    if (counts != theirs).any():
        row = int(np.flatnonzero(counts != theirs)[0])
        raise DataError(
            f"--data {place} is not what the features file was made of: {names[row]} has {theirs[row]} captions there "
            f"and {counts[row]} in the file; {int((counts != theirs).sum()):,} images differ"
        )
    captions = [""] * len(features.caption_owner)
    for mine, other in zip(features.captions_by_image.tolist(), folder.caption_rows(rows).tolist(), strict=True):
        captions[mine] = folder.captions[other]
    return replace(
        folder,
        image_names=list(names),
        image_paths=[folder.image_paths[row] for row in rows.tolist()],
        captions=captions,
        caption_image_ids=features.caption_owner,
        split=features.split,
        image_ids=features.image_ids,
        image_bytes=folder.image_bytes[rows],
    )
