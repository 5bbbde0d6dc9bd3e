"""Text on its way to a terminal: captions, names and options must not move the cursor or hide text."""

from __future__ import annotations

import re
from typing import TextIO

# C0 and C1 control characters, line and paragraph separators, marks that override the direction of text, and halves
# of surrogate pairs (bytes of a file's name that are not UTF-8). Joiners and plain direction marks stay: scripts need
# them.
_HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Text as one line that a terminal shows and does not obey: a harmful character becomes its escape.

    >>> printable("a \x1b[31mred\n dog")
    'a \\x1b[31mred\\n dog'
    """
    return _HARMFUL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def without_colours(text: str) -> str:
    r"""A message of another library without the escape sequences that colour it.

    >>> without_colours("\x1b[1m\x1b[38;5;208mno key\x1b[0m")
    'no key'
    """
    return re.sub("\x1b\\[[0-9;]*m", "", text)


def printable_lines(text: str) -> str:
    """Text whose lines stay lines, each of them `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def underlying(stream: TextIO) -> TextIO:
    """The stream itself: while a bar is up, rich stands before standard error, and answers neither `isatty` nor
    `encoding`.
    """
    return getattr(stream, "rich_proxied_file", stream)


def print_lines(text: str, stream: TextIO | None) -> None:
    """Print `printable_lines` of a text at once, what the stream's encoding lacks as escapes.

    Args:
        text: one or several lines.
        stream: None, as Python has it where the process was started without this output: then nothing is printed.

    Raises:
        OSError: from the system, such as a full disk or a reader that is gone.
    """
    if stream is None:
        return
    encoding = underlying(stream).encoding or "utf-8"
    print(printable_lines(text).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
