"""Tokenizers that transformers runs in Python: SigLIP's sentencepiece and others that no `tokenizer.json` describes."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varalign.data.tokens.library_tokens import LibraryTokens
from varalign.data.tokens.tokenizer_kind import TokenizerKind, read_text


class PythonTokens(LibraryTokens):
    """transformers' own tokenizer, from the files that it saved.

    Args:
        vocabulary: a JSON object: the name of each file, and its bytes in base64.
        settings: as `LibraryTokens` takes them.

    Raises:
        ValueError: transformers makes no tokenizer of them, or a library that it needs is not installed.
    """

    def __init__(self, vocabulary: str, **settings: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                for name, data in json.loads(vocabulary).items():
                    (Path(folder) / Path(name).name).write_bytes(base64.b64decode(data, validate=True))
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"no files of a tokenizer that varalign saved: {str(error)[:200]}") from error
            self._tokenizer = read_tokenizer(Path(folder))
        super().__init__(**settings)

    def _ids(self, texts: list[str], width: int | None, *, marked: bool) -> list[list[int]]:
        options: dict[str, Any] = {"add_special_tokens": marked, "truncation": width is not None, "max_length": width}
        found: list[list[int]] = self._tokenizer(texts, verbose=False, **options)["input_ids"]
        return found

    def _vocabulary(self) -> Mapping[str, int]:
        vocabulary: Mapping[str, int] = self._tokenizer.get_vocab()
        return vocabulary


PYTHON = TokenizerKind("python", PythonTokens, file="tokenizer_files.json", read=read_text, written=str.encode)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer that AutoTokenizer makes of a folder, in which nothing is run; ValueError where it makes none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each tokenizer of transformers raises errors of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, ImportError):
            reason = f"{reason[:70]}…; pip install '.[sentencepiece]' brings what most of them need"
        raise ValueError(f"{folder}: transformers cannot read its tokenizer: {reason}") from error


def packed(tokenizer: Any) -> str:
    """The vocabulary of a tokenizer, as `PythonTokens` takes it."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).iterdir() if path.is_file())
        return json.dumps({path.name: base64.b64encode(path.read_bytes()).decode() for path in files})
