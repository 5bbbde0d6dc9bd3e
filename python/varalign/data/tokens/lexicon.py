"""Lexical vectors of captions: latent semantic analysis of their words, fitted on a run's own captions.

A caption's vector is its TF-IDF row, of unit length, on the leading right singular vectors of the captions' TF-IDF
matrix, of unit length again. Words are those of scikit-learn's TfidfVectorizer: lower case, two or more letters or
digits, in at least two captions; idf = log((1 + n) / (1 + df)) + 1. scikit-learn itself is not used: importing it takes
longer than all of this.

Source: Deerwester et al. 1990.

T captions, W words, L dimensions.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from varalign.data.errors import DataError
from varalign.data.files import read_bytes, write_atomically

DIMENSIONS = 256
FEWEST_CAPTIONS = 2  # that a word is in
_WORD = re.compile(r"(?u)\b\w\w+\b")
_WORDS, _ARRAYS = "lexicon.json", "lexicon.safetensors"


@dataclass(frozen=True)
class Lexicon:
    """The fitted words and directions.

    Attributes:
        words: W of them, ascending.
        idf: (W,) float64.
        directions: (W, L) float32, orthonormal columns.
    """

    words: list[str]
    idf: NDArray[np.float64]
    directions: NDArray[np.float32]

    @property
    def width(self) -> int:
        """L."""
        return int(self.directions.shape[1])

    @cached_property
    def _place(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self.words)}

    @classmethod
    def fitted(cls, captions: Sequence[str], dimensions: int = DIMENSIONS, *, seed: int = 0) -> Lexicon | None:
        """The lexicon of captions; None where no two dimensions can be made of their words.

        Args:
            captions: T of them.
            dimensions: L at most; fewer words or captions give fewer.
            seed: of the randomised decomposition.
        """
        found = [Counter(_WORD.findall(caption.lower())) for caption in captions]
        counts = Counter(word for words in found for word in words)
        words = sorted(word for word, count in counts.items() if count >= FEWEST_CAPTIONS)
        width = min(dimensions, len(words) - 1, len(captions) - 1)
        if width < 2:
            return None
        df = np.array([counts[word] for word in words], dtype=np.float64)
        idf = np.log((1 + len(captions)) / (1 + df)) + 1
        bare = cls(words, idf, np.zeros((len(words), 0), np.float32))
        return cls(words, idf, _directions(bare._entries(captions), (len(captions), len(words)), width, seed))

    def __call__(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """(T, L) lexical vectors of unit length; 0 for a caption without a known word."""
        row, column, value = self._entries(captions)
        vectors = np.zeros((len(captions), self.width), np.float32)
        starts = np.searchsorted(row, np.arange(len(captions) + 1))
        for start in range(0, len(captions), 4096):  # a word's direction times its value, summed by caption
            stop = min(start + 4096, len(captions))
            part = slice(starts[start], starts[stop])
            if starts[start] == starts[stop]:
                continue
            terms = value[part, None].astype(np.float32) * self.directions[column[part]]
            firsts = np.flatnonzero(np.diff(row[part], prepend=-1))
            vectors[row[part][firsts]] = np.add.reduceat(terms, firsts, axis=0)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.where(norms > 0, norms, np.float32(1))
        return vectors

    def _entries(self, captions: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Rows, columns and values of the TF-IDF matrix's entries, row by row; its rows have unit length."""
        place = self._place
        rows, columns, times = [], [], []
        for row, caption in enumerate(captions):
            for word, count in Counter(_WORD.findall(caption.lower())).items():
                if word in place:
                    rows.append(row)
                    columns.append(place[word])
                    times.append(count)
        row_of, column_of = np.array(rows, np.int64), np.array(columns, np.int64)
        values = np.array(times, np.float64) * self.idf[column_of]
        norms = np.sqrt(np.bincount(row_of, values**2, minlength=len(captions)))
        return row_of, column_of, values / norms[row_of]

    def save(self, folder: Path) -> None:
        """Write the words as JSON and the numbers as safetensors."""
        folder.mkdir(exist_ok=True)
        write_atomically(folder / _WORDS, json.dumps(self.words).encode())
        write_atomically(folder / _ARRAYS, save({"idf": self.idf, "directions": self.directions}))

    @classmethod
    def load(cls, folder: Path) -> Lexicon | None:
        """The lexicon of a folder; None where there is none.

        Raises:
            DataError: damaged files.
        """
        if not (folder / _WORDS).exists():
            return None
        try:
            words: Any = json.loads(read_bytes(folder / _WORDS))
            arrays = load(read_bytes(folder / _ARRAYS, 1 << 32))
            idf, directions = arrays["idf"], arrays["directions"]
            if directions.ndim != 2 or not len(words) == len(idf) == len(directions):
                raise ValueError(f"{len(words)} words, {len(idf)} and {len(directions)} rows")
        except DataError:
            raise
        except Exception as error:  # safetensors raises errors of several types on damaged files
            raise DataError(f"{folder / _ARRAYS}: damaged: {error}") from None
        return cls([str(word) for word in words], idf.astype(np.float64), directions.astype(np.float32))


def _directions(entries: Any, shape: tuple[int, int], width: int, seed: int) -> NDArray[np.float32]:
    """(W, L) leading right singular vectors of a sparse matrix, signs fixed by the largest entry of each."""
    import torch

    row, column, value = entries
    indices = torch.from_numpy(np.stack([row, column]))
    values = torch.from_numpy(value).float()
    # torch 2.11 warns where checks are neither on nor off; the argument of the same name does not count there.
    with torch.sparse.check_sparse_tensor_invariants(False), torch.random.fork_rng(devices=[]):
        matrix = torch.sparse_coo_tensor(indices, values, shape).coalesce()
        torch.manual_seed(seed)
        v = torch.svd_lowrank(matrix, q=min(width + 16, min(shape)), niter=4)[2][:, :width]
    signs = v.gather(0, v.abs().argmax(0, keepdim=True)).sign()
    return (v * signs).contiguous().numpy()
