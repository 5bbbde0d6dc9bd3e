"""The report page of a run, one self-contained file: whether image and text came together, and where they did not.

From the top: the verdict, retrieved examples, the map, distributions, curves, t-SNE, the data, the options.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from varalign.data.files import is_there
from varalign.options.config import TrainConfig
from varalign.options.fields import OPTIONS, RECIPE
from varalign.options.recipe import fill
from varalign.options.rules import idle_options
from varalign.pictures.distributions import distributions
from varalign.pictures.map import map_part
from varalign.pictures.page import card, example, figures, write_page
from varalign.runs.folder import RunFolder
from varalign.runs.profile import read_table
from varalign.runs.result_table import result_columns
from varalign.runs.verdict import training_lines, verdict, voices_sentence

_KINDS = {"best": "found first", "typical": "around the middle", "worst": "found last"}
_DIRECTIONS = {"i2t": "Captions found for an image", "t2i": "Images found for a caption"}


def write_report(run: RunFolder, report: Mapping[str, Any]) -> Path:
    """Write `report.html` into a run folder; plots are drawn into `pictures/` first.

    Args:
        run: a run folder; every PNG in its `pictures/` is embedded.
        report: `rows`, lines of the result table as `result_columns` takes them, the model's first; and where known
            `showcase`, as `varalign.aligner.showcase` gives it, `voices`, their weights, `notes`, lines on the data,
            `training_images`, their number, and `diagnosis`, `lines` of an estimate and the path of its `page`.

    Returns:
        The page.

    Raises:
        RunError: a damaged `metrics.jsonl` or `config.json`.
    """
    rows, shown = report["rows"], report.get("showcase") or {}
    lines, config = list(run.read_metrics()), run.config()
    trained = any(line.get("kind") == "step" for line in lines)
    if trained:
        _draw_curves(run, lines)
    items = _Items(shown)
    said = [voices_sentence(report["voices"])] if report.get("voices") else []
    said += training_lines(lines, config.get("options", {}))
    parts = [_verdict(rows, shown), _table(rows), _paragraphs(said)]
    parts += [_examples(direction, shown, items) for direction in _DIRECTIONS if shown.get("examples")]
    if shown.get("map", {}).get("layouts"):
        parts.append(f"<h2>Map of the shared space</h2>{map_part(shown)}")
    if shown:
        parts.append(f"<h2>Ranks and similarities</h2>{distributions(shown)}")
    pictures = _pictures(run)
    if pictures:
        parts.append(f"<h2>{'Curves and pictures' if trained else 'Pictures'}</h2>{figures(pictures)}")
    if report.get("diagnosis"):
        found = report["diagnosis"]
        link = (
            f'<p><a href="{escape(quote(found["page"]))}">the worst pairs, and captions that would fit better</a></p>'
        )
        parts.append(f"<h2>Wrong pairs</h2>{_paragraphs(found['lines'])}{link}")
    if report.get("notes"):
        parts.append(f"<h2>Data</h2>{_paragraphs(report['notes'])}")
    profile = "\n".join(read_table(run.profile))
    if profile:
        parts.append(f"<h2>Where the time went</h2><pre>{escape(profile)}</pre>")
    parts.append(f"<h2>Options</h2>{_options(config, report.get('training_images'))}")
    return write_page(run.path / "report.html", run.path.resolve().name, "a run of varalign", parts)


def _draw_curves(run: RunFolder, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw the plot of training where it is older than the metrics: the plotting library takes a second to load."""
    file = run.pictures / "training.png"
    if not file.is_file() or file.stat().st_mtime_ns < run.metrics.stat().st_mtime_ns:
        from varalign.pictures.plots import draw_training

        draw_training(lines, file)


class _Items:
    """The images and texts that the numbers of a showcase stand for."""

    def __init__(self, shown: Mapping[str, Any]) -> None:
        self._images, self._texts = shown.get("images", []), shown.get("texts", [])

    def __call__(self, side: str, place: int) -> str | Path:
        """An image as its file where it is there, else its name; a text as it is."""
        if side == "text":
            return str(self._texts[place])
        name, file = self._images[place]
        return Path(file) if file is not None and is_there(file) else str(name)


