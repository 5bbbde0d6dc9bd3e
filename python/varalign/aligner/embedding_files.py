"""Embeddings, and the towers' features, as files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_arrays

from varalign.aligner.evaluate import embed_split
from varalign.aligner.hub_bank import priors
from varalign.canonical.hub_correction import HubCorrection
from varalign.data.datasets import ImageCaptions
from varalign.data.errors import DataError
from varalign.data.features import FeatureSet, save_features, write_strings
from varalign.data.files import write_atomically
from varalign.data.outputs import marker_of, written_together
from varalign.data.ranks import world
from varalign.inputs.parts import Parts
from varalign.inputs.sources import Rows
from varalign.inputs.tower_loop import TEXT_BATCH, encoded_rows, gathered
from varalign.inputs.unpaired import open_unpaired
from varalign.runs.progress import to_stderr


def write_embeddings(parts: Parts, rows: Rows, file: Path, correction: HubCorrection | None = None) -> dict[str, Any]:
    """Write embeddings of these images and their captions with ids, and the images' names beside them.

    With a hub correction `image_prior` (I,) and `text_prior` (T,) are written too. The score of a query q for an item g
    is then q·g − prior(g), the inner product of [q, 1] and [g, −prior(g)].

    Returns:
        What was written: `file`, `images`, `texts`.

    Raises:
        DataError: `file` ends neither in `.safetensors` nor in `.npz`.
    """
    if file.suffix not in {".safetensors", ".npz"}:
        raise DataError(f"--out {file}: wanted a name ending in .safetensors or .npz, or in .parquet for a map")
    file.parent.mkdir(parents=True, exist_ok=True)
    found = embed_split(parts, rows, every_caption=True)
    arrays = {
        "image_embeddings": found.images.cpu().numpy(),
        "text_embeddings": found.texts.cpu().numpy(),
        "image_rows": found.rows,
        "text_rows": found.captions,
        "text_image_ids": found.owner,
        "split": parts.data.split[found.rows],
        **priors(found, correction),
    }
    if file.suffix == ".npz":
        packed = io.BytesIO()
        np.savez(packed, **arrays)  # type: ignore[arg-type]
        content = packed.getvalue()
    else:
        content = save_arrays({name: np.ascontiguousarray(value) for name, value in arrays.items()})
    names, beside = parts.data.image_names, file.with_suffix(".names.jsonl")
    if not world().is_writer:
        return {"file": str(file), "images": len(found.rows), "texts": len(found.captions)}
    with written_together(marker_of(file), [file, beside]):
        if names is not None:
            write_strings(beside, [names[row] for row in found.rows.tolist()])
        write_atomically(file, content)
    return {"file": str(file), "images": len(found.rows), "texts": len(found.captions)}


def write_features(parts: Parts, file: Path) -> dict[str, Any]:
    """Write the towers' outputs, before the heads, of all images and captions as a features file.

    Returns:
        What was written: `file`, `images`, `texts`, `unreadable`.

    Raises:
        DataError: `file` does not end in `.safetensors`, or the data are features already.
    """
    data, towers = _with_towers(parts, file), parts.towers
    images, captions = (np.arange(count, dtype=np.int64) for count in (len(data.split), len(data.captions)))
    found = encoded_rows(parts, "image", images, parts.config.batch_size)
    x, unreadable = gathered(found, len(images), towers.image_feature_dim)
    y, _ = gathered(encoded_rows(parts, "text", captions, TEXT_BATCH), len(captions), towers.text_feature_dim)
    split = data.split.copy()
    split[unreadable] = -1
    names, texts = data.image_names, data.captions
    whole = FeatureSet(x.numpy(), y.numpy(), data.caption_owner, split, data.image_ids, names, texts=texts)
    if world().is_writer:
        save_features(file, whole, dtype="float32")
    return {"file": str(file), "images": len(split), "texts": len(captions), "unreadable": len(unreadable)}


def write_unpaired(parts: Parts, file: Path) -> dict[str, Any]:
    """Write the features of the unpaired images and texts that the options name, for `train --features` with them.

    What is nearly an image, or a caption, of dev or test is left out, as in training.

    Returns:
        What was written: `file`, `images`, `texts`.

    Raises:
        DataError: as `write_features` and `open_unpaired`.
    """
    _with_towers(parts, file)
    found = open_unpaired(parts, to_stderr)
    assert found is not None
    sides = {"image_features": found.image_features, "text_features": found.text_features}
    arrays = {name: values.cpu().numpy() for name, values in sides.items() if len(values)}
    beside = {"names": found.image_names, "texts": found.texts}
    written = {
        file.with_name(f"{file.stem}.{what}.jsonl"): names for what, names in beside.items() if names is not None
    }
    sizes = {"file": str(file), "images": len(found.image_features), "texts": len(found.text_features)}
    if not world().is_writer:
        return sizes
    with written_together(marker_of(file), [file, *written]):
        for place, strings in written.items():
            write_strings(place, strings)
        write_atomically(file, save_arrays(arrays))
    return sizes


def _with_towers(parts: Parts, file: Path) -> ImageCaptions:
    """The data, where they are images for towers to encode and features can be written to the file.

    Raises:
        DataError: `file` does not end in `.safetensors`, or the data are features already.
    """
    if file.suffix != ".safetensors":
        raise DataError(f"--out {file}: wanted a name ending in .safetensors")
    if not isinstance(parts.data, ImageCaptions):
        raise DataError(f"{parts.name}: trained on a features file already: {parts.config.features}")
    file.parent.mkdir(parents=True, exist_ok=True)
    return parts.data
