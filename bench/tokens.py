"""Captions a second, list of str to padded ids: ours, the references and, where installed, the fastest public peers.

    python bench/tokens.py --captions captions.txt --bert FOLDER [--json]

`--captions` is a CSV file with a column `caption`, or a text file with a caption a line; `--bert` is the folder of a
BERT model (without it only CLIP is measured). Not called tokenize.py: a script's folder comes first on Python's path,
and the standard library has a `tokenize` that dataclasses imports.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import Contender, Row, compare, main
from varalign.data.tokenizers import Tokenizer, bert_tokenizer, clip_tokenizer


def read(path: Path) -> list[str]:
    """The captions of a file."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        if "caption" not in next(csv.reader(itertools.islice(file, 1)), []):
            return path.read_text(encoding="utf-8-sig").splitlines()
        return [row[-1] for row in csv.reader(file) if row]


def optional(name: str) -> Any:
    """A peer's module, or None where it is not installed or does not load."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def ours(tokenizer: Tokenizer, captions: list[str], threads: int, dtype: Any, name: str, first: bool) -> Contender:
    """Our tokenizer, writing into one buffer that is kept, as a training loop has it."""
    out = np.empty((len(captions), tokenizer.max_length), dtype=dtype)
    lengths = np.empty(len(captions), dtype=np.int64)
    return Contender(name, lambda: tokenizer(captions, threads=threads, out=out, lengths=lengths).ids, ours=first)


def own_variants(tokenizer: Tokenizer, captions: list[str]) -> list[Contender]:
    """One thread into int64 (the figure that ratios are of), into int32, into new arrays, and every core."""
    return [
        ours(tokenizer, captions, 1, np.int64, "varalign, 1 thread", True),
        ours(tokenizer, captions, 1, np.int32, "varalign, 1 thread, int32", False),
        Contender("varalign, 1 thread, new arrays", lambda: tokenizer(captions, threads=1).ids),
        ours(tokenizer, captions, 0, np.int64, f"varalign, {os.cpu_count()} threads", False),
    ]


def small_batches(tokenizer: Tokenizer, captions: list[str]) -> Contender:
    """Batches of 256 one after the other, as a training loop asks for them."""
    batches = [captions[at : at + 256] for at in range(0, len(captions), 256)]
    return Contender(
        "varalign, batches of 256", lambda: np.concatenate([tokenizer(batch).ids for batch in batches]), ours=False
    )


def same(truth: Any, result: Any) -> bool:
    """Whether two arrays of ids are equal."""
    return bool(np.array_equal(np.asarray(truth), np.asarray(result)))


def padded(rows: Any) -> Any:
    """Lists of ids of many lengths as CLIP's (N, 77), padded with 0."""
    out = np.zeros((len(rows), 77), dtype=np.int64)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row[:77]
    return out


def hugging_face_clip(captions: list[str]) -> list[Contender]:
    """CLIP's tokenizer in tokenizers and in fastokens, built from the merges that open_clip carries."""
    if (transformers := optional("transformers")) is None or (open_clip := optional("open_clip.tokenizer")) is None:
        return []
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    reference = open_clip.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in reference.encoder.items()}
    fast = transformers.CLIPTokenizerFast(vocab=vocabulary, merges=list(reference.bpe_ranks))
    backend = fast.backend_tokenizer

    def through_tokenizers() -> Any:
        backend.enable_truncation(77)  # transformers resets both at its own calls
        backend.enable_padding(length=77, pad_id=0)
        return np.array([encoding.ids for encoding in backend.encode_batch_fast(captions)])

    found = [
        Contender(
            "transformers CLIPTokenizerFast",
            lambda: padded(fast(captions, truncation=True, max_length=77)["input_ids"]),
            differs="does no repair of text; padded in Python",
        ),
        Contender(
            "tokenizers encode_batch_fast",
            through_tokenizers,
            differs="does no repair of text",
        ),
    ]
    if (fastokens := optional("fastokens")) is not None:
        from tokenizers.processors import TemplateProcessing

        start, end = "<|startoftext|>", "<|endoftext|>"  # fastokens lacks CLIP's own way to put marks around
        marks = [(mark, vocabulary[mark]) for mark in (start, end)]
        backend.post_processor = TemplateProcessing(single=f"{start} $A {end}", special_tokens=marks)
        peer = fastokens.Tokenizer.from_json_str(backend.to_str())
        found.append(
            Contender(
                "fastokens",
                lambda: padded([encoding.ids for encoding in peer.encode_batch(captions)]),
                differs="does no repair of text; padded in Python",
            )
        )
    return found


