"""Caption tokenizers: CLIP's byte pairs, BERT's WordPiece, whole words from the training captions, transformers' own.

    >>> tokenizer = clip_tokenizer()
    >>> batch = tokenizer(["two dogs in the snow", ""])
    >>> batch.ids.shape, batch.lengths.tolist()
    ((2, 77), [7, 2])

Ids are those of open_clip's `SimpleTokenizer` and transformers' `BertTokenizerFast` on every text; the kinds "hf" and
"python" run the library's own tokenizer. A new kind is a file with a `TokenizerKind`, and a row in `KINDS`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varalign._core import build_word_vocabulary
from varalign.data.files import write_atomically
from varalign.data.json_file import read_object
from varalign.data.tokens.bert_tokens import BERT, read_bert_folder
from varalign.data.tokens.clip_tokens import CLIP, open_clip_vocabulary
from varalign.data.tokens.hf_tokens import HF, read_hf_folder
from varalign.data.tokens.python_tokens import PYTHON
from varalign.data.tokens.word_tokens import WORDS

KINDS = {kind.name: kind for kind in (CLIP, BERT, WORDS, HF, PYTHON)}
DESCRIPTION = "varalign_tokenizer.json"


@dataclass(frozen=True)
class TokenBatch:
    """The tokens of N texts: `ids` (N, L) int64, padded with `pad_id`; `lengths` (N,) int64 with the marks."""

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def mask(self) -> NDArray[np.bool_]:
        """(N, L), true where a token stands and false where padding does."""
        columns: NDArray[np.int64] = np.arange(self.ids.shape[1])
        return columns[None, :] < self.lengths[:, None]


class Tokenizer:
    """Turns captions into rows of token ids: a start mark, the tokens, an end mark, padding up to `max_length`.

    `kind` is "clip", "bert", "words", "hf" or "python". Two tokenizers of one kind, vocabulary, length and options are
    equal and hash alike; `fingerprint` (hex sha256 over these) says so across machines. Threads may share one. Made by
    `clip_tokenizer`, `bert_tokenizer`, `hf_tokenizer`, `word_tokenizer` and `load_tokenizer`.
    """

    def __init__(self, kind: str, vocabulary: str, max_length: int, options: dict[str, Any] | None = None) -> None:
        """`vocabulary` is a file's text; `options` are the keyword arguments of the core's maker, and `prompt`, which
        stands before each text.
        """
        if not isinstance(max_length, int) or isinstance(max_length, bool) or max_length < 2:
            raise ValueError(
                f"max_length must be an int of at least 2 (the start and the end mark), got {max_length!r}"
            )
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        self.kind = kind
        self.max_length = max_length
        self._vocabulary = vocabulary
        self._options = dict(options or {})
        settings = dict(self._options)
        self.prompt: str = settings.pop("prompt", "")
        self._core = KINDS[kind].core(vocabulary, **settings)
        self.vocabulary_size: int = self._core.vocabulary_size
        self.start_id, self.end_id, self.pad_id = self._core.marks
        described = json.dumps([kind, max_length, self._options], sort_keys=True)
        self.fingerprint = hashlib.sha256(f"{described}\n{vocabulary}".encode()).hexdigest()

    def __call__(self, texts: Sequence[str], *, threads: int = 0) -> TokenBatch:
        """Encode N texts (empty ones are legal); what is too long is cut before the end mark.

        `threads`: 0 takes as many as the batch is worth, 1 only the caller's.
        Raises TypeError for a text that is not a str; ValueError, for BERT and words, for half a surrogate pair (CLIP's
        reference reads it as U+FFFD).
        """
        if isinstance(texts, (str, bytes)):
            raise TypeError(f"texts must be a sequence of str, got one {type(texts).__name__}; put it into a list")
        if threads < 0:
            raise ValueError(f"threads must be 0 (as many as the batch is worth) or more, got {threads}")
        batch = tuple(texts)
        if self.prompt:
            batch = tuple(self.prompt + text if isinstance(text, str) else text for text in batch)
        ids = np.empty((len(batch), self.max_length), dtype=np.int64)
        lengths = np.empty(len(batch), dtype=np.int64)
        left = self._core.encode(batch, ids, lengths, threads)
        if left:
            ids[left], lengths[left] = self._encode_repaired([batch[row] for row in left], left[0], threads)
        return TokenBatch(ids, lengths)

    def _encode_repaired(
        self, texts: list[str], first: int, threads: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids and lengths of the texts that the core left; `first` is the row of the first one."""
        words = KINDS[self.kind].words
        if words is None:
            raise ValueError(
                f"texts[{first}] holds half a surrogate pair, which no UTF-8 file can hold: {texts[0]!r:.80}; "
                "replace it, for example with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
            )
        ids = np.empty((len(texts), self.max_length), dtype=np.int64)
        lengths = np.empty(len(texts), dtype=np.int64)
        self._core.encode_pieces(tuple("\n".join(words(text)) for text in texts), ids, lengths, threads)
        return ids, lengths

    @property
    def words(self) -> list[str]:
        """The words of a tokenizer of the kind "words", whose ids are the last ones, in order."""
        return self._vocabulary.split("\n") if self._vocabulary else []

    def save(self, folder: Path) -> None:
        """Write the vocabulary, under the name that its own library gives it, and a description into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        kind = KINDS[self.kind]
        write_atomically(folder / kind.file, kind.written(self._vocabulary))
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
    path = open_clip_vocabulary() if vocabulary is None else Path(vocabulary)
    return Tokenizer("clip", CLIP.read(path), context_length)


def bert_tokenizer(folder: Path, max_length: int = 64, prompt: str = "") -> Tokenizer:
    """BERT's WordPiece, as transformers' `BertTokenizerFast` does it, from the folder of a transformers model.

    The folder holds `vocab.txt` or `tokenizer.json`, whose vocabulary goes before that of `vocab.txt`. Whether letters
    are lowered, accents stripped and Chinese characters split is read from `tokenizer_config.json` alone: what it does
    not say has BERT's default, whatever the normalizer in `tokenizer.json` says (BertTokenizerFast replaces that
    normalizer). Special tokens as they are written come from it too, and from `special_tokens_map.json` where it lists
    no added tokens. Raises FileNotFoundError, or ValueError for a tokenizer of another kind or of a setting that this
    one lacks.
    """
    try:
        vocabulary, options = read_bert_folder(Path(folder))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: its tokenizer files lack the form that transformers writes: {error!r}") from None
    try:
        return Tokenizer("bert", vocabulary, max_length, _prompted(options, prompt))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def hf_tokenizer(
    folder: Path,
    max_length: int = 64,
    prompt: str = "",
    *,
    lower: bool = False,
    settings: Mapping[str, Any] | None = None,
    whole: bool = False,
) -> Tokenizer:
    """The tokenizer that transformers makes of a model's folder, run by its library; `prompt` stands before each text.

    `lower`: letters are lowered first. `settings`: open_clip's `tokenizer_kwargs` and `tokenizer_mode`. `whole`: the
    model reads the padding too. Raises ValueError where transformers cannot read it, or it does what varalign has not.
    """
    kind, vocabulary, options = read_hf_folder(Path(folder), lower=lower, settings=settings, whole=whole)
    return Tokenizer(kind, vocabulary, max_length, _prompted(options, prompt))


def _prompted(options: dict[str, Any], prompt: str) -> dict[str, Any]:
    return {**options, "prompt": prompt} if prompt else options


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
    description = read_object(path)
    name, options = description.get("kind"), description.get("options", {})
    if name not in KINDS or not isinstance(options, dict):
        raise ValueError(
            f"{path}: kind must be one of {', '.join(KINDS)} and options an object, got {description!r:.200}"
        )
    file = folder / KINDS[name].file
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: the vocabulary that {DESCRIPTION} names is not there; save the tokenizer again"
        )
    if "marks" in options:
        options["marks"] = tuple(options["marks"])
    try:
        return Tokenizer(name, KINDS[name].read(file), description.get("max_length", 0), options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder}: {error}") from error
