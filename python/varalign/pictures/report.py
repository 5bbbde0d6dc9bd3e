"""One self-contained HTML page of a run: result, pictures, retrieved examples and configuration in a single file."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from varalign.data.files import write_atomically
from varalign.pictures.plots import draw_training, read_metrics

# A caption, as text, or an image, as a path: what a query and what was found may be.
Item = str | Path


@dataclass(frozen=True)
class Found:
    """One candidate that a query brought up: a caption or an image file, its similarity, and whether it is right."""

    item: Item
    score: float
    right: bool


@dataclass(frozen=True)
class Example:
    """A query, the candidates it brought up (best first), and the place of the first right one (1 is the top)."""

    query: Item
    found: Sequence[Found]
    rank: int | None = None


_STYLE = """
:root { color-scheme: light; --ink: #22262e; --grey: #6b7484; --line: #e3e7ed; --right: #2c7a4b; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink) }
body { max-width: 1080px; margin: 2.5rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem } p { margin: .3rem 0 }
.grey { color: var(--grey) } .wide { overflow-x: auto } img { max-width: 100%; display: block }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th { font-weight: 600 } th:first-child, td:first-child { text-align: left; padding-left: 0 }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); gap: 1rem }
figure { margin: 0 } figcaption { color: var(--grey); font-size: .85rem }
.example { display: flex; gap: 1rem; padding: .9rem 0; border-bottom: 1px solid var(--line); align-items: flex-start }
.query { flex: 0 0 180px } .found { display: flex; flex-wrap: wrap; gap: .6rem; flex: 1 }
.item { width: 130px; font-size: .85rem; padding: .35rem; border: 2px solid var(--line); border-radius: 6px }
.item.text { width: auto; flex: 1 1 100% } .item.right { border-color: var(--right) }
pre { background: #f6f7f9; padding: 1rem; border-radius: 6px; overflow-x: auto; font-size: .85rem }
"""


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _thumbnail(file: Path, side: int = 260) -> str:
    """An <img> of the file, small, inside the page; its name in words where it cannot be read."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            small = ImageOps.exif_transpose(opened).convert("RGB")
        small.thumbnail((side, side))
        written = io.BytesIO()
        small.save(written, "JPEG", quality=85)
    except (OSError, ValueError, Image.DecompressionBombError):
        return f'<span class="grey">{escape(file.name)} (cannot be read)</span>'
    return f'<img src="{_data_uri(written.getvalue(), "jpeg")}" alt="{escape(file.name)}">'


def _item(item: Item) -> str:
    return _thumbnail(item) if isinstance(item, Path) else escape(item)


def _example(example: Example) -> str:
    cells = []
    for found in example.found:
        classes = "item" + (" right" if found.right else "") + ("" if isinstance(found.item, Path) else " text")
        mark = ", right" if found.right else ""
        cells.append(f'<div class="{classes}">{_item(found.item)}<div class="grey">{found.score:.3f}{mark}</div></div>')
    rank = "" if example.rank is None else f'<p class="grey">first right one at place {example.rank:,}</p>'
    shown = f'<div class="query">{_item(example.query)}{rank}</div><div class="found">{"".join(cells)}</div>'
    return f'<div class="example">{shown}</div>'


def _number(value: Any, digits: int, factor: float = 1.0) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return "–"
    return f"{factor * value:,.{digits}f}"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    recalls: list[str] = []
    for direction in ("i2t", "t2i"):
        keys = {key for row in rows for key in row if key.startswith(f"{direction}_recall@")}
        recalls += sorted(keys, key=lambda key: int(key.rpartition("@")[2]))
    header = ["", "epochs", "loss", "cosine similarity", *(f"{k[:3]} R@{k.rpartition('@')[2]}" for k in recalls)]
    header += ["images", "texts"]
    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in header) + "</tr>"]
    for row in rows:
        cells = [
            escape(str(row.get("model", "–"))),
            _number(row.get("epochs"), 0),
            _number(row.get("loss"), 4),
            _number(row.get("cosine_similarity"), 4),
            *(_number(row.get(key), 1, 100.0) for key in recalls),
            _number(row.get("images"), 0),
            _number(row.get("texts"), 0),
        ]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    note = '<p class="grey">Recall in percent, among the images and texts of the row; ties count against the model.</p>'
    return f'<div class="wide"><table>{"".join(lines)}</table></div>{note}'


