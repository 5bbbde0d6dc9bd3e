"""Other people's tokenizers, each as one function from texts to padded ids; what is not installed says so.

Each is set up as its own documentation has it, and its answer is brought to our form: an (N, L) array of ids with both
marks, cut at L and padded. Peers run on one thread; `one_thread` must be called before they are imported.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CLIP_LENGTH, BERT_LENGTH = 77, 64
START, END = "<|startoftext|>", "<|endoftext|>"
NO_REPAIR = "repairs no text: no ftfy, no HTML entities"
CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class Peer:
    """A tokenizer of other people; `differs` says where its ids are known to be others than the reference's."""

    name: str
    encode: Callable[[Sequence[str]], Any]
    differs: str = ""
    reference: bool = False


def one_thread() -> None:
    """Keep the peers to one thread: they read these at import or at their first call."""
    for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def padded(rows: Sequence[Sequence[int]], length: int, end: int) -> Any:
    """Lists of ids as one array, padded with 0; a row that is cut ends with the end mark."""
    out = np.zeros((len(rows), length), dtype=np.int64)
    for index, row in enumerate(rows):
        if len(row) > length:
            row = [*row[: length - 1], end]
        out[index, : len(row)] = row
    return out


def scattered(ids: bytes, offsets: bytes, length: int) -> Any:
    """One flat buffer of ids with the offsets of its rows as one array, padded with 0."""
    flat, ends = np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64).astype(np.int64)
    lengths = np.diff(ends)
    out = np.zeros((len(lengths), length), dtype=np.int64)
    out[np.arange(length) < lengths[:, None]] = flat
    return out


def clip_peers() -> Iterator[Peer | tuple[str, str]]:
    """Every CLIP peer, or its name and why it is left out. open_clip's is the reference and gives the vocabulary."""
    try:
        reference = importlib.import_module("open_clip.tokenizer").SimpleTokenizer()
    except ImportError as error:
        yield "open_clip SimpleTokenizer and all that need its vocabulary", f"not imported: {error}"
        return
    yield Peer("open_clip SimpleTokenizer", lambda texts: reference(list(texts)).numpy(), reference=True)
    names = {"<start_of_text>": START, "<end_of_text>": END}
    vocabulary = {names.get(token, token): number for token, number in reference.encoder.items()}
    makers: dict[str, Callable[[], Peer]] = {
        "transformers CLIPTokenizerFast": lambda: transformers_clip(vocabulary, reference),
        "tokenizers encode_batch_fast": lambda: tokenizers_clip(vocabulary, reference),
        "fastokens": lambda: fastokens_clip(vocabulary, reference),
        "tiktoken with CLIP's ranks": lambda: tiktoken_clip(reference),
        "instant-clip-tokenizer": instant_clip,
    }
    yield from made(makers)


def made(makers: dict[str, Callable[[], Peer]]) -> Iterator[Peer | tuple[str, str]]:
    for name, make in makers.items():
        try:
            yield make()
        except ImportError as error:
            yield name, f"left out, not imported: {error}"
        except (OSError, TypeError, ValueError, AttributeError) as error:
            yield name, f"left out, does not run: {str(error)[:160]}"


def fast_clip(vocabulary: dict[str, int], reference: Any) -> Any:
    transformers = importlib.import_module("transformers")
    return transformers.CLIPTokenizerFast(vocab=vocabulary, merges=list(reference.bpe_ranks))


def transformers_clip(vocabulary: dict[str, int], reference: Any) -> Peer:
    fast, end = fast_clip(vocabulary, reference), vocabulary[END]

    def encode(texts: Sequence[str]) -> Any:
        rows = fast(list(texts), truncation=True, max_length=CLIP_LENGTH)["input_ids"]
        return padded(rows, CLIP_LENGTH, end)  # its own padding is the end mark

    return Peer("transformers CLIPTokenizerFast", encode, NO_REPAIR)


def tokenizers_clip(vocabulary: dict[str, int], reference: Any) -> Peer:
    backend = fast_clip(vocabulary, reference).backend_tokenizer
    backend.enable_truncation(CLIP_LENGTH)
    backend.enable_padding(length=CLIP_LENGTH, pad_id=0)

    def encode(texts: Sequence[str]) -> Any:
        return np.array([encoding.ids for encoding in backend.encode_batch_fast(list(texts))])

    return Peer("tokenizers encode_batch_fast", encode, NO_REPAIR)


def fastokens_clip(vocabulary: dict[str, int], reference: Any) -> Peer:
    """Its marks must be asked for (add_special_tokens is false there), and put around by a template it knows."""
    fastokens = importlib.import_module("fastokens")
    processing = importlib.import_module("tokenizers.processors").TemplateProcessing
    backend = fast_clip(vocabulary, reference).backend_tokenizer
    marks = [(mark, vocabulary[mark]) for mark in (START, END)]
    backend.post_processor = processing(single=f"{START} $A {END}", special_tokens=marks)
    peer = fastokens.Tokenizer.from_json_str(backend.to_str())
    peer.enable_truncation(CLIP_LENGTH)

    def encode(texts: Sequence[str]) -> Any:
        return scattered(*peer.encode_batch_flat(list(texts), add_special_tokens=True), CLIP_LENGTH)

    return Peer("fastokens", encode, NO_REPAIR)


