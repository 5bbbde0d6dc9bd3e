"""Ids of BERT folders: the three files' settings have the precedence that transformers gives them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from varalign.data.tokens.bert_tokens import OtherTokenizer
from varalign.data.tokens.tokenizers import bert_tokenizer, hf_tokenizer

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "a",
    "dog",
    "cafe",
    "café",
    "Dog",
    "Café",
    "##s",
    "##e",
    "runs",
    "犬",
    "の",
    "##の",
    "犬の",
    "new",
    "word",
    "##w",
    ".",
]
TEXTS = [
    "A Dog runs",
    "Café CAFÉ cafe dogs",
    "犬の dog",
    "a newword new word [MASK] <x>",
    "[CLS] a [SEP]",
    "<s> dog </s>",
    "",
]

NORMALISERS = [
    {"lowercase": lowercase, "strip_accents": strip, "handle_chinese_chars": chinese}
    for lowercase, strip, chinese in itertools.product((True, False), (None, True, False), (True, False))
]
CONFIGS: list[dict[str, Any] | None] = [
    None,
    {},
    {"do_lower_case": True},
    {"do_lower_case": False},
    {"strip_accents": True},
    {"strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False},
    {"tokenize_chinese_chars": False},
]
OTHERS: list[dict[str, Any]] = [
    {"vocab_only": True, "config": {"do_lower_case": False}},
    {"vocab_only": True, "config": None},
    {
        "vocab": ["<s>", "<pad>", "</s>", "<unk>", *WORDS],
        "config": {
            "cls_token": "<s>",
            "sep_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "mask_token": "a",
        },
    },
    {"vocab": [*MARKS, *WORDS, "<x>"], "config": {"mask_token": "<x>"}},
    {"vocab": [*MARKS, *WORDS, "<x>"], "config": {}, "map": {"mask_token": "<x>"}},
    {"config": {}, "map": {"cls_token": "[SEP]", "sep_token": "[CLS]"}},
    {"config": {"cls_token": "[CLS]"}, "map": {"cls_token": "[SEP]"}},
    {"config": {"cls_token": {"content": "[CLS]", "__type": "AddedToken"}}},
    {"config": {}, "added": [(22, "<x>")]},
    {"config": {"added_tokens_decoder": {"22": "<x>"}}},
    {"config": {"added_tokens_decoder": {"22": "<x>"}}, "map": {"cls_token": "[SEP]"}},
    {"config": {"additional_special_tokens": ["new"]}},
    {"config": {"extra_special_tokens": ["new"]}},
    {"config": {"extra_special_tokens": {"image_token": "new"}}},
    {"config": {"additional_special_tokens": ["<x>", {"content": "new", "__type": "AddedToken"}]}},
    {"config": {"additional_special_tokens": ["<s>"], "extra_special_tokens": ["<x>"]}},
    {"config": {"additional_special_tokens": ["<s>", "<x>"]}, "added": [(22, "<x>")]},
    {"config": {}, "map": {"additional_special_tokens": ["<x>"]}},
    {"config": {"additional_special_tokens": ["<s>"]}, "map": {"additional_special_tokens": ["<x>"]}},
    {"vocab_only": True, "config": {"additional_special_tokens": ["<x>"]}},
    {"config": {"mask_token": "<x>"}},
    {"config": {"mask_token": "<x>", "additional_special_tokens": ["<s>"]}},
    {"config": {"bos_token": "<s>", "eos_token": "</s>"}},
    {"config": {"image_token": "<x>"}},
    {"config": {"cls_token": {"content": "[CLS]", "normalized": True, "__type": "AddedToken"}}},
    {"config": {"mask_token": {"content": "[MASK]", "lstrip": True, "__type": "AddedToken"}}},
    {"config": {"mask_token": None}},
    {"config": {"never_split": ["newword"]}},
    {"config": {"model_max_length": 4}},
    {"config": {"unk_token": "a"}},
    {"other_vocab_txt": True, "config": {}},
]


def token(number: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": True}


def write(folder: Path, normaliser: dict[str, Any] | None, config: dict[str, Any] | None, **other: Any) -> None:
    vocabulary = other.get("vocab", [*MARKS, *WORDS])
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    written = vocabulary[:5] + vocabulary[:4:-1] if other.get("other_vocab_txt") else vocabulary
    (folder / "vocab.txt").write_text("\n".join(written) + "\n")
    if normaliser is not None:
        marks = [token(number, mark) for number, mark in enumerate(vocabulary) if mark in MARKS]
        fast = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": marks + [token(*pair) for pair in other.get("added", [])],
            "normalizer": {"type": "BertNormalizer", "clean_text": True, **normaliser},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": None,
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": {word: number for number, word in enumerate(vocabulary)},
            },
        }
        (folder / "tokenizer.json").write_text(json.dumps(fast))
    if config is not None:
        decoder = config.get("added_tokens_decoder")
        if decoder:
            known = {number: mark for number, mark in enumerate(vocabulary) if mark in MARKS} | decoder
            entries = {str(key): {k: v for k, v in token(0, text).items() if k != "id"} for key, text in known.items()}
            config = {**config, "added_tokens_decoder": entries}
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **config}))
    if "map" in other:
        (folder / "special_tokens_map.json").write_text(json.dumps(other["map"]))


def difference(folder: Path) -> str:
    """What transformers and varalign make of the texts, where they differ."""
    from transformers import BertTokenizerFast

    wanted = BertTokenizerFast.from_pretrained(folder)(TEXTS, truncation=True, max_length=16)["input_ids"]
    try:
        tokenizer = bert_tokenizer(folder, 16)
    except OtherTokenizer:  # `bert:` hands the folder over to `hf:`
        tokenizer = hf_tokenizer(folder, 16)
    batch = tokenizer(TEXTS)
    found = [row[:length].tolist() for row, length in zip(batch.ids, batch.lengths, strict=True)]
    return "" if found == wanted else f"{folder.name}: {found} instead of {wanted}"


def test_the_settings_of_each_pair_of_files(tmp_path: Path) -> None:
    """Each normaliser of a tokenizer.json under each tokenizer_config.json."""
    wrong = []
    for number, (normaliser, config) in enumerate(itertools.product([None, *NORMALISERS], CONFIGS)):
        write(tmp_path / str(number), normaliser, config)
        wrong.append((difference(tmp_path / str(number)), normaliser, config))
    assert number == 116
    assert [found for found in wrong if found[0]] == []


@pytest.mark.parametrize("other", OTHERS, ids=range(len(OTHERS)))
def test_the_marks_and_added_tokens_of_each_file(tmp_path: Path, other: dict[str, Any]) -> None:
    normaliser = None if other.get("vocab_only") else NORMALISERS[0]
    write(tmp_path / "m", normaliser, **{"config": None, **other})
    assert difference(tmp_path / "m") == ""
