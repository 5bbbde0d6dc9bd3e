"""The error of bad input, and what its messages are made with."""

from __future__ import annotations


class DataError(ValueError):
    """Bad input in a data set: the message says which file, what was wanted, what came, and what to do."""


def how_to_install(extra: str) -> str:
    """How a missing package of one of varalign's extras is installed, as the end of a message.

    >>> how_to_install("lora")
    "pip install '.[lora]' in the folder of varalign's source (where varalign came from an index: 'varalign[lora]')"
    """
    return (
        f"pip install '.[{extra}]' in the folder of varalign's source "
        f"(where varalign came from an index: 'varalign[{extra}]')"
    )


def shown(text: str, limit: int = 80) -> str:
    """Quote text for a message: escapes control characters and cuts what is too long."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def first_three(items: list[str], what: str = "") -> str:
    """List the first three items and count the others: "a, b, c and 4 more"."""
    more = len(items) - 3
    tail = f" and {more:,} more{' ' + what if what else ''}" if more > 0 else ""
    return ", ".join(items[:3]) + tail
