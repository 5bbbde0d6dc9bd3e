"""The compiled core; `varalign.data` is its public face."""

from collections.abc import Callable, Sequence
from typing import final

import numpy as np
from numpy import int32, int64
from numpy.typing import NDArray

__all__ = [
    "MAX_PIXELS",
    "CaptionTokenizer",
    "ImagePipeline",
    "ImagePreparation",
    "ImageRun",
    "KeptImages",
    "Moments",
    "__version__",
    "build_word_vocabulary",
    "decode_image",
    "decode_others_by",
    "load_images",
    "nearest_rows",
    "shrink_images",
]

__version__: str

# Images: rust/src/python/images.rs

MAX_PIXELS: int

def decode_image(data: bytes, max_pixels: int | None = None) -> NDArray[np.uint8]: ...
def decode_others_by(decoder: Callable[[bytes, str, int], NDArray[np.uint8]]) -> None: ...
def load_images(
    paths: Sequence[str],
    rows: Sequence[int],
    preparation: ImagePreparation,
    out: NDArray[np.float32] | NDArray[np.uint8],
    epoch: int = 0,
    threads: int = 0,
    sizes: NDArray[np.int64] | None = None,
) -> list[tuple[int, str]]: ...
def shrink_images(
    paths: Sequence[str], short: int, preparation: ImagePreparation, threads: int = 0
) -> list[tuple[NDArray[np.uint8] | None, tuple[int, int], str | None]]: ...

@final
class KeptImages:
    def __new__(cls, path: str, entries: Sequence[tuple[int, int, int, int, int]]) -> KeptImages: ...

@final
class ImagePreparation:
    def __new__(
        cls,
        size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        interpolation: str,
        resize: str,
        augment: tuple[tuple[float, float], tuple[float, float], float, tuple[float, float, float]] | None = None,
        seed: int = 0,
        fast: bool = False,
        channels_last: bool = False,
    ) -> ImagePreparation: ...

@final
class ImagePipeline:
    def __new__(
        cls,
        paths: Sequence[str],
        preparation: ImagePreparation,
        threads: int,
        prefetch: int,
        uint8: bool,
        kept: KeptImages | None = None,
    ) -> ImagePipeline: ...
    def start(self, order: Sequence[Sequence[int]], epoch: int) -> ImageRun: ...

@final
class ImageRun:
    def next(
        self,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32] | NDArray[np.uint8], list[tuple[int, str]], float] | None: ...
    def close(self) -> None: ...

# Statistics: rust/src/python/stats.rs

@final
class Moments:
    def __new__(cls, columns: int) -> Moments: ...
    @staticmethod
    def from_parts(
        count: int,
        mean: NDArray[np.float64],
        m2: NDArray[np.float64],
        min: NDArray[np.float64],
        max: NDArray[np.float64],
    ) -> Moments: ...
    def parts(
        self,
    ) -> tuple[int, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]: ...
    def update(
        self, values: NDArray[np.float32] | NDArray[np.float64] | NDArray[np.uint8], threads: int = 1
    ) -> None: ...
    def merge(self, other: Moments) -> None: ...

# Exact search: rust/src/python/nearest.rs

def nearest_rows(
    vectors: NDArray[np.uint16] | NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    prior: NDArray[np.float32] | None = None,
    skip: NDArray[np.bool_] | None = None,
    threads: int = 0,
) -> list[NDArray[np.int64]]: ...

# Caption tokenizers

@final
class CaptionTokenizer:
    @staticmethod
    def clip(vocabulary: str) -> CaptionTokenizer: ...
    @staticmethod
    def bert(
        vocabulary: str,
        marks: tuple[str, str, str, str],
        special: list[str],
        *,
        lower: bool,
        strip_accents: bool,
        split_chinese: bool,
    ) -> CaptionTokenizer: ...
    @staticmethod
    def words(vocabulary: str) -> CaptionTokenizer: ...
    @property
    def vocabulary_size(self) -> int: ...
    @property
    def marks(self) -> tuple[int, int, int]: ...
    def encode(
        self, texts: tuple[str, ...], ids: NDArray[int32] | NDArray[int64], lengths: NDArray[int64], threads: int
    ) -> list[int]: ...
    def encode_pieces(
        self, texts: tuple[str, ...], ids: NDArray[int32] | NDArray[int64], lengths: NDArray[int64], threads: int
    ) -> list[int]: ...

def build_word_vocabulary(texts: tuple[str, ...], min_count: int, max_words: int) -> list[str]: ...
