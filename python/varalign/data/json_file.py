"""Reading JSON that users wrote or other programs saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from varalign.data.errors import DataError, shown
from varalign.data.tokens.tokenizer_kind import read_text


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object; ValueError where it is none, OSError where the file cannot be read."""
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must be a JSON object, got {type(value).__name__}")
    return value


def load_json(path: Path, text: str, where: str = "") -> Any:
    """The value of a JSON text.

    Args:
        path: the file. text: all of it, or a part that `where` names, with a space before it.

    Raises:
        DataError: it is no JSON, nested too deeply, or an object has a key twice.
    """
    try:
        return json.loads(text, parse_int=_bounded_int, parse_constant=_no_constant, object_pairs_hook=without_repeats)
    except RecursionError:
        raise DataError(f"{path}{where}: the JSON is nested too deeply to be a captions file") from None
    except ValueError as error:
        raise DataError(
            f"{path}{where}: not valid JSON: {error}; mend it there, or get the file again if it ends early"
        ) from None


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` of `json.loads` that refuses an object with a key twice: ValueError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the key {shown(key)} twice; keep one of them")
    return found


def _bounded_int(digits: str) -> int:
    """Numbers of captions files are ids; thousands of digits would take quadratic time to convert."""
    if len(digits) > 30:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
