"""The compiled core; `varalign.data` is its public face."""

from typing import final

from numpy import int32, int64
from numpy.typing import NDArray

__all__ = ["CaptionTokenizer", "__version__", "build_word_vocabulary"]

__version__: str

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
