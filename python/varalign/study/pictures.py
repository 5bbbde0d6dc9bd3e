"""The plots of a study: recall against the data fraction, recall against noise, w_i2t over the steps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from varalign.data.noise import NOISE_KINDS, parse_noise
from varalign.pictures.style import new_figure, save_figure
from varalign.study.inference import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
COLOURS = ("#2f5d9b", "#c8553d", "#3f7d4e", "#8a5fa8", "#c89b2b", "#4c9aa6", "#8d6e63", "#6b7280")
MARKS = "os^Dv<>P"
STYLES = ("-", "--", ":", "-.")
# Columns that have a fixed place in every plot; the other columns of a row are further axes of the study.
PLACED = {"schedule", "fraction", "noise", "seed", "seeds", *METRICS, *(f"{metric}_half_width" for metric in METRICS)}


def draw_study(folder: Path, summary: Sequence[Row], results: Sequence[tuple[Row, Mapping[str, Any]]]) -> list[Path]:
    """Draw the plots for which the study has an axis; returns the PNG files.

    Args:
        folder: of the plots; made if missing.
        summary: the rows of `summarise`.
        results: axes and results of the finished cells.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [_weights_over_steps(folder / "weights.png", results)]
    noises = list(dict.fromkeys(row["noise"] for row in summary))
    fractions = sorted({row["fraction"] for row in summary})
    if len(fractions) > 1:
        drawn.append(_recall_lines(folder / "recall_by_fraction.png", summary, "fraction", "noise", noises))
    if len(noises) > 1:
        drawn.append(_recall_lines(folder / "recall_by_noise.png", summary, "noise", "fraction", fractions))
    return drawn


def _damage(noise: str) -> tuple[str, float]:
    """The kinds of a noise joined by "+", "" for none, and the highest of their rates."""
    found = parse_noise(noise)
    rates = {kind: float(getattr(found, kind.replace("-", "_"))) for kind in NOISE_KINDS}
    return "+".join(kind for kind, rate in rates.items() if rate > 0), max(rates.values())


def _rest(row: Row) -> str:
    """The values of the further axes, such as a start or a loss."""
    return " ".join(str(value) for name, value in row.items() if name not in PLACED)


def _panels(count: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    """A figure with `count` panels side by side."""
    figure = new_figure(5.2 * count, height, 130)
    panels = figure.subplots(1, count, squeeze=False)[0]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _recall_lines(out: Path, summary: Sequence[Row], along: str, apart: str, values: Sequence[Any]) -> Path:
    """Mean R@1 along one axis of the study: a panel for each value of the other, a line for each further setting."""
    figure, panels = _panels(len(values), 4.6)
    names = list(dict.fromkeys((row["schedule"], _rest(row)) for row in summary))
    # All rates of one kind of noise (or of one combination of kinds) form a line, which begins at the undamaged rows.
    by_noise = along == "noise"
    kinds = list(dict.fromkeys(_damage(row["noise"])[0] for row in summary)) if by_noise else [""]
    kinds = [kind for kind in kinds if kind] or [""]
    for panel, value in zip(panels, values, strict=True):
        for (schedule, setting), kind in itertools.product(names, kinds):
            rows = [
                row
                for row in summary
                if (row["schedule"], _rest(row), row[apart]) == (schedule, setting, value)
                and (not by_noise or _damage(row["noise"])[0] in ("", kind))
            ]
            if rows:
                label = " ".join(word for word in (schedule, setting, kind if len(kinds) > 1 else "") if word)
                _recall_line(panel, rows, by_noise, names, label)
        if not by_noise:
            panel.set_xscale("log")
        panel.set_xlabel("share damaged" if by_noise else "per cent of the training images")
        panel.set_ylabel("mean of i2t and t2i R@1, %")
        panel.set_title(f"{apart} {value:g} %" if isinstance(value, float) else f"{apart}: {value}", loc="left")
        panel.grid(color="#e6e9ee", linewidth=0.8)
    panels[0].legend(frameon=False, fontsize=7)
    return save_figure(figure, out)


def _recall_line(
    panel: Axes, rows: Sequence[Row], by_noise: bool, names: Sequence[tuple[str, str]], label: str
) -> None:
    """One line with its intervals: colour and mark by the schedule, style by the setting of the further axes."""
    place = list(dict.fromkeys(schedule for schedule, _ in names)).index(rows[0]["schedule"])
    style = list(dict.fromkeys(setting for _, setting in names)).index(_rest(rows[0]))
    points = sorted(
        ((_damage(row["noise"])[1] if by_noise else row["fraction"], row) for row in rows), key=lambda p: p[0]
    )
    x = np.array([where for where, _ in points])
    # A small horizontal offset for each schedule keeps coinciding intervals apart.
    aside = (place - len({schedule for schedule, _ in names}) / 2) * 0.012
    panel.errorbar(
        x + aside * 0.3 if by_noise else x * (1 + aside),
        [100 * row["mean_recall@1"] for _, row in points],
        yerr=100 * np.array([row["mean_recall@1_half_width"] or np.nan for _, row in points]),
        color=COLOURS[place % len(COLOURS)],
        linestyle=STYLES[style % len(STYLES)],
        marker=MARKS[place % len(MARKS)],
        markersize=4,
        linewidth=1.3,
        capsize=2,
        label=label,
    )


def _weights_over_steps(out: Path, results: Sequence[tuple[Row, Mapping[str, Any]]]) -> Path:
    """w_i2t (w_t2i is 1 − w_i2t) over the run: a panel for each fraction, a line for each run of its first seed.

    Colour shows the schedule, line style the start or loss; runs on damaged pairs are drawn fainter.
    """
    fractions = sorted({axes["fraction"] for axes, _ in results})
    schedules = [s for s in dict.fromkeys(axes["schedule"] for axes, _ in results) if s not in ("random", "replay")]
    settings = list(dict.fromkeys(_rest(axes) for axes, _ in results))
    figure, panels = _panels(len(fractions), 3.8)
    for panel, fraction in zip(panels, fractions, strict=True):
        labelled: set[str] = set()
        first = min(axes["seed"] for axes, _ in results if axes["fraction"] == fraction)
        for axes, result in results:
            if (axes["fraction"], axes["seed"]) != (fraction, first) or axes["schedule"] not in schedules:
                continue
            setting = _rest(axes)
            name = f"{axes['schedule']} {setting}".strip()
            weights = np.asarray(result["w_i2t"])
            panel.plot(
                np.arange(1, len(weights) + 1) / max(1, len(weights)),
                weights,
                color=COLOURS[schedules.index(axes["schedule"]) % len(COLOURS)],
                linestyle=STYLES[settings.index(setting) % len(STYLES)],
                linewidth=1.0,
                alpha=0.4 if _damage(axes["noise"])[0] else 1.0,
                label=None if name in labelled else name,
            )
            labelled.add(name)
        panel.axhline(0.5, color="#c5cad3", linewidth=1.0, zorder=0)
        panel.set_title(f"{fraction:g} % of the images", loc="left")
        panel.set_xlabel("share of the run")
        panel.set_ylabel("weight of image → text")
    panels[0].legend(frameon=False, fontsize=7)
    return save_figure(figure, out)
