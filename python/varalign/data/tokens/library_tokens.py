"""What all tokenizers that a library runs have in common: texts cleaned first, ids laid into rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

TEXTS_AT_ONCE = 4096
_SENTINEL = re.compile("▁?<extra_id_[0-9]+>").fullmatch


class LibraryTokens:
    """A library's tokenizer behind the interface of the compiled core; a subclass gives `_ids` and `_vocabulary`.

    Args:
        pad_id: fills a row behind its tokens.
        clean: what open_clip calls the cleaning of a text before it is cut: "whitespace", "lower" or "canonicalize".
        zeroed: an id that becomes 0 in the rows: the end mark under open_clip's `strip_sep_token`.
        frame: start, end and class token of open_clip's mode "clips": a row is the start, the tokens, the end, padding,
            and the class token in the last column.
        filled: rows are full, for models that read the padding too: it is part of the text, before its tokens.
    """

    def __init__(
        self,
        pad_id: int,
        clean: str = "",
        zeroed: int | None = None,
        frame: Sequence[int] = (),
        filled: bool = False,
    ) -> None:
        self._clean, self._zeroed, self._frame, self._filled = clean, zeroed, list(frame), filled
        empty = self._ids([""], None, marked=True)[0] or [pad_id]
        self.marks = (empty[0], empty[-1], pad_id)
        # T5's sentinels stand for gaps in its own training; models that borrow its tokenizer often lack their rows.
        self.vocabulary_size = 1 + max(place for token, place in self._vocabulary().items() if not _SENTINEL(token))

    def _vocabulary(self) -> Mapping[str, int]:
        """The id of each token."""
        raise NotImplementedError

    def _ids(self, texts: list[str], width: int | None, *, marked: bool) -> list[list[int]]:
        """The ids of texts, cut to `width` where there is one; `marked`: with the start and end marks."""
        raise NotImplementedError

    def encode(
        self, texts: Sequence[str], ids: NDArray[np.int64], lengths: NDArray[np.int64], threads: int
    ) -> list[int]:
        """Fill ids (N, L) and lengths (N,); returns the rows of texts that hold half a surrogate pair.

        `threads` is not read: the library takes those that it likes.
        """
        ids.fill(self.marks[2])
        broken = [row for row, text in enumerate(texts) if not _is_whole(row, text)]
        if broken:
            return broken
        width = ids.shape[1]
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            batch = self._cleaned(texts[start : start + TEXTS_AT_ONCE])
            found = self._framed(batch, width) if self._frame else self._ids(batch, width, marked=True)
            if self._filled:
                found = [[self.marks[2]] * (width - len(tokens)) + tokens for tokens in found]
            for row, tokens in enumerate(found, start):
                lengths[row] = len(tokens)
                ids[row, : lengths[row]] = tokens
        if self._zeroed is not None:
            ids[ids == self._zeroed] = 0
        return []

    def _cleaned(self, texts: Sequence[str]) -> list[str]:
        if not self._clean:
            return list(texts)
        from open_clip.tokenizer import get_clean_fn

        clean = get_clean_fn(self._clean)
        return [clean(text) for text in texts]

    def _framed(self, texts: list[str], width: int) -> list[list[int]]:
        start, end, last = self._frame
        rows = ([start, *tokens[: width - 3], end] for tokens in self._ids(texts, None, marked=False))
        return [[*row, *[self.marks[2]] * (width - 1 - len(row)), last] for row in rows]


def _is_whole(row: int, text: str) -> bool:
    if not isinstance(text, str):
        raise TypeError(f"texts[{row}] must be a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
