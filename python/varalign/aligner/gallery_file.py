"""A gallery as a file of its own: vectors, priors and names of any number of images, mapped and never read whole.

A safetensors file: `image_embeddings` (N, D) float16 unit vectors, `image_prior` (N,) float32 where the model has a hub
correction, `first_copies` (N,) the row of the first image with the same bytes, `names` the names in UTF-8 one after
another, `name_ends` (N,) where each ends, and `digests`, SHA-256 of the header and of each block of what lies between.
Its metadata name the model, the correction and the folder of the images. It is written whole or not at all, and checked
on the mapping that is then searched. Unlike the store of a folder it is not compared with the images again.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from varalign.aligner.aligner import Aligner
from varalign.aligner.folder_gallery import FolderGallery, correction_key
from varalign.aligner.image_gallery import ImageGallery
from varalign.aligner.index_file import ApproximateIndex, Sample, make_index, open_index
from varalign.data.checksums import BLOCK, BlockDigests, block_digests
from varalign.data.errors import DataError
from varalign.data.files import open_user_file, readable, write_parts_atomically
from varalign.evaluation.nearest import Found, best_of
from varalign.inputs.kept import KINDS, mapped_array

FORMAT = "varalign gallery 1"
_ROWS = 1 << 16  # vectors written at once
_SAMPLE = 256  # queries of a kind that recall is measured by


class Names(Sequence[str]):
    """N names as they lie in the file, decoded when they are asked for.

    Args:
        text: the names in UTF-8. ends: (N,) where each ends.
    """

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self._text, self._ends = text, ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        begin = self._ends[row - 1] if row else 0
        return self._text[begin : self._ends[row]].tobytes().decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class FileGallery(ImageGallery):
    """The images of a gallery file.

    Attributes:
        first: (N,) as `first_copies`.
        key: of the file's content. about: its metadata.
        index: for an approximate search; None: every vector is compared.
    """

    first: NDArray[np.int64]
    key: str
    about: Mapping[str, str]
    index: ApproximateIndex | None = None

    @cached_property
    def first_copies(self) -> NDArray[np.int64]:
        """As `ImageGallery.first_copies`."""
        return self.first

    def version(self, row: int) -> str:
        """As `ImageGallery.version`."""
        return self.key[:16]

    def nearest(
        self, query: NDArray[np.float32], top: int, *, corrected: bool, skip: NDArray[np.bool_] | None = None
    ) -> Found:
        """As `ImageGallery.nearest`. With an index, the candidates that it names are compared as all are without."""
        if self.index is None:
            return super().nearest(query, top, corrected=corrected, skip=skip)
        prior = self.prior if corrected else None
        wanted, named = top, -1
        while True:  # more where those that are skipped leave too few
            (rows,) = self.index.candidates(query[None], wanted, corrected=prior is not None)
            kept = rows if skip is None else rows[~skip[rows]]
            if len(kept) >= top or len(rows) == named:
                return best_of(query, self.vectors, kept, top, prior=prior)
            wanted, named = 4 * wanted, len(rows)


def write_gallery(
    path: Path,
    names: Sequence[str],
    vectors: Iterable[NDArray[np.float16]],
    width: int,
    *,
    first_copies: NDArray[np.int64],
    prior: NDArray[np.float32] | None,
    about: Mapping[str, str],
) -> None:
    """Write a gallery file, in place of what was there; no more of the vectors is held than is given at once.

    Args:
        names, first_copies, prior: (N,) as of `ImageGallery`.
        vectors: (…, width) finite unit vectors, N in all, in parts.
        about: what the metadata say; see `about_of`.

    Raises:
        OSError: it cannot be written.
    """
    coded = [name.encode("utf-8", "surrogateescape") for name in names]
    ends = np.cumsum([len(name) for name in coded], dtype=np.int64)
    small: list[tuple[str, NDArray[Any]]] = [("name_ends", ends), ("first_copies", first_copies.astype(np.int64))]
    small += [] if prior is None else [("image_prior", prior)]
    shapes = [(name, "I64" if array.dtype == np.int64 else "F32", array.shape) for name, array in small]
    shapes += [("image_embeddings", "F16", (len(coded), width)), ("names", "U8", (int(ends[-1]),))]
    size = sum(np.dtype(KINDS[kind]).itemsize * math.prod(shape) for _, kind, shape in shapes)
    header = _header([*shapes, ("digests", "U8", (1 + -(-size // BLOCK), 32))], {"format": FORMAT, **about})

    def parts() -> Iterator[bytes | memoryview]:
        for _, array in small:
            yield np.ascontiguousarray(array).data.cast("B")
        for part in vectors:
            yield np.ascontiguousarray(part, "<f2").data.cast("B")
        for start in range(0, len(coded), _ROWS):
            yield b"".join(coded[start : start + _ROWS])

    write_parts_atomically(path, _with_digests(header, parts()))


def _header(tensors: Sequence[tuple[str, str, tuple[int, ...]]], about: Mapping[str, str]) -> bytes:
    """The beginning of a safetensors file: its length, and what lies where."""
    entries: dict[str, Any] = {"__metadata__": dict(about)}
    end = 0
    for name, kind, shape in tensors:
        begin, end = end, end + np.dtype(KINDS[kind]).itemsize * math.prod(shape)
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _with_digests(header: bytes, parts: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The header, the parts, and the checksums of the header and of every block of the parts."""
    digests = BlockDigests()
    yield header
    yield from digests.parts(parts)
    yield b"".join([hashlib.sha256(header).digest(), *digests.found()])


