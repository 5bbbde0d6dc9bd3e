"""`pairs.csv`: the training pairs of a run with their weights."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varalign.data.datasets import ImageCaptions
from varalign.data.features import FeatureSet
from varalign.data.files import write_atomically


def write_pairs(
    path: Path, data: ImageCaptions | FeatureSet, captions: NDArray[np.int64], columns: dict[str, NDArray[Any]]
) -> None:
    """Write one line for each training pair, the lowest weight first.

    The columns are `caption_row` and `image_row` (rows of the data: the exact key), `image`, those given, and `caption`
    where the data have texts.

    Args:
        path: the file.
        data: of the run.
        captions: caption rows of the training pairs.
        columns: (T,) values by name, one for each caption of the data; `weight` is one of them.
    """
    names = data.image_names
    texts = None if isinstance(data, FeatureSet) else data.captions
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["caption_row", "image_row", "image", *columns, *([] if texts is None else ["caption"])])
    for row in captions[np.argsort(columns["weight"][captions], kind="stable")].tolist():
        image = int(data.caption_owner[row])
        figures = [f"{values[row]:.4f}" for values in columns.values()]
        writer.writerow(
            [row, image, "" if names is None else names[image], *figures, *([] if texts is None else [texts[row]])]
        )
    write_atomically(path, out.getvalue().encode("utf-8", "surrogateescape"))
