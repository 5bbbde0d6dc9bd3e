"""Images that are searched: their vectors, names and files, wherever they are kept. N images, D embedding."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from varalign.data.errors import DataError
from varalign.data.files import open_user_file, readable
from varalign.data.images import MAX_FILE_BYTES
from varalign.evaluation.nearest import Found, nearest


@dataclass(frozen=True)
class ImageGallery:
    """Embedded images.

    Attributes:
        folder: in which their files lie; its real path. names: (N,) relative to it.
        follow_links: whether images may be links that lead out of it.
        vectors: (N, D) float16 unit vectors.
        prior: (N,) float32 of the hub correction, for texts as queries; None without one.
        store: the file of the vectors.
    """

    folder: Path
    names: Sequence[str]
    follow_links: bool
    vectors: NDArray[np.float16]
    prior: NDArray[np.float32] | None
    store: Path

    @cached_property
    def first_copies(self) -> NDArray[np.int64]:
        """(N,) row of the first image with the same bytes."""
        raise NotImplementedError

    @cached_property
    def copies(self) -> NDArray[np.bool_]:
        """(N,) whether an image has the same bytes as one before it."""
        return self.first_copies != np.arange(len(self.names))

    def version(self, row: int) -> str:
        """A word that differs for another image of the same row."""
        raise NotImplementedError

    def nearest(
        self, query: NDArray[np.float32], top: int, *, corrected: bool, skip: NDArray[np.bool_] | None = None
    ) -> Found:
        """The images with the highest scores for a query (D,), of which those of `skip` (N,) are no candidates.

        Args:
            corrected: the score is the cosine similarity less the prior, where there is one.
        """
        return nearest(query, self.vectors, top, prior=self.prior if corrected else None, skip=skip)

    def file(self, row: int) -> Path:
        """The image file of a row."""
        return self.folder / self.names[row]

    def read(self, row: int) -> bytes:
        """The bytes of an image file as it is now.

        Raises:
            DataError: it is gone, has become a link that leads out of the folder, or cannot be read.
        """
        path = self.file(row)
        with readable(path), open_user_file(path) as file:
            # The open file is compared with what the checked path leads to: a link that is put there between is seen.
            real, found = os.path.realpath(path), os.fstat(file.fileno())
            inside = os.path.commonpath([real, self.folder]) == str(self.folder)
            if not self.follow_links and not (inside and os.path.samestat(os.stat(real), found)):
                raise DataError(f"{path}: leads out of {self.folder}")
            if found.st_size > MAX_FILE_BYTES:
                raise DataError(f"{path}: {found.st_size:,} bytes, more than the {MAX_FILE_BYTES:,} that are read")
            return file.read(MAX_FILE_BYTES)
