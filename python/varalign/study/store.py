"""The results of a study: a small JSON file for each cell, written atomically. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from varalign.data.errors import DataError
from varalign.data.files import read_bytes, write_atomically
from varalign.runs.json_text import json_text
from varalign.study.grid import Pack


class Store:
    """The folder of a study.

    Args:
        folder: made if missing. `cells/` holds the cells; all other files are made from them.

    Raises:
        DataError: a file is in the place of a folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.cells = folder, folder / "cells"
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise DataError(f"--out {folder}: a file is in the way; name a folder") from None
        self._read: dict[str, dict[str, Any]] = {}

    def has(self, pack: Pack) -> bool:
        """Whether every cell of a pack has its result."""
        return all(name in self._read or self._path(name).is_file() for name in pack.names)

    def result(self, name: str) -> dict[str, Any]:
        """A cell's result.

        Raises:
            DataError: the cell's file is damaged.
        """
        if name not in self._read:
            path = self._path(name)
            try:
                found = json.loads(read_bytes(path))
                problem = _problem(found)
            except (ValueError, RecursionError) as error:
                problem = str(error)
            if problem:
                raise DataError(f"{path}: not a whole result ({problem}); delete it, and the cell is run again")
            self._read[name] = found
        return self._read[name]

    def write(self, pack: Pack, results: Sequence[Mapping[str, Any]], seconds: float) -> None:
        """Write the results of a pack, one file for each cell.

        Raises:
            OSError: a file cannot be written; files written before it stay, and the next start runs the pack again.
        """
        for name, cell, result in zip(pack.names, pack.cells, results, strict=True):
            whole = {
                "cell": dict(cell.axes),
                "kind": cell.kind,
                "seconds": round(seconds / len(pack.cells), 3),
                **result,
            }
            write_atomically(self._path(name), (json_text(whole) + "\n").encode())

    def write_text(self, name: str, text: str) -> Path:
        """Write a file that is made from the cells."""
        path = self.folder / name
        write_atomically(path, text.encode())
        return path

    def _path(self, name: str) -> Path:
        return self.cells / f"{name}.json"


def _problem(result: Any) -> str:
    """What is wrong with a cell's result, or ""."""
    if not isinstance(result, dict):
        return "no JSON object"
    kinds = {"dev": float, "epochs": int, "best_epoch": int, "options": dict, "finite": bool}
    if result.get("kind") != "tune":
        kinds |= {"ranks_i2t": str, "ranks_t2i": str, "captions": list, "w_i2t": list}
    for name, kind in kinds.items():
        value = result.get(name)
        if not isinstance(value, kind) and not (kind is float and type(value) is int):
            return f"{name}: wanted {kind.__name__}, found {type(value).__name__}"
    if result.get("kind") == "tune":
        return ""
    captions, weights = result["captions"], result["w_i2t"]
    if not captions or not all(type(count) is int and count >= 0 for count in captions) or not sum(captions):
        return "captions: wanted the number of each image's captions"
    if (len(result["ranks_i2t"]), len(result["ranks_t2i"])) != (len(captions), sum(captions)):
        return "ranks: wanted one character a query"
    if not all(isinstance(weight, (int, float)) and 0 <= weight <= 1 for weight in weights):
        return "w_i2t: wanted weights from 0 to 1"
    return ""
