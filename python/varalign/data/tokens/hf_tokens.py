"""Any tokenizer of transformers; most are run by the library `tokenizers` (XLM-R's, MPNet's, RoBERTa's, E5's)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varalign.data.tokens.library_tokens import LibraryTokens
from varalign.data.tokens.python_tokens import PYTHON, packed, read_tokenizer
from varalign.data.tokens.tokenizer_kind import TokenizerKind, read_text


class HuggingFaceTokens(LibraryTokens):
    """The tokenizer of a `tokenizer.json`, run by the library `tokenizers`.

    Args:
        vocabulary: the text of a `tokenizer.json`, without truncation and padding.
        pad_id: fills a row behind its tokens.
        truncation: the side that loses what is too long, "right" or "left".
        settings: as `LibraryTokens` takes them.

    Raises:
        ValueError: the text describes no tokenizer.
    """

    def __init__(self, vocabulary: str, *, pad_id: int, truncation: str = "right", **settings: Any) -> None:
        from tokenizers import Tokenizer

        self._truncation = truncation
        try:
            self._tokenizer = Tokenizer.from_str(vocabulary)
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            self._width: int | None = None
            super().__init__(pad_id, **settings)
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(f"no tokenizer.json that the library tokenizers reads: {str(error)[:200]}") from error

    def _ids(self, texts: list[str], width: int | None, *, marked: bool) -> list[list[int]]:
        """As `LibraryTokens._ids`; the library takes the threads that `RAYON_NUM_THREADS` allows."""
        if self._width != width:
            if width is None:
                self._tokenizer.no_truncation()
            else:
                self._tokenizer.enable_truncation(width, direction=self._truncation)
            self._width = width
        return [found.ids for found in self._tokenizer.encode_batch(texts, add_special_tokens=marked)]

    def _vocabulary(self) -> Mapping[str, int]:
        vocabulary: Mapping[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary


CLEANINGS = ("", "whitespace", "lower", "canonicalize")
"""open_clip's names of what is done to a text before it is cut; "": nothing."""

HF = TokenizerKind("hf", HuggingFaceTokens, file="tokenizer.json", read=read_text, written=str.encode)


def read_hf_folder(
    folder: Path, *, lower: bool = False, settings: Mapping[str, Any] | None = None, whole: bool = False
) -> tuple[str, str, dict[str, Any]]:
    """Kind, vocabulary and options of the tokenizer that AutoTokenizer makes of a folder.

    Args:
        folder: of a transformers model; nothing in it is run.
        lower: letters are lowered first, as sentence-transformers' `do_lower_case` asks for.
        settings: open_clip's `tokenizer_kwargs` and `tokenizer_mode`.
        whole: the model reads the padding too, on the side where the tokenizer puts it.

    Raises:
        ValueError: transformers cannot read it, or it does what varalign has not.
    """
    tokenizer = read_tokenizer(folder)
    kind = type(tokenizer).__name__
    # Without them transformers makes a tokenizer of its special tokens alone.
    files = set(tokenizer.vocab_files_names.values()) - {"tokenizer.json"}
    missing = sorted(name for name in files if not (folder / name).is_file())
    if not (folder / "tokenizer.json").is_file() and (missing or not files):
        raise ValueError(f"{folder}: lacks tokenizer.json, or {', '.join(missing)}, which {kind} reads")
    if getattr(tokenizer, "split_special_tokens", False):
        raise ValueError(f"{folder}: split_special_tokens is not supported")
    options: dict[str, Any] = {"pad_id": 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)}
    if whole and tokenizer.padding_side == "left":
        options["filled"] = True
    options |= _open_clip_options(tokenizer, settings or {})
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not hasattr(backend, "to_str"):
        if lower:
            raise ValueError(f"{folder}: do_lower_case is not supported with its {kind}, which has no tokenizer.json")
        return PYTHON.name, packed(tokenizer), options
    described = json.loads(backend.to_str())
    described |= {"truncation": None, "padding": None}
    if lower:
        normalizers = [{"type": "Lowercase"}, *([described["normalizer"]] if described["normalizer"] else [])]
        described["normalizer"] = {"type": "Sequence", "normalizers": normalizers}
    return HF.name, json.dumps(described, ensure_ascii=False), {**options, "truncation": tokenizer.truncation_side}


def _open_clip_options(tokenizer: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `LibraryTokens` that open_clip's settings of a tokenizer mean; ValueError for unknown ones."""
    known = {"clean": "", "strip_sep_token": False, "tokenizer_mode": None}
    unknown = {key: value for key, value in settings.items() if key not in known}
    given = {**known, **settings}
    if unknown or given["tokenizer_mode"] not in (None, "", "clips") or given["clean"] not in CLEANINGS:
        raise ValueError(f"the tokenizer's settings {dict(settings)} are not known")
    options: dict[str, Any] = {"clean": given["clean"]} if given["clean"] else {}
    if given["strip_sep_token"]:
        options["zeroed"] = tokenizer.sep_token_id
    if given["tokenizer_mode"]:
        options["frame"] = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id]
    if any(value is None for value in (options.get("zeroed", 0), *options.get("frame", ()))):
        raise ValueError(f"the tokenizer's settings {dict(settings)} name tokens that it has not")
    return options
