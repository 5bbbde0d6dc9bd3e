"""The pictures of a study: recall against the data fraction, recall against noise, the two weights over steps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from varalign.data.noise import NOISE_KINDS, parse_noise
from varalign.study.inference import METRICS

Row = Mapping[str, Any]
COLOURS = ("#2f5d9b", "#c8553d", "#3f7d4e", "#8a5fa8", "#c89b2b", "#4c9aa6", "#8d6e63", "#6b7280")
MARKS = "os^Dv<>P"
STYLES = ("-", "--", ":", "-.")
# What every picture has a place for; the other columns of a row are further axes.
PLACED = {"schedule", "fraction", "noise", "seed", "seeds", *METRICS, *(f"{metric}_half_width" for metric in METRICS)}


def draw_study(folder: Path, summary: Sequence[Row], results: Sequence[tuple[Row, Mapping[str, Any]]]) -> list[Path]:
    """Draw what the study has axes for; returns the PNGs.

    Args:
        folder: of the pictures; made if missing.
        summary: as `summarise` gives it.
        results: axes and results of the cells that are done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [weights_over_steps(folder / "weights.png", results)]
    noises = list(dict.fromkeys(row["noise"] for row in summary))
    fractions = sorted({row["fraction"] for row in summary})
    if len(fractions) > 1:
        drawn.append(_lines(folder / "recall_by_fraction.png", summary, "fraction", "noise", noises))
    if len(noises) > 1:
        drawn.append(_lines(folder / "recall_by_noise.png", summary, "noise", "fraction", fractions))
    return drawn


def _damage(noise: str) -> tuple[str, float]:
    """The kinds of a noise together, "" where there is none, and the highest of their rates."""
    found = parse_noise(noise)
    rates = {kind: float(getattr(found, kind.replace("-", "_"))) for kind in NOISE_KINDS}
    return "+".join(kind for kind, rate in rates.items() if rate > 0), max(rates.values())


def _rest(row: Row) -> str:
    """The values of the axes that are neither drawn along, nor panels, nor schedules: a start, a loss."""
    return " ".join(str(value) for name, value in row.items() if name not in PLACED)


def _lines(out: Path, summary: Sequence[Row], along: str, apart: str, panels: Sequence[Any]) -> Path:
    """Mean R@1 along one axis of the study, one panel a value of the other, one line a setting of all further axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 4.6), dpi=130, layout="constrained", facecolor="white")
    shown = figure.subplots(1, len(panels), squeeze=False)[0]
    names = list(dict.fromkeys((row["schedule"], _rest(row)) for row in summary))
    settings = list(dict.fromkeys(setting for _, setting in names))
    schedules = list(dict.fromkeys(schedule for schedule, _ in names))
    # Damage of one kind (or of the same kinds together) is a line; what is undamaged is where every such line begins.
    by_noise = along == "noise"
    kinds = list(dict.fromkeys(_damage(row["noise"])[0] for row in summary)) if by_noise else [""]
    kinds = [kind for kind in kinds if kind] or [""]

    def where(row: Row) -> float:
        return float(_damage(row["noise"])[1] if by_noise else row[along])

    for axes, panel in zip(shown, panels, strict=True):
        for (schedule, setting), kind in itertools.product(names, kinds):
            rows = [
                row
                for row in summary
                if (row["schedule"], _rest(row), row[apart]) == (schedule, setting, panel)
                and (not by_noise or _damage(row["noise"])[0] in ("", kind))
            ]
            if not rows:
                continue
            rows.sort(key=where)
            place = schedules.index(schedule)
            x = np.array([where(row) for row in rows])
            half = np.array([row["mean_recall@1_half_width"] or np.nan for row in rows])
            # Lines lie on top of one another: each a little aside, so that their intervals can be told apart.
            aside = (place - len(schedules) / 2) * 0.012
            x = x + aside * 0.3 if by_noise else x * (1 + aside)
            axes.errorbar(
                x,
                [100 * row["mean_recall@1"] for row in rows],
                yerr=100 * half,
                color=COLOURS[place % len(COLOURS)],
                linestyle=STYLES[settings.index(setting) % len(STYLES)],
                marker=MARKS[place % len(MARKS)],
                markersize=4,
                linewidth=1.3,
                capsize=2,
                label=" ".join(word for word in (schedule, setting, kind if len(kinds) > 1 else "") if word),
            )
        if along == "fraction":
            axes.set_xscale("log")
            axes.set_xlabel("per cent of the training images")
        else:
            axes.set_xlabel("share damaged")
        axes.set_ylabel("mean of i2t and t2i R@1, %")
        axes.set_title(f"{apart} {panel:g} %" if isinstance(panel, float) else f"{apart}: {panel}", loc="left")
        axes.grid(color="#e6e9ee", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    shown[0].legend(frameon=False, fontsize=7)
    figure.savefig(out)
    return out


def weights_over_steps(out: Path, results: Sequence[tuple[Row, Mapping[str, Any]]]) -> Path:
    """w_i2t over the run, one panel a fraction, each line a run of its first seed; w_t2i is the rest.

    A schedule has a colour, a start or loss a line style; runs on damaged pairs are drawn fainter.
    """
    from matplotlib.figure import Figure

    fractions = sorted({axes["fraction"] for axes, _ in results})
    schedules = [s for s in dict.fromkeys(axes["schedule"] for axes, _ in results) if s not in ("random", "replay")]
    settings = list(dict.fromkeys(_rest(axes) for axes, _ in results))
    figure = Figure(figsize=(5.2 * len(fractions), 3.8), dpi=130, layout="constrained", facecolor="white")
    shown = figure.subplots(1, len(fractions), squeeze=False)[0]
    for panel, fraction in zip(shown, fractions, strict=True):
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
        panel.spines[["top", "right"]].set_visible(False)
    shown[0].legend(frameon=False, fontsize=7)
    figure.savefig(out)
    return out
