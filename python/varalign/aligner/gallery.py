"""The candidates of `search`: the images or the captions of a run's data, embedded once and kept in the run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.aligner.evaluate import embed_images, embed_texts
from varalign.canonical.hub_correction import HubCorrection
from varalign.data.datasets import ImageCaptions
from varalign.data.files import cache_key
from varalign.data.images import IMAGE_SUFFIXES
from varalign.data.readers.reading import READING
from varalign.data.shards.shard_copies import state_file
from varalign.data.shards.shard_list import names_shards, shard_files
from varalign.encoders.specs import Side
from varalign.inputs.kept import kept_arrays
from varalign.inputs.parts import Parts
from varalign.inputs.sources import Rows
from varalign.options.config import TrainConfig

_DATA_OPTIONS = ("data", *READING, "seed", "skip_missing", "dataset_size", "captions_per_image")


@dataclass(frozen=True)
class Gallery:
    """Embedded images, or embedded captions: the candidates of a query of the other side.

    Attributes:
        embeddings: (N, D) unit vectors.
        labels: (N,) image name and caption; of an image its first caption.
        prior: (N,) of the hub correction; None without one.
        files: (N,) image files; empty for captions. file_states: their `file_state` when they were embedded.
    """

    embeddings: NDArray[np.float32]
    labels: list[tuple[str, str]]
    prior: NDArray[np.float32] | None
    files: list[str]
    file_states: list[list[int]]

    def changed(self, rows: Iterable[int]) -> bool:
        """Whether the file of one of these images has changed since it was embedded."""
        return any(file_state(self.files[row]) != self.file_states[row] for row in rows if self.files)


def open_gallery(
    file: Path,
    side: Side,
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
        side: of the candidates; the other side is neither read nor embedded.
        config: the options that name the data.
        weights: checksum of the weights.
        open_parts: opens model and data, with at least this side's tower and source; and the image rows of the gallery.
        correction: of the scores; None: the scores are cosine similarities.
        fresh: compute it in any case.
    """

    def arrays() -> dict[str, NDArray[Any]]:
        parts, rows = open_parts()
        assert isinstance(parts.data, ImageCaptions)
        found, shown = (_images if side == "image" else _captions)(parts, rows)
        arrays = {"embeddings": found.cpu().numpy(), "shown": np.frombuffer(json.dumps(shown).encode(), np.uint8)}
        if correction is not None:
            prior = correction.image_prior(found) if side == "image" else correction.text_prior(found)
            arrays["prior"] = prior.cpu().numpy()
        return arrays

    options = [getattr(config, name) for name in _DATA_OPTIONS]
    state: list[object] = [_folder_state(Path(place)) for place in (config.data, config.images) if place is not None]
    state += [file_state(config.captions)] if config.captions is not None else []
    corrected = None if correction is None else (correction.name, correction.tau)
    found = kept_arrays(file, cache_key(side, weights, options, corrected, state), arrays, fresh=fresh)
    shown = json.loads(found["shown"].tobytes())
    return Gallery(found["embeddings"], prior=found.get("prior"), **shown)


def _images(parts: Parts, rows: Rows) -> tuple[Tensor, dict[str, Any]]:
    """The images (I, D) of these rows that can be read, copies of an image once, and the gallery's lists of them."""
    data = parts.data
    assert isinstance(data, ImageCaptions)
    states = {row: file_state(str(data.image_paths[row])) for row in rows.tolist()}
    readable, images = embed_images(parts, rows)
    kept = data.candidates(readable)
    first = data.first_captions(kept.rows)
    shown = {
        "labels": [(data.image_names[row], data.captions[n]) for row, n in zip(kept.rows, first, strict=True)],
        "files": [str(data.image_paths[row]) for row in kept.rows],
        "file_states": [states[row] for row in kept.rows.tolist()],
    }
    return images[torch.from_numpy(kept.places).to(images.device)], shown


def _captions(parts: Parts, rows: Rows) -> tuple[Tensor, dict[str, Any]]:
    """Every caption (T, D) of these images, whether they can be read or not, and the gallery's lists of them."""
    data = parts.data
    assert isinstance(data, ImageCaptions)
    captions = replace(data, same_caption="distinct").candidates(rows).captions
    names = (data.image_names[row] for row in data.caption_owner[captions])
    labels = [(name, data.captions[caption]) for name, caption in zip(names, captions, strict=True)]
    return embed_texts(parts, captions), {"labels": labels, "files": [], "file_states": []}


def file_state(file: str) -> list[int]:
    """Inode, size and times of a file: they differ after every write, even if the modification time is set back.

    Of an image in a tar shard, those of the shard.
    """
    try:
        found = os.stat(state_file(file))
    except OSError:
        return []
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _folder_state(folder: Path) -> list[tuple[object, ...]]:
    """States of the folders and of all files but images: differs when one of them or the list of images changes."""
    if names_shards(folder):
        return [(str(shard), *file_state(str(shard))) for shard in shard_files(folder)]
    state: list[tuple[object, ...]] = []
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        found = os.stat(place)
        if (found.st_dev, found.st_ino) in seen:  # a link to a folder that was visited already
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        others = [os.path.join(place, name) for name in files if Path(name).suffix.lower() not in IMAGE_SUFFIXES]
        state += [(path, *file_state(path)) for path in (place, *others)]
    return sorted(state, key=str)
