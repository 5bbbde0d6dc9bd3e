"""Any tokenizer of transformers that the library `tokenizers` runs: XLM-R's, MPNet's, RoBERTa's, E5's and others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varalign.data.tokens.tokenizer_kind import TokenizerKind, read_text

TEXTS_AT_ONCE = 4096


class HuggingFaceTokens:
    """The library's own tokenizer behind the interface of the compiled core.

    Args:
        vocabulary: the text of a `tokenizer.json`, without truncation and padding.
        pad_id: fills a row behind its tokens.
        truncation: the side that loses what is too long, "right" or "left".

    Raises:
        ValueError: the text describes no tokenizer.
    """

    def __init__(self, vocabulary: str, *, pad_id: int, truncation: str = "right") -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(vocabulary)
            self._tokenizer.no_padding()
            self.vocabulary_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
            empty = self._tokenizer.encode("").ids or [pad_id]
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(f"no tokenizer.json that the library tokenizers reads: {str(error)[:200]}") from error
        self.marks = (empty[0], empty[-1], pad_id)
        self._truncation, self._width = truncation, -1

    def encode(
        self, texts: Sequence[str], ids: NDArray[np.int64], lengths: NDArray[np.int64], threads: int
    ) -> list[int]:
        """Fill ids (N, L) and lengths (N,); returns the rows of texts that hold half a surrogate pair.

        `threads` is not read: the library takes those that `RAYON_NUM_THREADS` allows.
        """
        if self._width != ids.shape[1]:
            self._tokenizer.enable_truncation(ids.shape[1], direction=self._truncation)
            self._width = ids.shape[1]
        ids.fill(self.marks[2])
        broken = [row for row, text in enumerate(texts) if not _is_whole(row, text)]
        if broken:
            return broken
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            found = self._tokenizer.encode_batch(list(texts[start : start + TEXTS_AT_ONCE]))
            for row, encoding in enumerate(found, start):
                lengths[row] = len(encoding.ids)
                ids[row, : lengths[row]] = encoding.ids
        return []


def _is_whole(row: int, text: str) -> bool:
    if not isinstance(text, str):
        raise TypeError(f"texts[{row}] must be a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


HF = TokenizerKind("hf", HuggingFaceTokens, file="tokenizer.json", read=read_text, written=str.encode)


def read_hf_folder(folder: Path, *, lower: bool = False) -> tuple[str, dict[str, Any]]:
    """The text of a tokenizer.json and the options of `HF.core`, of the tokenizer that AutoTokenizer makes of a folder.

    Args:
        folder: of a transformers model; nothing in it is run.
        lower: letters are lowered first, as sentence-transformers' `do_lower_case` asks for.

    Raises:
        ValueError: transformers cannot read it, or runs it in Python.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each tokenizer of transformers raises errors of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{folder}: transformers cannot read its tokenizer: {reason}") from error
    kind = type(tokenizer).__name__
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not hasattr(backend, "to_str"):
        raise ValueError(f"{folder}: its {kind} cannot be saved as tokenizer.json")
    # Without them transformers makes a tokenizer of its special tokens alone.
    files = set(tokenizer.vocab_files_names.values()) - {"tokenizer.json"}
    missing = sorted(name for name in files if not (folder / name).is_file())
    if not (folder / "tokenizer.json").is_file() and (missing or not files):
        raise ValueError(f"{folder}: lacks tokenizer.json, or {', '.join(missing)}, which {kind} reads")
    if getattr(tokenizer, "split_special_tokens", False):
        raise ValueError(f"{folder}: split_special_tokens is not supported")
    described = json.loads(backend.to_str())
    described |= {"truncation": None, "padding": None}
    if lower:
        normalizers = [{"type": "Lowercase"}, *([described["normalizer"]] if described["normalizer"] else [])]
        described["normalizer"] = {"type": "Sequence", "normalizers": normalizers}
    pad_id = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    return json.dumps(described, ensure_ascii=False), {"pad_id": pad_id, "truncation": tokenizer.truncation_side}
