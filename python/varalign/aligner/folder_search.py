"""Search over the images of any folder and over captions: by a text, an image file, or an item that was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from varalign.aligner.aligner import Aligner
from varalign.aligner.folder_gallery import FolderGallery, correction_key, open_folder
from varalign.aligner.gallery_file import open_gallery_file
from varalign.aligner.image_gallery import ImageGallery
from varalign.data.errors import DataError, first_three, shown
from varalign.data.files import cache_key
from varalign.data.readers.captions import read_captions
from varalign.data.readers.folders import given_place
from varalign.data.readers.image_folder import ImageFolder
from varalign.data.readers.reading import Reading
from varalign.encoders.specs import Side
from varalign.evaluation.nearest import nearest
from varalign.inputs.kept import kept_arrays

Say = Callable[[str], None]


@dataclass
class Captions:
    """T captions: candidates of a search, embedded at the first.

    Attributes:
        texts: (T,). names: (T,) of the images that they belong to; `of_folder`: whether those are the gallery's.
        embed: gives (T, D) unit vectors, and the (T,) prior for images as queries, None without hub correction.
    """

    texts: list[str]
    names: list[str]
    of_folder: bool
    embed: Callable[[], tuple[NDArray[Any], NDArray[np.float32] | None]]

    @cached_property
    def embedded(self) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """What `embed` gives, asked once."""
        return self.embed()


@dataclass(frozen=True)
class Query:
    """A unit vector (D,) and what it is of; with the row of the gallery that it was taken from, which is no answer."""

    vector: NDArray[np.float32]
    side: Side
    row: int | None = None


@dataclass(frozen=True)
class Found:
    """An answer: its row among the candidates, the image's name, its caption, and the row of the image in the gallery.

    The caption is empty, and the image's row None, where there is none.
    """

    row: int
    score: float
    name: str
    caption: str
    image: int | None


def query_of(model: Aligner, given: str | Path | bytes) -> Query:
    """A query of a text, or of an image by its path or its bytes; DataError where it cannot be read."""
    return Query(model.encode(given), "text" if isinstance(given, str) else "image")


class FolderSearch:
    """A model, the images of a folder or of a gallery file, and the captions that are searched beside them.

    Args:
        model: of `gallery`, by which queries are embedded.
        gallery: the images.
        captions: those that are searched; None: there are none. Those of the folder are shown with its images too.
    """

    def __init__(self, model: Aligner, gallery: ImageGallery, captions: Captions | None = None) -> None:
        self.model, self.gallery, self.captions = model, gallery, captions
        self._caption_of: dict[str, str] = {}
        if captions is not None and captions.of_folder:
            for name, text in zip(captions.names, captions.texts, strict=True):
                self._caption_of.setdefault(name, text)

    def like(self, row: int) -> Query:
        """A query of an image of the gallery."""
        vector = self.gallery.vectors[row].astype(np.float32)
        return Query(vector / np.linalg.norm(vector), "image", row)

    def images(self, query: Query, top: int, *, copies: bool = False) -> list[Found]:
        """The best images, best first; the score is the cosine similarity, for a text less the prior of the image.

        Stored vectors are rounded to float16: what comes out above 1 is 1.

        Args:
            copies: show images with the same bytes more than once.
        """
        gallery = self.gallery
        skip = np.zeros_like(gallery.copies) if copies else gallery.copies
        if query.row is not None:
            skip = skip | (gallery.first_copies == gallery.first_copies[query.row])
        scores, rows = gallery.nearest(query.vector, top, corrected=query.side == "text", skip=skip)
        names = [gallery.names[row] for row in rows]
        return [
            Found(row, min(score, 1.0), name, self._caption_of.get(name, ""), row)
            for score, row, name in zip(scores.tolist(), rows.tolist(), names, strict=True)
        ]

    def texts(self, query: Query, top: int) -> list[Found]:
        """The best captions, best first. The score is the cosine similarity; for an image, less the prior.

        Raises:
            DataError: there are no captions.
        """
        found = self.captions
        if found is None:
            raise DataError("no captions to search: name a file of them (--captions FILE)")
        vectors, prior = found.embedded
        scores, rows = nearest(query.vector, vectors, top, prior=prior if query.side == "image" else None)
        images = self.gallery.rows if isinstance(self.gallery, FolderGallery) and found.of_folder else {}
        return [
            Found(row, min(score, 1.0), found.names[row], found.texts[row], images.get(found.names[row]))
            for score, row in zip(scores.tolist(), rows.tolist(), strict=True)
        ]


def open_search(model: Aligner, folder: Path, reading: Reading, say: Say, *, own: bool) -> FolderSearch:
    """The search over a folder, its store brought up to date as `open_folder` does.

    Args:
        reading: its `captions` name a file with captions of the folder's images.
        say: called with lines on progress and on what is left out.
        own: without such a file, search the captions of the run's own data, if those are there.
    """
    gallery = open_folder(model, folder, follow_links=reading.follow_links, say=say)
    if reading.captions is not None:
        return FolderSearch(model, gallery, folder_captions(model, gallery, reading, say))
    return FolderSearch(model, gallery, _own_if_there(model, say) if own else None)


def open_file_search(
    model: Aligner,
    file: Path,
    folder: Path | None,
    say: Say,
    *,
    own: bool,
    follow_links: bool = False,
    index: bool = False,
) -> FolderSearch:
    """The search over a gallery file, as `open_gallery_file` opens it.

    Args:
        folder: of its images; None: where they lay.
        say, own: as for `open_search`.
    """
    gallery = open_gallery_file(model, file, images=folder, follow_links=follow_links, index=index)
    return FolderSearch(model, gallery, _own_if_there(model, say) if own else None)


def _own_if_there(model: Aligner, say: Say) -> Captions | None:
    try:
        return own_captions(model)
    except DataError as error:
        say(f"no captions to search: {error}")
        return None


def own_captions(model: Aligner) -> Captions:
    """The captions of the run's own data; DataError where those are gone."""
    found = model.gallery("all", "text")
    names, texts = (list(part) for part in zip(*found.labels, strict=True))
    return Captions(texts, names, False, lambda: (found.embeddings, found.prior))


