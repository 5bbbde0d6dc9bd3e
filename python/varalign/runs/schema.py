"""What the files of a run must hold, checked whole before anything is built of them. Torch-free.

A schema is a function that raises ValueError for a value that does not fit it: `whole(1)` takes 1 and larger numbers.
`record` is the schema of an object and names the path to the wrong value: `model.embedding_dim is -1, but …`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

Schema = Callable[[Any], object]

FORMAT = 1
"""Version of the files of a run, in `config.json` and in checkpoints; files without a number are of version 1."""


def text(value: Any) -> None:
    """Any text."""
    if not isinstance(value, str):
        raise ValueError(f"is {_shown(value)}, but must be a text")


def flag(value: Any) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError(f"is {_shown(value)}, but must be true or false")


def whole(low: int = 0) -> Schema:
    """Whole numbers from `low`."""

    def check(value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ValueError(f"is {_shown(value)}, but must be a whole number, at least {low}")

    return check


def number(value: Any) -> None:
    """Finite numbers."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"is {_shown(value)}, but must be a number")


def or_null(schema: Schema) -> Schema:
    """What `schema` takes, and null."""
    return lambda value: None if value is None else schema(value)


def record(needed: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """Objects with the `needed` entries; of all others, those in `optional` are checked."""
    schemas = {**needed, **(optional or {})}

    def check(value: Any) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"is {_shown(value)}, but must be an object")
        for name in needed:
            if name not in value:
                raise ValueError(f"{name} is missing")
        for name, inner in value.items():
            schema = schemas.get(name)
            if schema is None:
                continue
            try:
                schema(inner)
            except ValueError as error:
                mark = " " if str(error).startswith("is ") else "."
                raise ValueError(f"{name}{mark}{error}") from None

    return check


def format_number(value: Any) -> None:
    """Versions of the files that this program reads."""
    whole(1)(value)
    if value > FORMAT:
        raise ValueError(f"is {value}, and this version of varalign reads no later one than {FORMAT}: update varalign")


def _shown(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) < 60 else shown[:57] + "…"
