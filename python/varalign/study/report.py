"""The tables of a study: all cells, all tuning trials, means with intervals, paired differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from varalign.evaluation.intervals import bootstrap
from varalign.runs.csv_table import csv_table
from varalign.runs.json_text import json_text
from varalign.study.grid import Condition, Pack
from varalign.study.inference import METRICS, hits, holm, interval, paired_differences, recalls
from varalign.study.pictures import draw_study
from varalign.study.spec import TUNED, Study
from varalign.study.store import Store

Row = dict[str, Any]


@dataclass
class StudyReport:
    """The results of a study.

    Attributes:
        folder: of the written files.
        cells: a row for each finished cell: axes, tuned options, dev and test recall, range of the weights.
        tuning: a row for each trial: axes, values tried, mean dev score.
        summary: a row for each setting (all axes but the seed): `seeds`, mean and half-width of each metric.
        comparisons: a row for each setting, baseline and metric: difference, interval, p and Holm's p.
        files: paths of the written files.
    """

    folder: Path
    cells: list[Row]
    tuning: list[Row]
    summary: list[Row]
    comparisons: list[Row]
    files: list[Path] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return {
            "study": str(self.folder),
            "cells": len(self.cells),
            "summary": self.summary,
            "comparisons": self.comparisons,
            "files": [str(path) for path in self.files],
        }

    def table(self) -> str:
        """The summary with the primary comparisons, as Markdown."""
        return table(self.summary, self.comparisons)


def write_report(
    study: Study, store: Store, conditions: Sequence[tuple[Condition, Sequence[Pack]]], say: Callable[[str], None]
) -> StudyReport:
    """Write every file of a study from its finished cells.

    Args:
        study: the study.
        store: its results.
        conditions: in order, each with the finished packs of its runs.
        say: called with remarks.
    """
    results: list[tuple[Row, dict[str, Any]]] = []
    tuning: list[Row] = []
    for condition, packs in conditions:
        if study.tune_each_noise or condition.axes["noise"] == study.axes["noise"][0]:
            tuning += [{**condition.axes, **trial, "dev": round(trial["dev"], 6)} for trial in condition.tuned]
        found = [
            (dict(cell.axes), {**store.result(name), "fixed_weight": cell.fixed_weight})
            for pack in packs
            for name, cell in zip(pack.names, pack.cells, strict=True)
        ]
        order = {name: place for place, name in enumerate(study.axes["schedule"])}
        results += sorted(found, key=lambda one: (order[one[0]["schedule"]], one[0]["seed"]))
    cells = [_cell_row(axes, result) for axes, result in results]
    summary = summarise(results)
    if len(results) > 500:
        say(f"comparing {len(results)} runs: this takes a minute or two")
    comparisons = compare(study, results)
    report = StudyReport(store.folder, cells, tuning, summary, comparisons)
    report.files.append(store.write_text("study.json", json_text(study.as_dict(), indent=1) + "\n"))
    for name, rows in (
        ("results.csv", cells),
        ("tuning.csv", tuning),
        ("summary.csv", summary),
        ("comparisons.csv", comparisons),
    ):
        report.files.append(store.write_text(name, csv_text(rows)))
    report.files.append(store.write_text("table.md", report.table() + "\n"))
    broken = sum(not result["finite"] for _, result in results)
    if broken:
        say(f"{broken} of {len(results)} runs had losses that are not finite; their best epoch before that counts")
    if results:
        report.files += draw_study(store.folder / "pictures", summary, results)
    return report


def _cell_row(axes: Row, result: Mapping[str, Any]) -> Row:
    weights = np.asarray(result["w_i2t"])
    spread = {"mean": weights.mean(), "min": weights.min(), "max": weights.max()} if len(weights) else {}
    return {
        **axes,
        **result["options"],
        "fixed_weight": result["fixed_weight"] if axes["schedule"].startswith("fixed") else None,
        "best_epoch": result["best_epoch"],
        "finite": result["finite"],
        "dev": round(result["dev"], 6),
        **{metric: round(value, 6) for metric, value in recalls(result).items()},
        **{f"w_i2t_{name}": round(float(value), 6) for name, value in spread.items()},
    }


def settings(
    results: Iterable[tuple[Row, dict[str, Any]]],
) -> dict[tuple[Any, ...], dict[int, tuple[Row, dict[str, Any]]]]:
    """Results by setting (all axes but the seed), then by seed, in the given order."""
    found: dict[tuple[Any, ...], dict[int, tuple[Row, dict[str, Any]]]] = {}
    for axes, result in results:
        key = tuple(value for name, value in axes.items() if name != "seed")
        found.setdefault(key, {})[axes["seed"]] = (axes, result)
    return found


def summarise(results: Sequence[tuple[Row, dict[str, Any]]]) -> list[Row]:
    """A row for each setting: number of seeds, and each metric's mean with its 95 % half-width over the seeds.

    With one seed, `_low` and `_high` are the interval over test images.
    """
    rows = []
    for runs in settings(results).values():
        axes = {name: value for name, value in next(iter(runs.values()))[0].items() if name != "seed"}
        row: Row = {**axes, "seeds": len(runs)}
        values = [recalls(result) for _, result in runs.values()]
        for metric in METRICS:
            mean, half = interval([value[metric] for value in values])
            row[metric], row[f"{metric}_half_width"] = round(mean, 6), None if np.isnan(half) else round(half, 6)
            if len(values) == 1:
                (_, result), *_ = runs.values()
                low, high = bootstrap(*(part[:, None] for part in hits(result, metric)))[:, 0].tolist()
                row |= {f"{metric}_low": round(low, 6), f"{metric}_high": round(high, 6)}
        rows.append(row)
    return rows


def compare(study: Study, results: Sequence[tuple[Row, dict[str, Any]]]) -> list[Row]:
    """Compare every setting with its counterpart under each baseline, on the seeds that both have.

    For each metric, p-values are corrected over all comparisons of the study. Two baselines that lead to the same
    setting are one comparison, and so are two settings that are each other's baseline. With one seed there is no p,
    because the interval is over images alone and does not cover other seeds.
    """
    by_setting = settings(results)
    pairs: list[tuple[Row, tuple[int, int], int]] = []  # a row's axes and baseline, the two settings, number of seeds
    runs_of: dict[tuple[int, int], tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}  # each pair in one order
    for runs in by_setting.values():
        axes = {name: value for name, value in next(iter(runs.values()))[0].items() if name != "seed"}
        for baseline in study.baselines:
            baseline = _baseline(study, {**axes, **baseline}, baseline)
            other = by_setting.get(tuple({**axes, **baseline}.values()))
            if other is None or other is runs:
                continue
            seeds = [seed for seed in runs if seed in other]
            if not seeds:
                continue
            key = (id(runs), id(other))
            if key[::-1] not in runs_of:
                runs_of[key] = ([runs[seed][1] for seed in seeds], [other[seed][1] for seed in seeds])
            against = " ".join(f"{name}={value}" for name, value in baseline.items())
            pairs.append(({**axes, "against": against}, key, len(seeds)))
    found: dict[tuple[str, tuple[int, int]], Row] = {}
    for metric in METRICS:
        compared = dict(zip(runs_of, paired_differences(list(runs_of.values()), metric), strict=True))
        p_values = {key: one["p"] for key, one in compared.items() if len(runs_of[key][0]) > 1}
        corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
        for key, one in compared.items():
            other_way = {"difference": 0 - one["difference"], "low": 0 - one["high"], "high": 0 - one["low"]}
            for pair, values in ((key, one), (key[::-1], other_way)):
                row = {**values, "p": p_values.get(key), "p_holm": corrected.get(key)}
                found[metric, pair] = {name: None if value is None else round(value, 6) for name, value in row.items()}
    return [
        {**row, "metric": metric, "seeds": seeds, **found[metric, key]}
        for row, key, seeds in pairs
        for metric in METRICS
    ]


def _baseline(study: Study, axes: Row, baseline: Mapping[str, Any]) -> Mapping[str, Any]:
    """The baseline; in conditions that tune no weight, `fixed` replaces `fixed-tuned`."""
    untuned = axes["schedule"] == TUNED and TUNED not in study.schedules(axes)
    return {**baseline, "schedule": "fixed"} if untuned else baseline


def csv_text(rows: Sequence[Row]) -> str:
    """Rows as CSV under one header with the columns of all of them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return csv_table(names, [[row.get(name, "") for name in names] for row in rows]).decode()


