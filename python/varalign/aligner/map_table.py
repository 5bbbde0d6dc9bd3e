"""The map of a split as a Parquet table, which embedding-atlas opens and FiftyOne can be filled from.

I images, T texts.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varalign.aligner.evaluate import SplitEmbeddings, embed_split
from varalign.canonical.hub_correction import HubCorrection, corrected_ranks
from varalign.data.errors import DataError, how_to_install
from varalign.data.files import write_atomically
from varalign.data.index import SPLITS
from varalign.data.ranks import world
from varalign.data.waiting import counted
from varalign.evaluation.retrieval import ranks
from varalign.inputs.parts import Parts
from varalign.inputs.sources import Rows
from varalign.pictures.page import thumbnail_uri
from varalign.pictures.tsne import collapsed, layouts, plane
from varalign.runs.progress import to_stderr

PERPLEXITY = 30.0
_SIDE, _QUALITY = 112, 72


def write_map(parts: Parts, rows: Rows, file: Path, correction: HubCorrection | None = None) -> dict[str, Any]:
    """Write a row for each of these images and each of their texts; an image is followed by its texts.

    Columns: `id` (`image 7`, `text 35`), `modality` (`image` or `text`), `name` of the image, `text` (of an image its
    first caption), `x` and `y` (t-SNE of both kinds together at perplexity 30; of more than 10,000 points openTSNE's or
    PCA, which is said), `split`, `rank` (of the best right partner among the written ones, counted from 1; null without
    a partner), `image` (a thumbnail as a JPEG data URI; a text has its image's) and `file` (the path of the image).
    What is not known, such as the pictures of a features file without `--data`, is null.

    Args:
        parts: model and data.
        rows: image rows.
        file: ends in `.parquet`.
        correction: of the scores that rank.

    Returns:
        What was written: `file`, `images`, `texts`.

    Raises:
        DataError: pyarrow is missing, or none of the images can be read.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"--out {file}: Parquet files are written by pyarrow: {how_to_install('parquet')}") from None
    found = embed_split(parts, rows)
    if not world().is_writer:
        return {"file": str(file), "images": len(found.rows), "texts": len(found.captions)}
    columns = _columns(parts, found, correction)
    order = np.lexsort((np.arange(-len(found.rows), len(found.owner)), np.r_[np.arange(len(found.rows)), found.owner]))
    # A thumbnail is the same string in the rows that follow each other: compressed, it is stored once.
    table = pyarrow.table(columns).take(pyarrow.array(order))
    written = io.BytesIO()
    pyarrow.parquet.write_table(table, written, compression="zstd", use_dictionary=["modality", "split"])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, written.getvalue())
    return {"file": str(file), "images": len(found.rows), "texts": len(found.captions)}


def _columns(parts: Parts, found: SplitEmbeddings, correction: HubCorrection | None) -> dict[str, Any]:
    """The table's columns: I images, then T texts."""
    data, split_of = parts.data, {code: name for name, code in SPLITS.items()}
    images, owner = len(found.rows), found.owner
    names = [str(row) if data.image_names is None else data.image_names[row] for row in found.rows.tolist()]
    captions = data.caption_texts
    texts = [None if captions is None else captions[row] for row in found.captions.tolist()]
    first: dict[int, int] = dict(found.first.tolist())
    files = None if data.image_paths is None else [data.image_paths[row] for row in found.rows.tolist()]
    thumbnails = [None] * images if files is None else _thumbnails(files)
    paths = [None] * images if files is None else [str(file.absolute()) for file in files]
    splits = [split_of.get(code) for code in data.split[found.rows].tolist()]
    places = _places(found)

    def of_both(of_images: Sequence[Any]) -> list[Any]:
        return [*of_images, *(of_images[image] for image in owner.tolist())]

    return {
        "id": [*(f"image {row}" for row in found.rows.tolist()), *(f"text {row}" for row in found.captions.tolist())],
        "modality": ["image"] * images + ["text"] * len(owner),
        "name": of_both([_sayable(name) for name in names]),
        "text": [*(texts[first[image]] if image in first else None for image in range(images)), *texts],
        "x": places[:, 0],
        "y": places[:, 1],
        "split": of_both(splits),
        "rank": list(_ranks(found, correction)),
        "image": of_both(thumbnails),
        "file": of_both([None if path is None else _sayable(path) for path in paths]),
    }


def _ranks(found: SplitEmbeddings, correction: HubCorrection | None) -> Iterator[int | None]:
    if correction is None:
        both = ranks(found.images, found.texts, found.pairs)
    else:
        both = corrected_ranks(found.images, found.texts, found.pairs, correction)
    return (rank + 1 if rank >= 0 else None for side in both for rank in side.tolist())


def _places(found: SplitEmbeddings) -> NDArray[np.float32]:
    """(I + T, 2) places of the images, then of the texts."""
    sides = [side.cpu().numpy() for side in (found.images, found.texts)]
    points = np.concatenate(sides)
    alike = [name for name, side in zip(("image", "text"), sides, strict=True) if collapsed(side)]
    if alike or len(points) < 4:
        why = f"all {' and all '.join(alike)} embeddings are one point" if alike else "too few points for t-SNE"
        to_stderr(f"map: {why}; drawn by PCA")
        return plane(points)
    (found_places,) = layouts(points, [min(PERPLEXITY, (len(points) - 1) / 3)])
    return found_places


def _thumbnails(files: Sequence[Path]) -> list[str | None]:
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda file: thumbnail_uri(file, _SIDE, _QUALITY), files)
        return list(counted(made, "thumbnails", len(files)))


def _sayable(name: str) -> str:
    """A file's name, whose bytes need not be UTF-8, as Parquet takes text."""
    return name.encode("utf-8", "replace").decode()