def _rows_of(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The last evaluation of each split, and the dev evaluation of best mean recall."""
    evaluations = [line for line in metrics if line.get("kind") == "eval"]
    rows = []

    def mean_recall(line: Mapping[str, Any]) -> float:
        values = [float(v) for k, v in line.items() if "_recall@" in k and isinstance(v, (int, float))]
        mean = sum(values) / len(values) if values else -1.0
        return mean if math.isfinite(mean) else -1.0

    dev = [line for line in evaluations if line.get("split") == "dev"]
    if dev:
        best = max(dev, key=mean_recall)
        rows.append({**best, "model": "dev, best epoch", "epochs": best.get("epoch")})
    for split in dict.fromkeys(str(line.get("split", "?")) for line in evaluations):
        last = [line for line in evaluations if str(line.get("split", "?")) == split][-1]
        rows.append({**last, "model": f"{split}, last", "epochs": last.get("epoch")})
    return rows


def write_report(
    run: Path, *, examples: Sequence[Example] | None = None, rows: Sequence[Mapping[str, Any]] | None = None
) -> Path:
    """Write `report.html` into a run folder; it needs no other file and no network to be read.

    Args:
        run: a run folder. `config.json` and `metrics.jsonl` are read where they are there, every PNG in `pictures/` is
            embedded; the training plot is drawn there first.
        examples: queries with what they brought up, in the order to be shown (best and worst, say).
        rows: lines of the result table, with `model` and the keys of `eval --json`, such as `final_table` takes,
            chance among them. None: the evaluations in `metrics.jsonl`.

    Returns:
        The page.

    Raises:
        FileNotFoundError: no such folder. ValueError: a damaged `metrics.jsonl` or `config.json`.
    """
    if not run.is_dir():
        raise FileNotFoundError(f"wanted a run folder, got {str(run)!r}, which is none")
    metrics_file, config_file, pictures = run / "metrics.jsonl", run / "config.json", run / "pictures"
    metrics = read_metrics(metrics_file) if metrics_file.is_file() else []
    if metrics:
        draw_training(metrics, pictures / "training.png")
    table = list(rows) if rows is not None else _rows_of(metrics)
    name = escape(run.resolve().name)
    parts = [f'<h1>{name}</h1><p class="grey">a run of varalign</p>']
    if table:
        parts.append(f"<h2>Result</h2>{_table(table)}")
    files = sorted(pictures.glob("*.png"), key=lambda file: (file.stem != "training", file.stem != "tsne", file.stem))
    if any(file.stem == "tsne" for file in files):  # the sheet holds the single ones
        files = [file for file in files if not file.stem.startswith("tsne_perplexity_")]
    if files:
        shown = [
            f'<figure><img src="{_data_uri(file.read_bytes(), "png")}" alt="{escape(file.stem)}">'
            f"<figcaption>{escape(file.name)}</figcaption></figure>"
            for file in files
        ]
        parts.append(f'<h2>Pictures</h2><div class="pictures">{"".join(shown)}</div>')
    if examples:
        parts.append(f"<h2>Retrieved examples</h2>{''.join(map(_example, examples))}")
    if config_file.is_file():
        try:
            config = json.dumps(json.loads(config_file.read_text(encoding="utf-8")), indent=2, ensure_ascii=False)
        except ValueError as error:
            raise ValueError(f"{config_file.name}: wanted JSON, but it cannot be read as that: {error}") from None
        parts.append(f"<h2>Configuration</h2><pre>{escape(config)}</pre>")
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name} – varalign</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )
    out = run / "report.html"
    write_atomically(out, page.encode())
    return out
