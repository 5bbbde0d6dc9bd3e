"""BERT's WordPiece: vocabulary and settings from the folder of a transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from varalign._core import CaptionTokenizer
from varalign.data.json_file import read_object
from varalign.data.readers.caption_file import split_lines
from varalign.data.tokens.tokenizer_kind import TokenizerKind, read_text

BERT_SPECIAL = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}

BERT = TokenizerKind(
    "bert",
    CaptionTokenizer.bert,
    file="vocab.txt",
    read=lambda path: read_text(path).removesuffix("\n"),
    written=lambda vocabulary: f"{vocabulary}\n".encode(),
)


class OtherTokenizer(ValueError):
    """A folder whose tokenizer is whole, but not of BERT's kind, or of a setting that BERT's core lacks."""


def read_bert_folder(folder: Path) -> tuple[str, dict[str, Any]]:
    """The vocabulary, one entry a line, and the options of `BERT.core`; raises what `bert_tokenizer` raises."""
    vocabulary_file, fast_file = folder / "vocab.txt", folder / "tokenizer.json"
    if not vocabulary_file.is_file() and not fast_file.is_file():
        raise FileNotFoundError(
            f"{folder}: neither vocab.txt nor tokenizer.json; give the folder of a BERT model as transformers saves it"
        )
    fast = read_object(fast_file) if fast_file.is_file() else {}
    if fast:
        _refuse_other_tokenizers(fast, fast_file)
        entries = _entries_by_id(fast["model"]["vocab"], fast_file)
    else:
        entries = split_lines(read_text(vocabulary_file).removesuffix("\n"))
    config_file, special_file = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    config = read_object(config_file) if config_file.is_file() else {}
    if "added_tokens_decoder" not in config and special_file.is_file():
        config |= read_object(special_file)
    added = _added_tokens(fast, config, folder)
    while (token := added.get(len(entries))) is not None:  # tokens added behind the vocabulary
        entries.append(token)
    special = {name: _content(config.get(f"{name}_token", token)) for name, token in BERT_SPECIAL.items()}
    _refuse_further_tokens(config, {*special.values(), *added.values()}, folder)
    if special["mask"] not in entries:
        if config.get("mask_token") is not None:
            raise OtherTokenizer(f"{folder}: its mask token {special['mask']!r} stands behind the vocabulary")
        special["mask"] = special["unk"]
    lower, strip_accents = config.get("do_lower_case", True), config.get("strip_accents")
    if not isinstance(lower, bool):
        raise ValueError(f"{config_file}: do_lower_case must be true or false, got {lower!r}")
    return "\n".join(entries), {
        "marks": (special["cls"], special["sep"], special["pad"], special["unk"]),
        "special": sorted({*special.values(), *added.values()}),
        "lower": lower,
        "strip_accents": lower if strip_accents is None else bool(strip_accents),
        "split_chinese": bool(config.get("tokenize_chinese_chars", True)),
    }


def _refuse_further_tokens(config: dict[str, Any], known: set[str], folder: Path) -> None:
    """Raise where the settings name special tokens besides BERT's five and the added ones, or match one in another way.

    transformers matches each of them in a text, and puts one that the vocabulary lacks behind it.
    """
    extra = [config.get(f"{word}_special_tokens") or [] for word in ("additional", "extra")]
    tokens = [token for many in extra for token in (many.values() if isinstance(many, dict) else many)]
    tokens += [value for key, value in config.items() if key.endswith("_token") and value is not None]
    for token in tokens:
        odd = isinstance(token, dict) and (token.get("single_word") or token.get("normalized"))
        if odd or _content(token) not in known:
            raise OtherTokenizer(f"{folder}: its special token {_content(token)!r} is none of BERT's own")


def _refuse_other_tokenizers(fast: dict[str, Any], path: Path) -> None:
    """Raise where a tokenizer.json does not describe BERT's way."""
    model = fast.get("model") or {}
    wanted = {
        "model": (model.get("type", "WordPiece"), "WordPiece"),
        "normalizer": ((fast.get("normalizer") or {}).get("type"), "BertNormalizer"),
        "pre_tokenizer": ((fast.get("pre_tokenizer") or {}).get("type"), "BertPreTokenizer"),
        "continuing_subword_prefix": (model.get("continuing_subword_prefix", "##"), "##"),
        "max_input_chars_per_word": (model.get("max_input_chars_per_word", 100), 100),
    }
    for name, (found, expected) in wanted.items():
        if found != expected:
            raise OtherTokenizer(f"{path}: {name} must be {expected!r} for a BERT tokenizer, got {found!r}")
    if not isinstance(model.get("vocab"), dict) or not model["vocab"]:
        raise ValueError(f"{path}: model.vocab must map entries to ids")


def _entries_by_id(vocabulary: dict[str, int], path: Path) -> list[str]:
    """The entries in the order of their ids, "" (which nothing matches) for an id that has none."""
    size = max(vocabulary.values()) + 1
    if min(vocabulary.values()) < 0 or size > 2 * len(vocabulary) + 1000:
        raise ValueError(f"{path}: {len(vocabulary)} entries with ids up to {size - 1}; ids must be 0, 1, 2, …")
    entries = [""] * size
    for entry, number in vocabulary.items():
        entries[number] = entry
    return entries


def _added_tokens(fast: dict[str, Any], config: dict[str, Any], folder: Path) -> dict[int, str]:
    """The tokens that are matched in a text as it stands, by id; raises for one that is matched in another way."""
    added = {int(token["id"]): token for token in fast.get("added_tokens", [])}
    added |= {int(number): token for number, token in config.get("added_tokens_decoder", {}).items()}
    for token in added.values():
        if any(token.get(flag) for flag in ("single_word", "lstrip", "rstrip", "normalized")):
            raise OtherTokenizer(
                f"{folder}: the added token {token.get('content')!r} is matched in a way that is not supported "
                "(single_word, lstrip, rstrip or normalized is set)"
            )
    return {number: str(token["content"]) for number, token in added.items()}


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)
