"""`pairs.csv`: the training pairs of a run with their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varalign.data.datasets import ImageCaptions
from varalign.data.features import FeatureSet
from varalign.data.files import write_atomically
from varalign.runs.csv_table import csv_table


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
    header = ["caption_row", "image_row", "image", *columns, *([] if texts is None else ["caption"])]
    lines = []
    for row in captions[np.argsort(columns["weight"][captions], kind="stable")].tolist():
        image = int(data.caption_owner[row])
        figures = [f"{values[row]:.4f}" for values in columns.values()]
        name, text = "" if names is None else names[image], [] if texts is None else [texts[row]]
        lines.append([row, image, name, *figures, *text])
    write_atomically(path, csv_table(header, lines))
