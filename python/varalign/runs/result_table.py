"""The result table of a run: its columns are defined once, for the terminal and for the run's page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_MODES = {
    "positive": "; equal captions are one text",
    "distinct": "; equal captions are different texts (--same-caption distinct)",
}
_TEXTS = ("model", "candidates")  # columns aligned to the left


def candidates(row: Mapping[str, Any]) -> str:
    """`1,000 images, 5,000 texts`: printed beside every recall."""
    return f"{row['images']:,} images, {row['texts']:,} texts"


def result_columns(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[str]], str]:
    """Names and cells of the result table: model, epochs, loss, cosine similarity, Recall@K both ways in percent.

    Args:
        rows: one mapping a line, with `model` (text), and where known `epochs`, `loss`, `cosine_similarity` and the
            keys of `eval --json`, `same_caption` among them. What is missing, None or NaN is shown as `–`. The chance
            row is `{"model": "chance", **varalign.evaluation.retrieval.chance(…)}`.

    Returns:
        Each column's cells, a text a row, by its name; and a note for below the table, which may be empty. The note
        holds the numbers of candidates if they are the same in all rows; otherwise they are a column.
    """
    columns = {
        "model": [str(row.get("model", "–")) for row in rows],
        "epochs": [_number(row.get("epochs"), 0) for row in rows],
        "loss": [_number(row.get("loss"), 4) for row in rows],
        "cosine similarity": [_number(row.get("cosine_similarity"), 4) for row in rows],
    }
    for direction in ("i2t", "t2i"):
        keys = {key for row in rows for key in row if key.startswith(f"{direction}_recall@")}
        for k in sorted(int(key.rpartition("@")[2]) for key in keys):
            columns[f"{direction} R@{k}"] = [
                _number(row.get(f"{direction}_recall@{k}"), 1, percent=True) for row in rows
            ]
    counted = [candidates(row) if "images" in row and "texts" in row else "–" for row in rows]
    known = {count for count in counted if count != "–"}
    if len(known) > 1:
        columns["candidates"] = counted
    has_recalls = any("R@" in name for name in columns)
    if len(known) != 1 or not has_recalls:
        return columns, ""
    mode = next((row["same_caption"] for row in rows if "same_caption" in row), None)
    return columns, f"Recall in percent, among {known.pop()}{_MODES.get(mode, '')}."


def final_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as aligned lines of text, without a newline at the end; `rows` as `result_columns` takes them."""
    columns, note = result_columns(rows)
    aligned = []
    for name, cells in columns.items():
        width = max(map(len, (name, *cells)))
        lines = (name, "─" * width, *cells)
        aligned.append([line.ljust(width) if name in _TEXTS else line.rjust(width) for line in lines])
    table = ["  ".join(line).rstrip() for line in zip(*aligned, strict=True)]
    return "\n".join([*table, note] if note else table)


def _number(value: Any, digits: int, *, percent: bool = False) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{100.0 * value if percent else value:,.{digits}f}"
