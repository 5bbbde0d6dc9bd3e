"""The style of all plots, and the conversion of a figure to PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from varalign.data.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RED = "#d7263d"  # i2t, images
BLUE = "#1f5fd0"  # t2i, texts
INK = "#22262e"
GREY = "#6b7484"
LINE = "#c5cad3"


def new_figure(width: float, height: float, dpi: int) -> Figure:
    """An empty figure, sides in inches. It is made without pyplot, so the user's backend and figures do not change."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")


def finish(axes: Axes, title: str, below: str) -> None:
    """Set title, x label, grid and legend; axes without a labelled curve show "nothing recorded"."""
    axes.set_title(title, loc="left", fontsize=12, color=INK)
    axes.set_xlabel(below, fontsize=9, color=GREY)
    axes.tick_params(labelsize=9, colors=GREY, length=0)
    axes.grid(color="#e6e9ee", linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LINE)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    else:
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color=GREY)


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()


def save_figure(figure: Figure, file: Path) -> Path:
    """Write a figure as PNG, atomically; OSError names the path."""
    write_atomically(file, png(figure))
    return file
