"""Caption tokenizers: CLIP's byte pairs, BERT's WordPiece, and whole words from the training captions.

    >>> tokenizer = clip_tokenizer()
    >>> batch = tokenizer(["two dogs in the snow", ""])
    >>> batch.ids.shape, batch.lengths.tolist()
    ((2, 77), [7, 2])

Ids are those of open_clip's `SimpleTokenizer` and transformers' `BertTokenizerFast` on every text. ASCII captions, and
every text for BERT and for whole words, go through the compiled core alone. CLIP's reference repairs text with ftfy and
`html.unescape` and cuts it with the `regex` package; a caption that this could change (an accent, an emoji, `&amp;`, a
control character) is repaired by those same libraries here, and only then encoded.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import importlib.util
import json
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varalign._core import CaptionTokenizer, build_word_vocabulary
from varalign.data.files import write_atomically

CLIP_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
CLIP_LINES = 1 + 49152 - 256 - 2  # a header, then as many merges as CLIP uses; the file goes on after them
DESCRIPTION = "varalign_tokenizer.json"
BERT_SPECIAL = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}

_CLIP_WORDS = (
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d"  # the marks and English contractions, then
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # letters, one digit, anything else but white space
)


@dataclass(frozen=True)
class TokenBatch:
    """The tokens of N texts: `ids` (N, L) int64 or int32, padded with `pad_id`; `lengths` (N,) int64 with the marks."""

    ids: NDArray[Any]
    lengths: NDArray[np.int64]

    def mask(self) -> NDArray[np.bool_]:
        """(N, L), true where a token stands and false where padding does."""
        columns: NDArray[np.int64] = np.arange(self.ids.shape[1])
        return columns[None, :] < self.lengths[:, None]


class Tokenizer:
    """Turns captions into rows of token ids: a start mark, the tokens, an end mark, padding up to `max_length`.

    `kind` is "clip", "bert" or "words". Two tokenizers of one kind, vocabulary, length and options are equal and hash
    alike; `fingerprint` (hex sha256 over these) says so across machines. Threads may share one. Made by
    `clip_tokenizer`, `bert_tokenizer`, `word_tokenizer` and `load_tokenizer`.
    """

    def __init__(self, kind: str, vocabulary: str, max_length: int, options: dict[str, Any] | None = None) -> None:
        """`vocabulary` is a file's text, one entry a line; `options` are the keyword arguments of the core's maker."""
        if not isinstance(max_length, int) or isinstance(max_length, bool) or max_length < 2:
            raise ValueError(
                f"max_length must be an int of at least 2 (the start and the end mark), got {max_length!r}"
            )
        makers: dict[str, Callable[..., CaptionTokenizer]] = {
            "clip": CaptionTokenizer.clip,
            "bert": CaptionTokenizer.bert,
            "words": CaptionTokenizer.words,
        }
        if kind not in makers:
            raise ValueError(f"kind must be one of {', '.join(makers)}, got {kind!r}")
        self.kind = kind
        self.max_length = max_length
        self._vocabulary = vocabulary
        self._options = dict(options or {})
        self._core = makers[kind](vocabulary, **self._options)
        self.vocabulary_size: int = self._core.vocabulary_size
        self.start_id, self.end_id, self.pad_id = self._core.marks
        described = json.dumps([kind, max_length, self._options], sort_keys=True)
        self.fingerprint = hashlib.sha256(f"{described}\n{vocabulary}".encode()).hexdigest()

    def __call__(
        self,
        texts: Sequence[str],
        *,
        threads: int = 0,
        dtype: type[np.int64] | type[np.int32] = np.int64,
        out: NDArray[Any] | None = None,
        lengths: NDArray[np.int64] | None = None,
    ) -> TokenBatch:
        """Encode N texts (empty ones are legal); what is too long is cut before the end mark.

        `threads`: 0 takes as many as the batch is worth, 1 only the caller's. `out` (N, max_length), int64 or int32,
        C-contiguous, and `lengths` (N,) int64 are written to, and returned, where given; else new arrays, of `dtype`.
        Raises TypeError for a text that is not a str or a buffer that is no NumPy array; ValueError where a buffer does
        not fit and, for BERT and words, for half a surrogate pair (CLIP's reference reads it as U+FFFD).
        """
        if isinstance(texts, (str, bytes)):
            raise TypeError(f"texts must be a sequence of str, got one {type(texts).__name__}; put it into a list")
        if threads < 0:
            raise ValueError(f"threads must be 0 (as many as the batch is worth) or more, got {threads}")
        batch = tuple(texts)
        for name, array in (("out", out), ("lengths", lengths)):
            if array is not None and not isinstance(array, np.ndarray):
                raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}")
        if out is None:
            if dtype not in (np.int64, np.int32):
                raise ValueError(f"dtype must be int64 or int32, got {np.dtype(dtype).name}")
            out = np.empty((len(batch), self.max_length), dtype=dtype)
        elif out.shape != (len(batch), self.max_length) or out.dtype not in (np.int64, np.int32):
            raise ValueError(
                f"out must be int64 or int32 of shape {(len(batch), self.max_length)}, got {out.dtype} of {out.shape}"
            )
        if lengths is None:
            lengths = np.empty(len(batch), dtype=np.int64)
        elif lengths.shape != (len(batch),) or lengths.dtype != np.int64:
            raise ValueError(f"lengths must be int64 of shape {(len(batch),)}, got {lengths.dtype} of {lengths.shape}")
        for name, array in (("out", out), ("lengths", lengths)):
            if not (array.flags.c_contiguous and array.flags.writeable):
                raise ValueError(
                    f"{name} must be C-contiguous and writeable; pass a new array or a slice of whole rows"
                )
        left = self._core.encode(batch, out, lengths, threads)
        if left:
            self._encode_repaired(batch, left, out, lengths, threads)
        return TokenBatch(out, lengths)

    def _encode_repaired(
        self, texts: tuple[str, ...], rows: list[int], out: NDArray[Any], lengths: NDArray[np.int64], threads: int
    ) -> None:
        """Encode the rows that the core left, and put them where they belong."""
        if self.kind != "clip":
            raise ValueError(
                f"texts[{rows[0]}] holds half a surrogate pair, which no UTF-8 file can hold: {texts[rows[0]]!r:.80}; "
                "replace it, for example with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
            )
        words = _clip_words()
        pieces = tuple("\n".join(words(texts[row])) for row in rows)
        ids = np.empty((len(rows), self.max_length), dtype=out.dtype)
        counts = np.empty(len(rows), dtype=np.int64)
        self._core.encode_pieces(pieces, ids, counts, threads)
        out[rows] = ids
        lengths[rows] = counts

    def save(self, folder: Path) -> None:
        """Write the vocabulary, under the name that its own library gives it, and a description into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.kind == "clip":
            write_atomically(folder / CLIP_VOCABULARY, gzip.compress(self._vocabulary.encode(), mtime=0))
        elif self.kind == "bert":
            write_atomically(folder / "vocab.txt", f"{self._vocabulary}\n".encode())
        else:
            write_atomically(folder / "words.txt", f"{self._vocabulary}\n".encode() if self._vocabulary else b"")
        description = {"kind": self.kind, "max_length": self.max_length, "options": self._options}
        write_atomically(folder / DESCRIPTION, (json.dumps(description, indent=2) + "\n").encode())

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.kind, self._vocabulary, self.max_length, self._options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return (
            f"Tokenizer(kind={self.kind!r}, vocabulary_size={self.vocabulary_size}, max_length={self.max_length}, "
            f"fingerprint={self.fingerprint[:12]!r})"
        )


def clip_tokenizer(context_length: int = 77, vocabulary: Path | None = None) -> Tokenizer:
    """CLIP's byte-pair encoding, lower-cased, as open_clip's `SimpleTokenizer` does it.

    `vocabulary`: a merges file in the form of `bpe_simple_vocab_16e6.txt.gz`, gzipped or not; without it the one in the
    installed open_clip package. Raises FileNotFoundError, or ValueError for a file that is not one.
    """
    path = _open_clip_vocabulary() if vocabulary is None else Path(vocabulary)
    return Tokenizer("clip", _read_merges(path), context_length)


def bert_tokenizer(folder: Path, max_length: int = 64) -> Tokenizer:
    """BERT's WordPiece, as transformers' `BertTokenizerFast` does it, from the folder of a transformers model.

    The folder holds `vocab.txt` or `tokenizer.json`, whose vocabulary goes before that of `vocab.txt`. Whether letters
    are lowered, accents stripped and Chinese characters split is read from `tokenizer_config.json` alone: what it does
    not say has BERT's default, whatever the normalizer in `tokenizer.json` says (BertTokenizerFast replaces that
    normalizer). Special tokens as they are written come from it too, and from `special_tokens_map.json` where it lists
    no added tokens. Raises FileNotFoundError, or ValueError for a tokenizer of another kind or of a setting that this
    one lacks.
    """
    folder = Path(folder)
    vocabulary_file, fast_file = folder / "vocab.txt", folder / "tokenizer.json"
    if not vocabulary_file.is_file() and not fast_file.is_file():
        raise FileNotFoundError(
            f"{folder}: neither vocab.txt nor tokenizer.json; give the folder of a BERT model as transformers saves it"
        )
    fast = _read_json(fast_file) if fast_file.is_file() else {}
    if fast:
        _refuse_other_tokenizers(fast, fast_file)
    if fast:
        entries = _entries_by_id(fast["model"]["vocab"], fast_file)
    else:
        entries = _read_text(vocabulary_file).replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    config_file, special_file = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    config = _read_json(config_file) if config_file.is_file() else {}
    if "added_tokens_decoder" not in config and special_file.is_file():
        config |= _read_json(special_file)
    lower, strip_accents = bool(config.get("do_lower_case", True)), config.get("strip_accents")
    added = _added_tokens(fast, config, folder)
    while (token := added.get(len(entries))) is not None:  # tokens added behind the vocabulary
        entries.append(token)
    special = {name: _content(config.get(f"{name}_token", token)) for name, token in BERT_SPECIAL.items()}
    if special["mask"] not in entries:
        special["mask"] = special["unk"]
    options = {
        "marks": (special["cls"], special["sep"], special["pad"], special["unk"]),
        "special": sorted({*special.values(), *added.values()}),
        "lower": lower,
        "strip_accents": lower if strip_accents is None else bool(strip_accents),
        "split_chinese": bool(config.get("tokenize_chinese_chars", True)),
    }
    try:
        return Tokenizer("bert", "\n".join(entries), max_length, options)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def word_tokenizer(
    captions: Iterable[str], *, max_length: int = 40, min_count: int = 1, max_words: int = 30_000
) -> Tokenizer:
    """Whole words, lower-cased, punctuation dropped, from the captions that a model is trained on.

    Kept are words that occur at least `min_count` times, the `max_words` most frequent ones. Padding is 0, an unknown
    word 1, the start mark 2, the end mark 3; words follow, the most frequent first.
    """
    if min_count < 1 or max_words < 1:
        raise ValueError(f"min_count and max_words must be at least 1, got {min_count} and {max_words}")
    if isinstance(captions, (str, bytes)):
        raise TypeError(f"captions must be a sequence of str, got one {type(captions).__name__}; put it into a list")
    words = build_word_vocabulary(tuple(captions), min_count, max_words)
    return Tokenizer("words", "\n".join(words), max_length)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote into a folder; FileNotFoundError or ValueError where there is none."""
    folder = Path(folder)
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no {DESCRIPTION}; give a folder that a tokenizer was saved into")
    description = _read_json(path)
    kind, options = description.get("kind"), description.get("options", {})
    names = {"clip": CLIP_VOCABULARY, "bert": "vocab.txt", "words": "words.txt"}
    if kind not in names or not isinstance(options, dict):
        raise ValueError(
            f"{path}: kind must be one of {', '.join(names)} and options an object, got {description!r:.200}"
        )
    file = folder / names[kind]
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: the vocabulary that {DESCRIPTION} names is not there; save the tokenizer again"
        )
    vocabulary = _read_merges(file) if kind == "clip" else _read_text(file).removesuffix("\n")
    if "marks" in options:
        options["marks"] = tuple(options["marks"])
    try:
        return Tokenizer(kind, vocabulary, description.get("max_length", 0), options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder}: {error}") from error


def _open_clip_vocabulary() -> Path:
    specification = importlib.util.find_spec("open_clip")
    if specification is None or specification.origin is None:
        raise FileNotFoundError(
            f"open_clip, whose {CLIP_VOCABULARY} CLIP's tokenizer reads, is not installed; "
            "pip install open_clip_torch, or pass vocabulary=FILE"
        )
    return Path(specification.origin).parent / CLIP_VOCABULARY


def _read_merges(path: Path) -> str:
    """The header and the merges that count, of a file that may be gzipped; it is decompressed only as far as needed."""
    data = Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b":
        stream, parts, lines = zlib.decompressobj(wbits=31), [], 0
        try:
            while data and not stream.eof and lines < CLIP_LINES:
                parts.append(stream.decompress(data, 1 << 14))
                lines += parts[-1].count(b"\n")
                data = stream.unconsumed_tail
        except zlib.error as error:
            raise ValueError(f"{path}: a damaged gzip file ({error}); download it again") from error
        if lines < CLIP_LINES and not stream.eof:
            raise ValueError(f"{path}: the gzip file ends too early; download it again")
        data = b"".join(parts)
    end = len(data)
    for _ in range(data.count(b"\n") - CLIP_LINES + 1):
        end = data.rindex(b"\n", 0, end)
    try:
        return data[:end].decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not a text file in UTF-8 ({error}); give the {CLIP_VOCABULARY} of open_clip"
        ) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must be a JSON object, got {type(value).__name__}")
    return value


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
            raise ValueError(f"{path}: {name} must be {expected!r} for a BERT tokenizer, got {found!r}")
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
            raise ValueError(
                f"{folder}: the added token {token.get('content')!r} is matched in a way that is not supported "
                "(single_word, lstrip, rstrip or normalized is set)"
            )
    return {number: str(token["content"]) for number, token in added.items()}


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


_clip_words_lock = threading.Lock()
_clip_words_function: Callable[[str], list[str]] | None = None


def _clip_words() -> Callable[[str], list[str]]:
    """The function that repairs a text and cuts it into words as open_clip does; ftfy is loaded on first use."""
    global _clip_words_function
    with _clip_words_lock:
        if _clip_words_function is None:
            import ftfy
            import regex  # type: ignore[import-untyped]

            find = regex.compile(_CLIP_WORDS, regex.IGNORECASE).findall

            def words(text: str) -> list[str]:
                repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
                return list(find(" ".join(repaired.split()).lower()))

            _clip_words_function = words
    return _clip_words_function
