"""One self-contained HTML page of a run: result, pictures, retrieved examples and configuration in a single file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from varalign.pictures.page import Item, card, example, figures, write_page
from varalign.pictures.plots import draw_training
from varalign.runs.folder import RunFolder
from varalign.runs.profile import read_table
from varalign.runs.result_table import result_columns


@dataclass(frozen=True)
class Found:
    """One retrieved candidate: a caption or an image file, its similarity to the query, and whether it is right."""

    item: Item
    score: float
    right: bool


@dataclass(frozen=True)
class Example:
    """A query, its retrieved candidates (best first), and the place of the first right one (1 is the top)."""

    query: Item
    found: Sequence[Found]
    rank: int | None = None


def _example(shown: Example) -> str:
    cards = [
        card(found.item, f"{found.score:.3f}{', right' if found.right else ''}", right=found.right)
        for found in shown.found
    ]
    rank = "" if shown.rank is None else f'<p class="grey">first right one at place {shown.rank:,}</p>'
    return example(shown.query, rank, cards)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns, note = result_columns(rows)
    lines = ["".join(f"<th>{escape(name)}</th>" for name in columns)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in cells) for cells in zip(*columns.values(), strict=True)]
    table = "".join(f"<tr>{line}</tr>" for line in lines)
    note = f"{note} Ties count against the model.".lstrip()
    return f'<div class="wide"><table>{table}</table></div><p class="grey">{escape(note)}</p>'


def write_report(run: RunFolder, rows: Sequence[Mapping[str, Any]], *, examples: Sequence[Example] = ()) -> Path:
    """Write `report.html` into a run folder; the training plot is drawn into `pictures/` first.

    Args:
        run: a run folder; every PNG in its `pictures/` is embedded.
        rows: lines of the result table, as `result_columns` takes them.
        examples: queries with their retrieved candidates, in the order of the page.

    Returns:
        The page.

    Raises:
        RunError: a damaged `metrics.jsonl` or `config.json`.
    """
    draw_training(run.read_metrics(), run.pictures / "training.png")
    parts = [f"<h2>Result</h2>{_table(rows)}"]
    order = ("training", "tsne")
    files = sorted(run.pictures.glob("*.png"), key=lambda file: (*(file.stem != name for name in order), file.stem))
    if any(file.stem == "tsne" for file in files):  # the sheet tsne.png contains the single plots
        files = [file for file in files if not file.stem.startswith("tsne_perplexity_")]
    parts.append(f"<h2>Pictures</h2>{figures((file.name, file.read_bytes()) for file in files)}")
    if examples:
        parts.append(f"<h2>Retrieved examples</h2>{''.join(map(_example, examples))}")
    profile = "\n".join(read_table(run.profile))
    if profile:
        parts.append(f"<h2>Where the time went</h2><pre>{escape(profile)}</pre>")
    config = json.dumps(run.config(), indent=2, ensure_ascii=False)
    parts.append(f"<h2>Configuration</h2><pre>{escape(config)}</pre>")
    return write_page(run.path / "report.html", run.path.resolve().name, "a run of varalign", parts)
