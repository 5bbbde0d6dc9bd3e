"""Plots of a training run: loss, direction weights, recall and logit scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from varalign.pictures.style import BLUE, GREY, INK, LINE, RED, finish, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _column(lines: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    """The values under `key`; a missing value, null or anything but a number becomes NaN, a gap in the curve."""
    values = (line.get(key) for line in lines)
    return np.array([float(v) if isinstance(v, (int, float)) else math.nan for v in values], dtype=np.float64)


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A centred running mean over about a fortieth of the run, without NaN."""
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
    """Draw the running mean, with the values fainter below; up to 40 values get markers, so that one is visible."""
    if not np.isfinite(y).any():
        return
    if len(y) > 100:
        axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.7)
        y = _smoothed(y)
    axes.plot(x, y, color=colour, linewidth=1.8, label=name, marker="o" if len(y) <= 40 else None, markersize=3.5)


def draw_training(lines: Sequence[Mapping[str, Any]], out: Path) -> Path:
    """Draw loss by direction, the two weights, dev recall over epochs and the logit scale into one PNG.

    Args:
        lines: of a `metrics.jsonl`. `step` lines give `loss_i2t`, `loss_t2i`, `w_i2t`, `w_t2i`, `logit_scale` over
            `step`; `eval` lines of the split `dev` give `i2t_recall@K`, `t2i_recall@K` over `epoch`. A missing value
            or NaN leaves a gap.
        out: the PNG; its folder is made if missing.

    Returns:
        `out`.
    """
    steps = [line for line in lines if line.get("kind") == "step"]
    dev = [line for line in lines if line.get("kind") == "eval" and line.get("split", "dev") == "dev"]
    at = _column(steps, "step")
    figure = new_figure(12, 7.6, 150)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)  # type: ignore[union-attr, call-arg]
    loss, weights, recall, scale = figure.subplots(2, 2).ravel()
    for axes, stem in ((loss, "loss"), (weights, "w")):
        _curve(axes, at, _column(steps, f"{stem}_i2t"), RED, "image → text")
        _curve(axes, at, _column(steps, f"{stem}_t2i"), BLUE, "text → image")
    finish(loss, "loss", "step")
    weights.axhline(0.5, color=LINE, linewidth=1.0)
    weights.set_ylim(0.0, 1.0)
    finish(weights, "direction weights", "step")
    _recall(recall, dev)
    _curve(scale, at, _column(steps, "logit_scale"), "#3f7d4e", "1/τ")
    finish(scale, "logit scale", "step")
    for axes in (loss, weights, recall, scale):
        axes.xaxis.get_major_locator().set_params(integer=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    return save_figure(figure, out)


def _recall(recall: Axes, dev: Sequence[Mapping[str, Any]]) -> None:
    """Draw each direction's Recall@K on dev over the epochs, with the numbers of candidates in the title."""
    from matplotlib.ticker import PercentFormatter

    epochs = _column(dev, "epoch")
    keys = [key for line in dev for key in line if key.startswith("i2t_recall@")]
    ks = sorted({int(key.rpartition("@")[2]) for key in keys if key.rpartition("@")[2].isdigit()})
    for place, k in enumerate(ks):
        for direction, colour, arrow in (("i2t", RED, "i→t"), ("t2i", BLUE, "t→i")):
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
    if isinstance(images, int) and images > 0:
        recall.axhline(1 / images, color=GREY, linewidth=1.0, linestyle=(0, (1, 2)), label="t→i R@1 by chance")
    finish(recall, f"recall on dev{counted}", "epoch")
    if recall.get_legend() is not None:
        below: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.0, -0.16)}
        recall.legend(frameon=False, fontsize=9, labelcolor=INK, ncols=len(ks) + 1, **below)