def folder_captions(model: Aligner, gallery: FolderGallery, reading: Reading, say: Say) -> Captions:
    """The captions of a folder's images, from the file that `reading` names, embedded once and kept beside the store.

    Raises:
        DataError: the file cannot be read, or names no image of the folder.
    """
    assert reading.captions is not None
    read = read_captions(given_place(reading.captions, gallery.folder), reading, skip_empty=True)
    for note in read.notes:
        say(note)
    folder = ImageFolder(gallery.folder, follow_links=reading.follow_links)
    named = {name: _name(folder, name) for name in dict.fromkeys(read.image_names)}
    pairs = [(named[name], text) for name, text in zip(read.image_names, read.captions, strict=True)]
    kept = [(name, text) for name, text in pairs if name in gallery.rows]
    if not kept:
        raise DataError(f"{read.path}: no caption names an image of {gallery.folder}")
    if len(kept) < len(pairs):
        absent = [shown(name) for name, place in named.items() if place not in gallery.rows]
        say(f"{len(pairs) - len(kept):,} captions left out, their images are not in the folder: {first_three(absent)}")
    names, texts = (list(part) for part in zip(*kept, strict=True))

    def make() -> dict[str, NDArray[Any]]:
        vectors, correction = model.embed_texts(texts), model.hub.correction
        prior = {} if correction is None else {"prior": correction.text_prior(torch.from_numpy(vectors)).numpy()}
        return {"vectors": vectors, **prior}

    def embed() -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        corrected = correction_key(model.hub.correction)
        key = cache_key("captions", model.weights, model.config.precision, corrected, *texts)
        arrays = kept_arrays(gallery.store.with_name("captions.safetensors"), key, make, say=say)
        return arrays["vectors"], arrays.get("prior")

    return Captions(texts, names, True, embed)


def _name(folder: ImageFolder, name: str) -> str:
    """The name of an image as the disk has it; empty for one that is not there or leads out of the folder."""
    try:
        found = folder.find(name)
    except DataError:
        return ""
    return "" if found is None else found.name
