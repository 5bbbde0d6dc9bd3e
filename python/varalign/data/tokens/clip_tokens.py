"""CLIP's byte pairs: the merges of open_clip's file, and the repair of text that its `SimpleTokenizer` does first.

The reference repairs text with ftfy and `html.unescape` and cuts it with the `regex` package. A caption that this could
change (an accent, an emoji, `&amp;`, a control character) is repaired by those same libraries here; the compiled core
encodes the others alone.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from varalign._core import CaptionTokenizer
from varalign.data.tokens.tokenizer_kind import TokenizerKind, read_file

CLIP_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
CLIP_LINES = 1 + 49152 - 256 - 2  # a header, then as many merges as CLIP uses; the file goes on after them

_WORDS = (
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d"  # the marks and English contractions, then
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # letters, one digit, anything else but white space
)


def open_clip_vocabulary() -> Path:
    """The merges file of the installed open_clip; FileNotFoundError where it is not installed."""
    specification = importlib.util.find_spec("open_clip")
    if specification is None or specification.origin is None:
        raise FileNotFoundError(
            f"open_clip, whose {CLIP_VOCABULARY} CLIP's tokenizer reads, is not installed; "
            "pip install open_clip_torch, or pass vocabulary=FILE"
        )
    return Path(specification.origin).parent / CLIP_VOCABULARY


def _read_merges(path: Path) -> str:
    """The header and the merges that count, of a file that may be gzipped; it is decompressed only as far as needed."""
    data = read_file(path)
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


@lru_cache(maxsize=1)
def _find_words() -> tuple[Callable[[str], str], Callable[[str], list[str]]]:
    import ftfy  # loaded on first use
    import regex  # type: ignore[import-untyped]

    return ftfy.fix_text, regex.compile(_WORDS, regex.IGNORECASE).findall


def _words(text: str) -> list[str]:
    fix, find = _find_words()
    return list(find(" ".join(html.unescape(html.unescape(fix(text))).split()).lower()))


CLIP = TokenizerKind(
    "clip",
    CaptionTokenizer.clip,
    file=CLIP_VOCABULARY,
    read=_read_merges,
    written=lambda vocabulary: gzip.compress(vocabulary.encode(), mtime=0),
    words=_words,
)