def table(summary: Sequence[Row], comparisons: Sequence[Row]) -> str:
    """A Markdown table: recall in per cent ± half-width, and the differences of the mean R@1 from each baseline."""
    if not summary:
        return "no cell is finished yet"
    axes = [name for name in summary[0] if name != "seeds" and not name.startswith(METRICS)]
    baselines = list(dict.fromkeys(row["against"] for row in comparisons))
    found = {
        (tuple(row[name] for name in axes), row["against"]): row for row in comparisons if row["metric"] == METRICS[0]
    }
    short = [metric.replace("_recall", " R").replace("mean R@1", "mean R@1") for metric in METRICS]
    head = [*axes, "seeds", *short, *(f"mean R@1 − ({name})" for name in baselines)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in summary:
        cells = [_axis(row[name]) for name in axes] + [str(row["seeds"])]
        for place, metric in enumerate(METRICS):
            cells.append(f"{100 * row[metric]:.1f}" + ("" if place else _interval(row, metric)))
        cells += [_difference(found.get((tuple(row[axis] for axis in axes), name))) for name in baselines]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _interval(row: Row, metric: str) -> str:
    half = row[f"{metric}_half_width"]
    if half is not None:
        return f" ± {100 * half:.1f}"
    return f" [{100 * row[f'{metric}_low']:.1f}, {100 * row[f'{metric}_high']:.1f}]"


def _axis(value: Any) -> str:
    return f"{value:g} %" if isinstance(value, float) else str(value)


def _difference(row: Row | None) -> str:
    if row is None:
        return "–"
    low, high = 100 * row["low"], 100 * row["high"]
    tested = "one seed" if row["p"] is None else f"p {_p(row['p'])}, Holm {_p(row['p_holm'])}"
    return f"{100 * row['difference']:+.2f} [{low:+.2f}, {high:+.2f}], {tested}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