def read_gallery(path: Path) -> FileGallery:
    """A gallery file, mapped and checked; whose model it is of is not.

    Raises:
        DataError: there is none, it is no gallery, or it is damaged.
    """
    wanted = "name a file that `varalign embed RUN --images DIR --out FILE` wrote"
    mend = f"write it anew: varalign embed RUN --images DIR --out {path} --overwrite"
    with readable(path), open_user_file(path) as file:
        if not os.fstat(file.fileno()).st_size:
            raise DataError(f"{path}: empty; {mend}")
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        begin = 8 + int.from_bytes(content[:8], "little")
        entries = json.loads(content[8:begin])
        about = entries.pop("__metadata__", {})
        if about.get("format") != FORMAT:
            raise DataError(f"{path}: no gallery that this version of varalign reads: {wanted}")
        last, end = (begin + offset for offset in entries["digests"]["data_offsets"])
        if end != len(content):
            raise DataError(f"{path}: {len(content):,} bytes of {end:,}: cut off, or something added; {mend}")
        arrays = {name: mapped_array(content, begin, name, entry) for name, entry in entries.items()}
        digests = arrays.pop("digests")
    except DataError:
        raise
    except Exception:  # a header of any bytes
        raise DataError(f"{path}: no gallery, or a damaged one: {wanted}") from None
    blocks = block_digests(content, begin, last)
    if digests.tobytes() != b"".join([hashlib.sha256(content[:begin]).digest(), *blocks]):
        raise DataError(f"{path}: damaged (its checksums differ); {mend}")
    names = Names(arrays["names"], arrays["name_ends"])
    key = hashlib.sha256(digests.tobytes()).hexdigest()
    found = (Path(about["folder"]), names, False, arrays["image_embeddings"], arrays.get("image_prior"), path)
    return FileGallery(*found, arrays["first_copies"], key, about)


def about_of(model: Aligner, folder: Path) -> dict[str, str]:
    """What a gallery's metadata say: of which weights and hub correction it is, and where its images lie."""
    correction = correction_key(model.hub.correction)
    return {"model": model.name, "weights": model.weights, "correction": correction, "folder": str(folder)}


def write_folder(model: Aligner, found: FolderGallery, path: Path) -> FileGallery:
    """Write the store of a folder as a gallery file, and open it."""
    vectors = found.vectors
    parts = (vectors[start : start + _ROWS] for start in range(0, len(vectors), _ROWS))
    path.parent.mkdir(parents=True, exist_ok=True)
    about = about_of(model, found.folder)
    write_gallery(
        path, found.names, parts, vectors.shape[1], first_copies=found.first_copies, prior=found.prior, about=about
    )
    return read_gallery(path)


def open_gallery_file(
    model: Aligner, path: Path, *, images: Path | None = None, follow_links: bool = False, index: bool = False
) -> FileGallery:
    """A gallery file that a model has written.

    Args:
        images: the folder of its images; None: where they lay when it was written.
        follow_links: whether images may be links that lead out of it.
        index: search by the index beside it.

    Raises:
        DataError: as `read_gallery` and `open_index`; another model wrote it, or the same one with another hub
            correction; or there is no such folder.
    """
    found, place = read_gallery(path), model.name if model.run is None else model.run.path
    for part, what in (("weights", "other weights"), ("correction", "another hub correction")):
        if found.about.get(part) != about_of(model, path)[part]:
            raise DataError(
                f"{path}: written with {what} than {place} has now; name the run and checkpoint that wrote it "
                f"({found.about.get('model')}), or write it anew: varalign embed {place} --images DIR --out {path} "
                "--overwrite"
            )
    if images is not None and not images.is_dir():
        raise DataError(f"--images {images}: there is no such folder; wanted that of the gallery's images")
    folder = found.folder if images is None else Path(os.path.realpath(images))
    opened = open_index(path, found.key, found.vectors.shape) if index else None
    return replace(found, folder=folder, follow_links=follow_links, index=opened)


def index_gallery(model: Aligner, found: FileGallery) -> dict[str, Any]:
    """Make the index of a gallery file, its recall measured on images of its own and, where they are there, captions.

    Returns:
        As `make_index`.
    """
    rows = np.linspace(0, len(found.names) - 1, min(_SAMPLE, len(found.names))).astype(np.int64)
    samples = [Sample("images", found.vectors[rows].astype(np.float32), False, rows)]
    with suppress(DataError):  # the run's data are gone
        captions = model.captions()
        few = [captions[row] for row in np.linspace(0, len(captions) - 1, min(_SAMPLE, len(captions))).astype(int)]
        samples.append(Sample("captions", model.embed_texts(few), True))
    return make_index(found.store, found.key, found.vectors, found.prior, samples)
