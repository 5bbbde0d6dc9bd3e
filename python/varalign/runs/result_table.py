"""The result table of a run: its columns are defined once, for the terminal and for the run's page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from varalign.data.checks.split_sizes import FEW

_MODES = {
    "positive": "; equal captions are one text",
    "distinct": "; equal captions are different texts (--same-caption distinct)",
}
_TEXTS = ("model", "candidates")  # columns aligned to the left


def candidates(row: Mapping[str, Any]) -> str:
    """`1,000 images, 5,000 texts`: printed beside every recall; of a cross-validation those of each fold."""
    each = f" of each of {row['folds']} folds" if "folds" in row else ""
    return f"{row['images']:,} images, {row['texts']:,} texts{each}"


def folds_remark(row: Mapping[str, Any]) -> list[str]:
    """Sentences that say which pairs were judged where there was no test split."""
    if "judged" not in row:
        return []
    images, texts = (f"{row['judged'][name]:,} {name}" for name in ("images", "texts"))
    return [
        f"No test split: nested cross-validation by image. Each of {row['folds']} folds was scored by voices that were "
        f"fitted, chosen and corrected on the others alone, so all {images} and {texts} were judged once. The model of "
        "this run is fitted on all of them."
    ]


def result_columns(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[str]], str]:
    """Names and cells of the result table: model, epochs, loss, cosine similarity, Recall@K both ways in percent.

    Args:
        rows: one mapping a line, with `model` (text), and where known `epochs`, `loss`, `cosine_similarity` and the
            keys of `eval --json`, `same_caption` among them. What is missing, None or NaN is shown as `–`. The chance
            row is `{"model": "chance", **varalign.evaluation.retrieval.chance(…)}`.

    Returns:
        Each column's cells, a text a row, by its name; and a note for below the table, which may be empty. Below a row
        with `intervals` stands a row of them. The note holds the numbers of candidates if they are the same in all
        rows, otherwise they are a column; and a warning where the images are few.
    """
    rows = [line for row in rows for line in _lines(row)]
    columns: dict[str, list[str]] = {"model": [], "epochs": [], "loss": [], "cosine similarity": []}
    keys = {key for row in rows for key in row if "_recall@" in key}
    recalls = sorted(keys, key=lambda key: (key[:3], int(key.rpartition("@")[2])))
    names = {key: f"{key[:3]} R@{key.rpartition('@')[2]}" for key in recalls}
    columns |= {name: [] for name in names.values()}
    counted = [candidates(row) if "images" in row and "texts" in row else "–" for row in rows]
    known = set(counted) - {"–"}
    if len(known) > 1:
        columns["candidates"] = []
    for row, count in zip(rows, counted, strict=True):
        line = {
            "model": str(row.get("model", "–")),
            "epochs": _number(row.get("epochs"), 0),
            "loss": _number(row.get("loss"), 4),
            "cosine similarity": _number(row.get("cosine_similarity"), 4),
            **{name: _number(row.get(key), 1, percent=True) for key, name in names.items()},
            "candidates": count,
        }
        lines = [line]
        if "intervals" in row:
            bounds = {names[key]: [_number(bound, 1, percent=True) for bound in row["intervals"][key]] for key in names}
            lines.append({"model": "  95 % interval", **{name: "–".join(pair) for name, pair in bounds.items()}})
        for name, cells in columns.items():
            cells += [line.get(name, "") for line in lines]
    mode = next((row["same_caption"] for row in rows if "same_caption" in row), None)
    one = len(known) == 1 and recalls
    notes = [f"Recall in percent, among {known.pop()}{_MODES.get(str(mode), '')}."] if one else []
    least = min(_judged(rows), default=FEW)
    if least < FEW and recalls:
        notes.append(
            f"Of {least} images one is {100 / least:.1f} points: with fewer than {FEW} such figures say little."
        )
    return columns, " ".join([*notes, *(folds_remark(rows[0]) if rows else [])])


def _judged(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The numbers of images that the rows' figures are of."""
    known = [row.get("judged", {} if "folds" in row else row) for row in rows]
    return [counts["images"] for counts in known if "images" in counts]


def chance_remark(row: Mapping[str, Any], chance: Mapping[str, Any]) -> list[str]:
    """A line that says so where no recall is above chance: where all of their intervals reach down to it."""
    if any(low > chance[key] + 1e-9 for key, (low, _) in row["intervals"].items()):
        return []
    return ["no better than chance: the 95 % interval of every recall reaches down to it"]


def _lines(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A row, and below one with a hub correction its recalls without it."""
    if not row.get("uncorrected"):
        return [row]
    counted = {name: row[name] for name in ("images", "texts", "folds") if name in row}
    return [row, {"model": "  without hub correction", **row["uncorrected"], **counted}]


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