def tiktoken_clip(reference: Any) -> Peer:
    """CLIP's merges as tiktoken's ranks: a space stands for the mark of a word's end, which no word holds itself.

    Its split pattern cannot add that mark, so that the words are cut and joined by the `regex` package first.
    tiktoken merges any two neighbours whose bytes together are an entry, and takes a whole word that is one at once;
    CLIP merges only the pair that its file lists. An entry that other parts make too would differ; none of the 47,065
    printable ASCII entries does, nor any of 50,000 words of random letters.
    """
    tiktoken, regex = importlib.import_module("tiktoken"), importlib.import_module("regex")
    ranks: dict[bytes, int] = {}
    start, end = reference.encoder["<start_of_text>"], reference.encoder["<end_of_text>"]
    for token, number in reference.encoder.items():
        if number < start:
            body = token.removesuffix("</w>")
            mark = b" " if body != token else b""
            ranks[bytes(reference.byte_decoder[character] for character in body) + mark] = number
    encode_words = tiktoken.Encoding(
        "clip", pat_str=r"[^ ]+ ", mergeable_ranks=ranks, special_tokens={}
    ).encode_ordinary
    cut = regex.compile(CLIP_PATTERN).findall

    def row(text: str) -> list[int]:
        return [start, *encode_words(" ".join([*cut(text.lower()), ""])), end]

    return Peer(
        "tiktoken with CLIP's ranks",
        lambda texts: padded([row(text) for text in texts], CLIP_LENGTH, end),
        f"{NO_REPAIR}, no composing (NFC)",
    )


def instant_clip() -> Peer:
    peer = importlib.import_module("instant_clip_tokenizer").Tokenizer()
    return Peer(
        "instant-clip-tokenizer",
        lambda texts: np.asarray(peer.tokenize_batch(list(texts), context_length=CLIP_LENGTH)),
        NO_REPAIR,
    )


def bert_peers(folder: Path) -> Iterator[Peer | tuple[str, str]]:
    """Every BERT peer, or its name and why it is left out; transformers' fast one is the reference."""

    def backend() -> Any:
        return importlib.import_module("transformers").BertTokenizerFast.from_pretrained(str(folder))

    def transformers_fast() -> Peer:
        fast = backend()
        return Peer("transformers BertTokenizerFast", lambda texts: through_transformers(fast, texts), reference=True)

    def transformers_slow() -> Peer:
        legacy = importlib.import_module("transformers").BertTokenizerLegacy(str(folder / "vocab.txt"))
        differs = "drops unassigned and private characters"
        return Peer(
            "transformers BertTokenizerLegacy (slow)", lambda texts: through_transformers(legacy, texts), differs
        )

    def tokenizers_fast() -> Peer:
        inner = backend().backend_tokenizer
        inner.enable_truncation(BERT_LENGTH)
        inner.enable_padding(length=BERT_LENGTH)

        def encode(texts: Sequence[str]) -> Any:
            return np.array([encoding.ids for encoding in inner.encode_batch_fast(list(texts))])

        return Peer("tokenizers encode_batch_fast", encode)

    def flash() -> Peer:
        module = importlib.import_module("flash_tokenizer")
        peer = module.BertTokenizerFlash(str(folder / "vocab.txt"), do_lower_case=True, model_max_length=BERT_LENGTH)

        def encode(texts: Sequence[str]) -> Any:
            return np.array(peer(list(texts), max_length=BERT_LENGTH, padding="max_length").input_ids)

        return Peer("flash-tokenizer", encode, "repairs and cuts other alphabets in its own way")

    def fastokens() -> Peer:
        module = importlib.import_module("fastokens")
        peer = module.Tokenizer.from_json_str(backend().backend_tokenizer.to_str())
        peer.enable_truncation(BERT_LENGTH)
        return Peer(
            "fastokens",
            lambda texts: scattered(*peer.encode_batch_flat(list(texts), add_special_tokens=True), BERT_LENGTH),
        )

    def tensorflow_text() -> Peer:
        """Its fast WordPiece; marks, cut and padding with NumPy, which is quicker than with its own ragged tensors."""
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        tensorflow, text = importlib.import_module("tensorflow"), importlib.import_module("tensorflow_text")
        tensorflow.config.threading.set_intra_op_parallelism_threads(1)
        tensorflow.config.threading.set_inter_op_parallelism_threads(1)
        vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        peer = text.FastBertTokenizer(vocabulary, token_out_type=tensorflow.int32, lower_case_nfd_strip_accents=True)
        start, end = vocabulary.index("[CLS]"), vocabulary.index("[SEP]")

        def encode(texts: Sequence[str]) -> Any:
            ragged = peer.tokenize(tensorflow.constant(list(texts)))
            flat, begins = ragged.flat_values.numpy(), ragged.row_splits.numpy()
            lengths = np.minimum(np.diff(begins), BERT_LENGTH - 2)
            places = np.arange(BERT_LENGTH - 2)
            inside = places < lengths[:, None]
            out = np.zeros((len(lengths), BERT_LENGTH), dtype=np.int64)
            out[:, 0] = start
            out[:, 1:-1][inside] = flat[(begins[:-1, None] + places)[inside]]
            out[np.arange(len(lengths)), lengths + 1] = end
            return out

        return Peer("TensorFlow Text FastBertTokenizer", encode, "cleans and cuts other alphabets in its own way")

    yield from made(
        {
            "transformers BertTokenizerFast": transformers_fast,
            "transformers BertTokenizerLegacy (slow)": transformers_slow,
            "tokenizers encode_batch_fast": tokenizers_fast,
            "flash-tokenizer": flash,
            "fastokens": fastokens,
            "TensorFlow Text FastBertTokenizer": tensorflow_text,
        }
    )


def through_transformers(tokenizer: Any, texts: Sequence[str]) -> Any:
    batch = tokenizer(list(texts), max_length=BERT_LENGTH, truncation=True, padding="max_length", return_tensors="np")
    return batch["input_ids"]
