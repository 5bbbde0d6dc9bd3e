"""The style of all plots, and the conversion of a figure to PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from varalign.data.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PictureForm = Literal["png", "pdf", "svg"]
PICTURE_FORMS: tuple[PictureForm, ...] = get_args(PictureForm)
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
    names = axes.get_legend_handles_labels()[1]
    if names:  # above the axes, where it covers no data
        place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.3}
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, ncols=min(3, len(names)), **place)
    else:
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color=GREY)


def picture(figure: Figure, form: PictureForm) -> bytes:
    """The figure as the bytes of a file. A date in it would make equal figures differ."""
    written = io.BytesIO()
    dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    figure.savefig(written, format=form, metadata=dated.get(form))
    return written.getvalue()


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    return picture(figure, "png")


def save_figure(figure: Figure, file: Path) -> Path:
    """Write a figure as PNG, atomically; OSError names the path."""
    write_atomically(file, png(figure))
    return file