def _verdict(rows: Sequence[Mapping[str, Any]], shown: Mapping[str, Any]) -> str:
    first, *others = verdict(rows, shown.get("collapsed", []), shown.get("split", "test"))
    return f'<p class="verdict">{escape(first)}</p>{_paragraphs(others)}'


def _paragraphs(lines: Iterable[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns, note = result_columns(rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = [
        "".join(
            f'<td data-label="{escape(name)}">{escape(cell)}</td>' for name, cell in zip(columns, cells, strict=True)
        )
        for cells in zip(*columns.values(), strict=True)
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    note = f"{note} Ties count against the model.".lstrip()
    return (
        f'<div class="wide"><table class="result"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="grey">{escape(note)}</p>'
    )


def _examples(direction: str, shown: Mapping[str, Any], items: _Items) -> str:
    """Queries with their candidates, a tab for each kind and one for the hubs."""
    asked, answers = ("image", "text") if direction == "i2t" else ("text", "image")
    tabs: list[tuple[str, str]] = []
    for kind, name in _KINDS.items():
        entries = [entry for entry in shown["examples"][direction] if entry["kind"] == kind]
        if entries:
            tabs.append((name, "".join(_example(entry, asked, answers, items) for entry in entries)))
    queries = shown["queries"][direction]
    hubs = [
        card(items(answers, place), f"first for {count:,} of {queries:,} queries", right=False)
        for place, count in shown["hubs"][direction]
    ]
    if hubs:
        tabs.append(("hubs", f'<div class="found hubs">{"".join(hubs)}</div>'))
    return f"<h2>{_DIRECTIONS[direction]}</h2>{_tabs(direction, tabs)}"


def _example(entry: Mapping[str, Any], asked: str, answers: str, items: _Items) -> str:
    cards = [
        card(items(answers, place), f"{score:.3f}{', right' if right else ''}", right=right)
        for place, score, right in entry["found"]
    ]
    rank = f'<p class="grey">first right one at place {entry["rank"]:,}</p>'
    return example(items(asked, entry["query"]), rank, cards)


def _tabs(name: str, tabs: Sequence[tuple[str, str]]) -> str:
    """Tabs that work without a script."""
    parts = []
    for number, (title, content) in enumerate(tabs):
        checked = " checked" if number == 0 else ""
        key = f"{name}-{number}"
        parts.append(
            f'<input type="radio" name="{name}" id="{key}"{checked}><label for="{key}">{escape(title)}</label>'
            f"<section>{content}</section>"
        )
    return f'<div class="tabs">{"".join(parts)}</div>'


def _pictures(run: RunFolder) -> list[tuple[str, bytes]]:
    """Every PNG of the run: the curves first, and the sheet of all t-SNE plots for the single ones."""
    order = ("training", "tsne")
    files = sorted(run.pictures.glob("*.png"), key=lambda file: (*(file.stem != name for name in order), file.stem))
    if any(file.stem == "tsne" for file in files):
        files = [file for file in files if not file.stem.startswith("tsne_perplexity_")]
    return [(file.name, file.read_bytes()) for file in files]


def _options(config: Mapping[str, Any], images: int | None) -> str:
    """The options that differ from the defaults, and the whole configuration folded.

    images: in training; where they are known, what differs from the recipe for so many is shown too.
    """
    options, usual = config.get("options", {}), TrainConfig().as_dict()
    known = TrainConfig(**{name: value for name, value in options.items() if name in OPTIONS})
    unsaid, idle = replace(known, **{name: usual[name] for name in RECIPE}), idle_options(known)
    recipe = dict.fromkeys(RECIPE) if images is None else fill(unsaid, images).as_dict()
    told = {
        name: value
        for name, value in options.items()
        if name in OPTIONS
        and value not in (None, usual.get(name))
        and (name not in RECIPE or (name not in idle and recipe[name] not in (None, value)))
    }
    lines = " ".join(f"{OPTIONS[name].flag} {value}" for name, value in told.items())
    whole = json.dumps(config, indent=2, ensure_ascii=False)
    return (
        f"<pre>varalign train {escape(lines)}</pre><details><summary>All of config.json</summary>"
        f"<pre>{escape(whole)}</pre></details>"
    )