def clip_subject(captions: list[str], rounds: int) -> list[Row]:
    tokenizer = clip_tokenizer()
    contenders = [*own_variants(tokenizer, captions), small_batches(tokenizer, captions)]
    if (open_clip := optional("open_clip.tokenizer")) is not None:
        reference = open_clip.SimpleTokenizer()
        contenders.append(Contender("open_clip SimpleTokenizer", lambda: reference(captions).numpy(), reference=True))
    if (instant := optional("instant_clip_tokenizer")) is not None:
        peer = instant.Tokenizer()
        contenders.append(
            Contender(
                "instant-clip-tokenizer",
                lambda: peer.tokenize_batch(captions, context_length=77),
                differs="does no repair of text",
            )
        )
    contenders += hugging_face_clip(captions)
    return compare(
        f"CLIP byte pairs, {len(captions):,} captions to [N, 77]",
        contenders,
        work=len(captions),
        unit="captions/s",
        agree=same,
        rounds=rounds,
        packages=["numpy", "open_clip_torch", "instant-clip-tokenizer"],
    )


def bert_subject(captions: list[str], folder: Path, rounds: int) -> list[Row]:
    tokenizer = bert_tokenizer(folder, max_length=64)
    contenders = [*own_variants(tokenizer, captions), small_batches(tokenizer, captions)]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread for the peers, too
    if (transformers := optional("transformers")) is not None:
        reference = transformers.BertTokenizerFast.from_pretrained(str(folder))

        def through_transformers() -> Any:
            return reference(captions, max_length=64, truncation=True, padding="max_length", return_tensors="np")[
                "input_ids"
            ]

        contenders.append(Contender("transformers BertTokenizerFast", through_transformers, reference=True))
        backend = reference.backend_tokenizer

        def through_tokenizers() -> Any:
            backend.enable_truncation(64)
            backend.enable_padding(length=64)
            return np.array([encoding.ids for encoding in backend.encode_batch_fast(captions)])

        contenders.append(Contender("tokenizers encode_batch_fast", through_tokenizers))
    if (flash := optional("flash_tokenizer")) is not None:
        peer = flash.BertTokenizerFlash(str(folder / "vocab.txt"), do_lower_case=True, model_max_length=64)
        contenders.append(
            Contender(
                "flash-tokenizer",
                lambda: np.array(peer(captions, max_length=64, padding="max_length").input_ids),
                differs="another tokenizer",
            )
        )
    return compare(
        f"BERT WordPiece, {len(captions):,} captions to [N, 64]",
        contenders,
        work=len(captions),
        unit="captions/s",
        agree=same,
        rounds=rounds,
        packages=["numpy", "transformers", "tokenizers", "flash-tokenizer"],
    )


def loading(folder: Path | None, rounds: int) -> Iterator[Sequence[Row]]:
    makers = {"clip": clip_tokenizer} | ({"bert": lambda: bert_tokenizer(folder)} if folder is not None else {})
    for kind, make in makers.items():
        yield compare(
            f"loading the {kind} vocabulary",
            [Contender("varalign", make, ours=True)],
            work=1,
            unit="s",
            agree=lambda truth, result: bool(truth == result),
            rounds=max(rounds, 9),
        )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--captions", type=Path, required=True, help="CSV with a column `caption`, or a caption a line")
    parser.add_argument("--bert", type=Path, help="the folder of a BERT model")


def subjects(arguments: argparse.Namespace) -> Iterator[Sequence[Row]]:
    captions = read(arguments.captions)
    yield clip_subject(captions, arguments.rounds)
    if arguments.bert is not None:
        yield bert_subject(captions, arguments.bert, arguments.rounds)
    yield from loading(arguments.bert, arguments.rounds)


if __name__ == "__main__":
    main(__doc__, subjects, options)
