"""Reading JSON that users wrote or other programs saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from varalign.data.errors import shown
from varalign.data.tokenizer_kind import read_text


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object; ValueError where it is none, OSError where the file cannot be read."""
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must be a JSON object, got {type(value).__name__}")
    return value


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` of `json.loads` that refuses an object with a key twice: ValueError."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"an object has the key {shown(key)} twice; keep one of them")
        found[key] = value
    return found
