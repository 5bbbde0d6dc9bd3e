"""The table at the end of a run: model, epochs, loss, cosine similarity, and Recall@1/5/10 both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KS = (1, 5, 10)


def final_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text, recalls in per cent, the number of candidates on the last line.

    Args:
        rows: each has `model` and what is known of it: `epochs`, `loss`, `cosine_similarity` and the keys of `retrieval`;
            what is missing stands as a dash.

    Returns:
        The table. i2t: an image is hit if any of its captions is among the first K texts; t2i: a caption is hit if its image is.
    """
    recalls = [f"{direction}_recall@{k}" for direction in ("i2t", "t2i") for k in KS]
    head = ["model", "epochs", "loss", "cosine similarity", *(f"{d} R@{k}" for d in ("i2t", "t2i") for k in KS)]
    body = [
        [
            str(row["model"]),
            _number(row.get("epochs"), "d"),
            _number(row.get("loss"), ".4f"),
            _number(row.get("cosine_similarity"), ".4f"),
            *(_number(None if row.get(key) is None else 100 * row[key], ".1f") for key in recalls),
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(line, widths, strict=True)))
        for line in [head, ["-" * width for width in widths], *body]
    ]
    counted = next((row for row in rows if "images" in row and "texts" in row), None)
    if counted is not None:
        lines.append(f"Recall in per cent, among {counted['images']:,} images and {counted['texts']:,} texts")
    return "\n".join(lines)


def _number(value: Any, form: str) -> str:
    return "–" if value is None else format(value, form)
