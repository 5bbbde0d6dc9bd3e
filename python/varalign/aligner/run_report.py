"""Writes a run's report page, and again when a later command has something to add.

What the page shows is kept as `report.json` in the run folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varalign.aligner.evaluate import SplitEmbeddings
from varalign.aligner.showcase import showcase
from varalign.aligner.voice_weights import weights_of
from varalign.canonical.hub_correction import HubCorrection
from varalign.data.checks.split_sizes import split_sizes
from varalign.data.datasets import ImageCaptions
from varalign.data.files import read_bytes, write_atomically
from varalign.inputs.parts import Parts
from varalign.pictures.run_page import write_report
from varalign.runs.folder import RunFolder
from varalign.runs.json_text import json_text

REPORT = "report.json"


def write_run_report(
    run: RunFolder,
    parts: Parts,
    shown: SplitEmbeddings,
    correction: HubCorrection | None,
    rows: Sequence[Mapping[str, Any]],
    *,
    split: str = "test",
) -> None:
    """Write the page of a run that was evaluated on its own data.

    Args:
        run: the run folder.
        parts: model and data. shown: the embeddings of the split whose pairs the page shows.
        correction: of the scores that rank.
        rows: lines of the result table.
        split: that is shown: test, or train where there is no test split.
    """
    data = parts.data
    notes = [*(data.notes if isinstance(data, ImageCaptions) else []), *split_sizes(data)]
    if split != "test":
        notes.insert(0, "No test split: the examples and the map show training pairs, which the model was fitted on.")
    found = showcase(parts, split, shown, correction)
    before = _read(run)
    report: dict[str, Any] = {"rows": list(rows), "showcase": found, "notes": notes}
    report |= {"voices": weights_of(parts.model, run), "training_images": len(data.rows("train"))}
    if before is not None:
        _keep_layouts(before.get("showcase", {}).get("map", {}), found["map"])
        report |= {"diagnosis": before["diagnosis"]} if "diagnosis" in before else {}
    _write(run, report)


def add_layouts(
    run: RunFolder, split: str, rows: NDArray[np.int64], layouts: Mapping[str, NDArray[np.float32]]
) -> None:
    """Add layouts to the map of a run's page, and write the page again; nothing where the run has no page.

    Args:
        run: the run folder.
        split: what was drawn; the map shows the split of the page alone.
        rows: (n,) image rows of the pairs that were drawn.
        layouts: (2n, 2) places by name, the images first.
    """
    report = _read(run)
    if report is None:
        return
    points = report.get("showcase", {}).get("map", {})
    if report["showcase"].get("split") == split and points:
        drawn = {"rows": rows.tolist(), "layouts": {name: _unit(layout) for name, layout in layouts.items()}}
        _keep_layouts(drawn, points)
    _write(run, report)


def add_diagnosis(run: RunFolder, lines: Sequence[str], page: Path, wrong: Mapping[int, float]) -> None:
    """Add what a diagnosis found to a run's page, and write the page again; nothing where the run has no page.

    Args:
        run: the run folder.
        lines: the estimate, a sentence each.
        page: the page of the diagnosis.
        wrong: probability that a pair is wrong, by caption row; the map shows it where it has all of its pairs.
    """
    report = _read(run)
    if report is None:
        return
    report["diagnosis"] = {"lines": list(lines), "page": os.path.relpath(page, run.path)}
    points = report.get("showcase", {}).get("map", {})
    if points and all(row in wrong for row in points["captions"]):
        points["wrong"] = [round(wrong[row], 4) for row in points["captions"]]
    _write(run, report)


def _unit(layout: NDArray[np.float32]) -> list[list[float]]:
    """The places about their middle, the larger half-axis of which is 1."""
    middle = (layout.min(axis=0) + layout.max(axis=0)) / 2
    reach = max(float(np.abs(layout - middle).max()), 1e-12)
    return [[round(float(x), 4), round(float(y), 4)] for x, y in (layout - middle) / reach]


def _keep_layouts(before: Mapping[str, Any], points: dict[str, Any]) -> None:
    """Take over the layouts of a map where it has all of the points."""
    place = {row: at for at, row in enumerate(before.get("rows", []))}
    rows, count = points.get("rows", []), len(place)
    if not rows or not all(row in place for row in rows):
        return
    order = [place[row] for row in rows]
    for name, layout in before["layouts"].items():
        points["layouts"].setdefault(name, [layout[at] for at in (*order, *(count + at for at in order))])


def _read(run: RunFolder) -> dict[str, Any] | None:
    """What the page of a run shows; None where it has none, or a damaged one."""
    try:
        found = json.loads(read_bytes(run.path / REPORT))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "rows" in found else None


def _write(run: RunFolder, report: Mapping[str, Any]) -> None:
    write_atomically(run.path / REPORT, json_text(report).encode())
    write_report(run, report)
