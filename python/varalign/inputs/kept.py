"""Arrays that are kept in a file under a key, and read back only where the file is sound."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from varalign.data.errors import DataError
from varalign.data.files import open_user_file, read_bytes, write_atomically
from varalign.data.ranks import world

Arrays = Mapping[str, NDArray[Any]]
Say = Callable[[str], None]
MOST_BYTES = 1 << 40
_KEY, _CHECKSUM = "_key", "_sha256"
KINDS = {"U8": "u1", "I64": "<i8", "F16": "<f2", "F32": "<f4"}
"""Of the arrays that are mapped, by safetensors' names."""


def kept_arrays(
    path: Path,
    key: str,
    make: Callable[[], Arrays],
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    fresh: bool = False,
    told: str = "",
    say: Say = lambda line: None,
) -> Arrays:
    """The arrays that a file keeps under a key, or made now and kept there in place of what it held.

    The file is read once; what is used is what was checked: key, checksum, the shapes that are wanted, and that every
    number is finite. A file with another key is stale. Any other one that does not pass is damaged, which is said.

    Args:
        path: a safetensors file; where it cannot be written, nothing is kept, which is said.
        key: of everything that the arrays depend on.
        make: makes them.
        shapes: float32 arrays that must be there, with their shapes.
        fresh: make them in any case.
        told: the line for `say` where the arrays come from the file.
        say: called with `told`, or with a line on what went wrong.
    """
    found = "" if fresh else read_kept(path, key, shapes=shapes or {})
    # The ranks may see different disks, and make the arrays together: all of them make, or none.
    if world().everywhere(isinstance(found, dict)) and isinstance(found, dict):
        if told:
            say(told)
        return found
    if isinstance(found, str) and found:
        say(f"{path}: {found}; made anew")
    arrays = make()
    if not world().is_writer:
        return arrays
    try:
        write_kept(path, key, arrays)
    except OSError as error:
        say(f"{path}: not kept, it cannot be written: {error.strerror or error}")
    return arrays


def write_kept(path: Path, key: str, arrays: Arrays) -> None:
    """Keep arrays in a file under a key, in place of what it held; OSError where it cannot be written."""
    marked = {**arrays, _KEY: np.frombuffer(key.encode(), np.uint8), _CHECKSUM: _checksum(key, arrays)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save({name: np.ascontiguousarray(array) for name, array in marked.items()}))


def read_kept(
    path: Path, key: str, *, shapes: Mapping[str, tuple[int, ...]] = {}, mapped: bool = False
) -> dict[str, NDArray[Any]] | str:
    """The arrays that a file keeps under a key, or why they cannot be used; empty: there is no file, or a stale one.

    Args:
        shapes: as for `kept_arrays`.
        mapped: map the file into memory instead of reading it: several processes share it, and the system may take the
            memory back. What is written to the arrays stays in this process.
    """
    if not path.exists():
        return ""
    try:
        arrays = _mapped(path) if mapped else load(read_bytes(path, MOST_BYTES))
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
    except Exception as error:  # safetensors raises errors of several types on damaged files
        return f"damaged ({error})"
    found_key, checksum = arrays.pop(_KEY, None), arrays.pop(_CHECKSUM, None)
    if found_key is None or checksum is None:
        return "written by another version, or damaged"
    if found_key.tobytes() != key.encode():
        return ""
    if not np.array_equal(checksum, _checksum(key, arrays)):
        return "damaged (its checksum differs)"
    for name, shape in shapes.items():
        array = arrays.get(name)
        if array is None or array.dtype != np.float32 or array.shape != shape:
            return f"damaged ({name} is no float32 array of {shape})"
    bad = [name for name, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    return f"not usable ({bad[0]} holds NaN or infinity)" if bad else arrays


def _checksum(key: str, arrays: Arrays) -> NDArray[np.uint8]:
    """(32,) the SHA-256 of the key and of the arrays with their names, dtypes and shapes."""
    digest = hashlib.sha256(key.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return np.frombuffer(digest.digest(), np.uint8)


def _mapped(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file, memory-mapped; raises an error of any type where it is damaged."""
    with open_user_file(path) as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    begin = 8 + int.from_bytes(content[:8], "little")
    return {name: mapped_array(content, begin, name, entry) for name, entry in json.loads(content[8:begin]).items()}


def mapped_array(content: mmap.mmap, begin: int, name: str, entry: Mapping[str, Any]) -> NDArray[Any]:
    """A tensor of a mapped safetensors file whose data begin at `begin`, by its entry in the header.

    It raises an error of any type where the header does not fit.
    """
    first, end = entry["data_offsets"]
    kind, shape = np.dtype(KINDS[entry["dtype"]]), entry["shape"]
    if kind.itemsize * math.prod(shape) != end - first:
        raise ValueError(f"{name} has not the size of its shape")
    return np.frombuffer(content, kind, math.prod(shape), begin + first).reshape(shape)
