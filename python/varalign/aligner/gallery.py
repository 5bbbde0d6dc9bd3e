"""The candidates of `search`: a run's data, embedded once and kept in the run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varalign.aligner.evaluate import embed_split
from varalign.aligner.hub_bank import priors
from varalign.canonical.hub_correction import HubCorrection
from varalign.data.datasets import ImageCaptions
from varalign.data.files import cache_key
from varalign.data.images import IMAGE_SUFFIXES
from varalign.data.readers.reading import READING
from varalign.inputs.kept import kept_arrays
from varalign.inputs.parts import Parts
from varalign.inputs.sources import Rows
from varalign.options.config import TrainConfig

_DATA_OPTIONS = ("data", *READING, "seed", "skip_missing", "dataset_size", "captions_per_image")


@dataclass(frozen=True)
class Gallery:
    """Embedded images and captions.

    Attributes:
        images: (I, D) unit vectors. texts: (T, D) unit vectors.
        image_labels: (I,) image name and first caption. text_labels: (T,) image name and caption.
        image_prior, text_prior: (I,) and (T,) of the hub correction; None without one.
        files: (I,) image files. file_states: (I,) their `_file_state` when they were embedded.
    """

    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    image_labels: list[tuple[str, str]]
    text_labels: list[tuple[str, str]]
    files: list[str]
    file_states: list[list[int]]
    image_prior: NDArray[np.float32] | None = None
    text_prior: NDArray[np.float32] | None = None

    def changed(self, rows: Iterable[int]) -> bool:
        """Whether the file of one of these images has changed since it was embedded."""
        return any(_file_state(self.files[row]) != self.file_states[row] for row in rows)


def open_gallery(
    file: Path,
    config: TrainConfig,
    weights: str,
    open_parts: Callable[[], tuple[Parts, Rows]],
    correction: HubCorrection | None = None,
    *,
    fresh: bool = False,
) -> Gallery:
    """Read the gallery from its file, or compute and write it.

    It is computed again when the weights, the captions, the splits or the list of images have changed. The image files
    are not checked here, because that would take longer than the search; the caller checks the hits with
    `Gallery.changed`.

    Args:
        file: a safetensors file.
        config: the options that name the data.
        weights: checksum of the weights.
        open_parts: opens model and data; returns them with the image rows of the gallery.
        correction: of the scores; None: the scores are cosine similarities.
        fresh: compute it in any case.
    """

    def arrays() -> dict[str, NDArray[Any]]:
        parts, rows = open_parts()
        data = parts.data
        assert isinstance(data, ImageCaptions)
        states = {row: _file_state(str(data.image_paths[row])) for row in rows.tolist()}
        found = embed_split(parts, rows, every_caption=True)
        names, owner, first = data.image_names, data.caption_owner, data.first_captions(found.rows)
        labels = {
            "images": [(names[row], data.captions[caption]) for row, caption in zip(found.rows, first, strict=True)],
            "texts": [(names[owner[caption]], data.captions[caption]) for caption in found.captions],
            "files": [str(data.image_paths[row]) for row in found.rows],
            "states": [states[row] for row in found.rows.tolist()],
        }
        return {
            "images": found.images.cpu().numpy(),
            "texts": found.texts.cpu().numpy(),
            "labels": np.frombuffer(json.dumps(labels).encode(), np.uint8),
            **priors(found, correction),
        }

    options = [getattr(config, name) for name in _DATA_OPTIONS]
    state: list[object] = [_folder_state(Path(place)) for place in (config.data, config.images) if place is not None]
    state += [_file_state(config.captions)] if config.captions is not None else []
    corrected = None if correction is None else (correction.name, correction.tau)
    found = kept_arrays(file, cache_key(weights, options, corrected, state), arrays, fresh=fresh)
    labels = json.loads(found["labels"].tobytes())
    return Gallery(
        found["images"],
        found["texts"],
        image_labels=labels["images"],
        text_labels=labels["texts"],
        files=labels["files"],
        file_states=labels["states"],
        image_prior=found.get("image_prior"),
        text_prior=found.get("text_prior"),
    )


def _file_state(file: str) -> list[int]:
    """Inode, size and times of a file: they differ after every write, even if the modification time is set back."""
    try:
        found = os.stat(file)
    except OSError:
        return []
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _folder_state(folder: Path) -> list[tuple[object, ...]]:
    """States of the folders and of all files but images: differs when one of them or the list of images changes."""
    state: list[tuple[object, ...]] = []
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        found = os.stat(place)
        if (found.st_dev, found.st_ino) in seen:  # a link to a folder that was visited already
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        others = [os.path.join(place, name) for name in files if Path(name).suffix.lower() not in IMAGE_SUFFIXES]
        state += [(path, *_file_state(path)) for path in (place, *others)]
    return sorted(state, key=str)
