"""Plots of a training run: loss, direction weights, recall and logit scale."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from varalign.data.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

I2T_COLOUR = "#d7263d"
T2I_COLOUR = "#1f5fd0"
_INK = "#22262e"
_GREY = "#6b7484"


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line cut off by an interruption is left out.

    Raises FileNotFoundError where the file is missing, ValueError naming the line that is no JSON object.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            raise ValueError(f"{file.name} line {number}: wanted one JSON object, got {line[:60]!r}") from None
        if not isinstance(value, dict):
            raise ValueError(f"{file.name} line {number}: wanted one JSON object, got {line[:60]!r}")
        found.append(value)
    return found


def _column(lines: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    """The values under `key`; missing, null and what is no number become NaN, which leaves a gap in a curve."""
    values = (line.get(key) for line in lines)
    return np.array([float(v) if isinstance(v, (int, float)) else math.nan for v in values], dtype=np.float64)


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A running mean over about a fortieth of the run, both sides, NaN left out."""
    reach = len(values) // 80
    finite = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    first = np.clip(np.arange(len(values)) - reach, 0, None)
    last = np.clip(np.arange(len(values)) + reach + 1, None, len(values))
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = (total[last] - total[first]) / (count[last] - count[first])
    return mean


def _curve(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], colour: str, name: str) -> None:
    """The values faint and their running mean strong; few values get marks, so that a single one can be seen."""
    if not np.isfinite(y).any():
        return
    if len(y) > 100:
        axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.7)
        y = _smoothed(y)
    axes.plot(x, y, color=colour, linewidth=1.8, label=name, marker="o" if len(y) <= 40 else None, markersize=3.5)


def _finish(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, color=_INK)
    axes.set_xlabel(below, fontsize=9, color=_GREY)
    axes.tick_params(labelsize=9, colors=_GREY, length=0)
    axes.grid(color="#e6e9ee", linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#c5cad3")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, labelcolor=_INK)
    else:
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color=_GREY)


def save_figure(figure: Figure, out: Path) -> None:
    """Write a figure as PNG, whole or not at all; OSError names the path."""
    png = io.BytesIO()
    figure.savefig(png, format="png")
    write_atomically(out, png.getvalue())


def draw_training(metrics: Path | Sequence[Mapping[str, Any]], out: Path) -> Path:
    """Draw loss by direction, the two weights, dev recall over epochs and the logit scale into one PNG.

    Args:
        metrics: a `metrics.jsonl`, or its lines as dictionaries. `step` lines give `loss_i2t`, `loss_t2i`, `w_i2t`,
            `w_t2i`, `logit_scale` over `step`; `eval` lines of the split `dev` give `i2t_recall@K`, `t2i_recall@K`
            over `epoch`. What is missing or NaN leaves a gap.
        out: the PNG; its folder is made if missing.

    Returns:
        `out`.

    Raises:
        FileNotFoundError, ValueError: as in `read_metrics`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    lines = read_metrics(metrics) if isinstance(metrics, Path) else list(metrics)
    steps = [line for line in lines if line.get("kind") == "step"]
    dev = [line for line in lines if line.get("kind") == "eval" and line.get("split", "dev") == "dev"]
    at = _column(steps, "step")
    figure = Figure(figsize=(12, 7.6), dpi=150, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)  # type: ignore[union-attr, call-arg]
    loss, weights, recall, scale = figure.subplots(2, 2).ravel()

    for axes, stem in ((loss, "loss"), (weights, "w")):
        _curve(axes, at, _column(steps, f"{stem}_i2t"), I2T_COLOUR, "image → text")
        _curve(axes, at, _column(steps, f"{stem}_t2i"), T2I_COLOUR, "text → image")
    _finish(loss, "loss", "step")
    weights.axhline(0.5, color="#c5cad3", linewidth=1.0)
    low, high = weights.get_ylim()
    reach = max(0.02, abs(low - 0.5), abs(high - 0.5))  # symmetric about one half, and rounding is not blown up
    weights.set_ylim(0.5 - reach, 0.5 + reach)
    _finish(weights, "direction weights", "step")

    epochs = _column(dev, "epoch")
    keys = [key for line in dev for key in line if key.startswith("i2t_recall@")]
    ks = sorted({int(key.rpartition("@")[2]) for key in keys if key.rpartition("@")[2].isdigit()})
    for place, k in enumerate(ks):
        for direction, colour, arrow in (("i2t", I2T_COLOUR, "i→t"), ("t2i", T2I_COLOUR, "t→i")):
            values = _column(dev, f"{direction}_recall@{k}")
            if np.isfinite(values).any():
                style = ("-", "--", ":", "-.")[place % 4]
                recall.plot(epochs, values, style, color=colour, linewidth=1.8, label=f"{arrow} R@{k}")
                recall.plot(epochs, values, "o", color=colour, markersize=3 if len(epochs) <= 60 else 0)
    recall.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    recall.set_ylim(bottom=0.0)
    sizes = {(line.get("images"), line.get("texts")) for line in dev}
    images, texts = sizes.pop() if len(sizes) == 1 else (None, None)
    counted = f", {images:,} images and {texts:,} texts" if isinstance(images, int) and isinstance(texts, int) else ""
    _finish(recall, f"recall on dev{counted}", "epoch")
    if recall.get_legend() is not None:
        recall.legend(frameon=False, fontsize=9, labelcolor=_INK, ncols=max(1, len(ks)))

    _curve(scale, at, _column(steps, "logit_scale"), "#3f7d4e", "1/τ")
    _finish(scale, "logit scale", "step")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, out)
    return out
