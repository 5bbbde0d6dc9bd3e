"""An approximate index beside a gallery file, by faiss: how it is made, checked and asked.

Inverted lists with 8 bits a component: for a query the lists with the nearest centroids are read, as many as bring
recall@10 to `WANTED` on a sample. Vectors are [v, −b] and queries [u, 1], or [u, 0] where no prior is subtracted, so
that one index serves both scores. The candidates that it names are compared again by the gallery's own vectors, so
scores are exact, and what may be missing are candidates. The file is faiss' own with a JSON text behind it: of which
gallery it is, what was measured, and SHA-256 of its blocks, since faiss reads a damaged file without noticing.
N vectors, Q queries, D embedding.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from varalign.data.checksums import block_digests
from varalign.data.errors import DataError, how_to_install
from varalign.data.files import open_user_file, readable, written_by_name
from varalign.data.waiting import waiting
from varalign.evaluation.nearest import best_of, nearest_of_each

FORMAT, _END = "varalign index 1", b"varindex"
WANTED = 0.95
K = 10
_ROWS = 1 << 16  # vectors added at once
_PER_LIST = 64  # vectors a list that centroids are found by
_ROUNDS = 10


class Sample(NamedTuple):
    """Queries (Q, D) that recall is measured by; those taken from the gallery with their rows, which are no answers."""

    name: str
    queries: NDArray[np.float32]
    corrected: bool
    rows: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class ApproximateIndex:
    """An index of faiss, and what was said of it when it was made."""

    index: Any
    about: Mapping[str, Any]

    def candidates(self, queries: NDArray[np.float32], top: int, *, corrected: bool) -> list[NDArray[np.int64]]:
        """For each query (Q, D) the rows that may be among its `top` best, ascending.

        Args:
            corrected: by the inner product less the prior.
        """
        wide = np.concatenate([queries, np.full((len(queries), 1), float(corrected), np.float32)], axis=1)
        rows = self.index.search(wide, min(4 * top + 64, self.index.ntotal))[1]
        return [np.unique(row[row >= 0]) for row in rows]


def index_path(gallery: Path) -> Path:
    """Where the index of a gallery file lies."""
    return gallery.with_suffix(".faiss")


def make_index(
    gallery: Path,
    key: str,
    vectors: NDArray[np.float16],
    prior: NDArray[np.float32] | None,
    samples: Sequence[Sample],
) -> dict[str, Any]:
    """Make the index of a gallery file and write it beside, in place of what was there.

    Args:
        key: of the gallery's content.
        vectors, prior: (N, D) and (N,) of the gallery.
        samples: at least one; the least recall of theirs should be `WANTED`.

    Returns:
        `index` (the file), `lists`, `lists_read`, and `recall@10` by the names of the samples.

    Raises:
        DataError: faiss is not installed.
        OSError: the file cannot be written.
    """
    faiss = _faiss()
    count, width = vectors.shape
    lists = 1 << round(math.log2(math.sqrt(count)))

    def part(rows: Any) -> NDArray[np.float32]:
        own = np.zeros(len(vectors[rows]), np.float32) if prior is None else prior[rows]
        return np.concatenate([vectors[rows], -own[:, None]], axis=1, dtype=np.float32)

    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width + 1), width + 1, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.niter, index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = _ROUNDS, 1, _PER_LIST
    drawn = np.random.default_rng(0).choice(count, min(count, _PER_LIST * lists), replace=False)
    with waiting("finding centroids"):
        index.train(part(np.sort(drawn)))
    with waiting("index", count) as bar:
        for start in range(0, count, _ROWS):
            rows = slice(start, start + _ROWS)
            index.add(part(rows))
            bar.advance(len(vectors[rows]))
    with waiting("recall of the index"):
        recall = _choose_lists(ApproximateIndex(index, {}), vectors, prior, samples)
    about = {"format": FORMAT, "gallery": key, "lists": lists, "lists_read": index.nprobe, f"recall@{K}": recall}
    path = index_path(gallery)
    with written_by_name(path) as temporary:
        faiss.write_index(index, str(temporary))
        with open(temporary, "r+b") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                digests = [digest.hex() for digest in block_digests(content, 0, len(content))]
            text = json.dumps({**about, "digests": digests}).encode()
            file.seek(0, os.SEEK_END)
            file.write(text + len(text).to_bytes(8, "little") + _END)
    return {"index": str(path), **{name: value for name, value in about.items() if name not in ("format", "gallery")}}


def _choose_lists(
    found: ApproximateIndex,
    vectors: NDArray[np.float16],
    prior: NDArray[np.float32] | None,
    samples: Sequence[Sample],
) -> dict[str, float]:
    """Set how many lists are read, the least power of two that reaches `WANTED`; returns the recalls by sample.

    No more than a sixteenth of many lists: the exact search is then as quick.
    """
    most = min(found.index.nlist, max(64, found.index.nlist // 16))
    exact = [_answers(sample, _exact(sample, vectors, prior)) for sample in samples]
    read = 1
    while True:
        found.index.nprobe = read
        recalls = {}
        for sample, right in zip(samples, exact, strict=True):
            own = prior if sample.corrected else None
            named = found.candidates(sample.queries, K + 1, corrected=own is not None)
            given = zip(sample.queries, named, strict=True)
            near = [best_of(query, vectors, rows, K + 1, prior=own)[1] for query, rows in given]
            hits = [
                len(set(a.tolist()) & set(b.tolist())) / len(a)
                for a, b in zip(right, _answers(sample, near), strict=True)
            ]
            recalls[sample.name] = round(float(np.mean(hits)), 4)
        if min(recalls.values()) >= WANTED or read == most:
            return recalls
        read = min(2 * read, most)


def _exact(sample: Sample, vectors: NDArray[np.float16], prior: NDArray[np.float32] | None) -> list[NDArray[np.int64]]:
    found = nearest_of_each(sample.queries, vectors, K + 1, prior=prior if sample.corrected else None)
    return [rows for _, rows in found]


def _answers(sample: Sample, found: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """The best K of the rows found, without the one that a query was taken from."""
    if sample.rows is None:
        return [rows[:K] for rows in found]
    return [rows[rows != own][:K] for rows, own in zip(found, sample.rows, strict=True)]


def open_index(gallery: Path, key: str, shape: tuple[int, int]) -> ApproximateIndex:
    """The index of a gallery file, mapped.

    Args:
        key: of the gallery's content. shape: (N, D) of its vectors.

    Raises:
        DataError: faiss is not installed; there is no index, it is damaged, or of another state of the gallery.
    """
    faiss, path = _faiss(), index_path(gallery)
    mend = f"make it anew: varalign embed RUN --gallery {gallery} --index faiss --overwrite"
    with readable(path), open_user_file(path) as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            size = int.from_bytes(content[-16:-8], "little")
            about = json.loads(content[-16 - size : -16])
            sound = content[-8:] == _END and about["format"] == FORMAT
        except ValueError:  # an empty file, or no JSON text
            sound = False
        if not sound:
            raise DataError(f"{path}: no index of varalign, or cut off; {mend}")
    if about["gallery"] != key:
        raise DataError(f"{path}: older than {gallery}, which has been written again since, or of another one; {mend}")
    if [digest.hex() for digest in block_digests(content, 0, len(content) - 16 - size)] != about["digests"]:
        raise DataError(f"{path}: damaged (its checksums differ); {mend}")
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    if (index.ntotal, index.d) != (shape[0], shape[1] + 1):
        raise DataError(f"{path}: of {index.ntotal:,} vectors of {index.d - 1} dimensions; {mend}")
    index.nprobe = about["lists_read"]
    return ApproximateIndex(index, about)


def _faiss() -> Any:
    """The library, told how many threads to use."""
    try:
        import faiss
    except ImportError:
        raise DataError(f"--index faiss needs faiss: {how_to_install('index')}") from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss
