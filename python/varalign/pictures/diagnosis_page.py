"""The page of a diagnosis: the estimate, plots, and the worst pairs beside better-fitting captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from varalign.pictures.page import card, example, figures, file_name, write_page
from varalign.pictures.style import BLUE, RED, finish, new_figure, png

Floats = NDArray[np.float64]
_KIND_COLOURS = {"learnt": BLUE, "ambiguous": "#9aa3b2", "probably wrong": RED}
_MOST_POINTS = 20_000  # pairs in the scatter plot; more would overlap


@dataclass(frozen=True)
class Suspect:
    """One pair of the page.

    Attributes:
        image: the file, or the image's name if there is no file.
        caption: the pair's caption, or its row as text if captions are not known.
        score: the pair's score, as text.
        better: the best-fitting caption of the data set, if known.
        better_score: its score, as text.
        known_wrong: whether the pair is wrong, if noise was injected; else None.
    """

    image: Path | str
    caption: str
    score: str
    better: str | None = None
    better_score: str | None = None
    known_wrong: bool | None = None


def draw_cartography(
    mean: Floats, variance: Floats, kinds: Sequence[str], kind: NDArray[np.int8], seed: int = 0
) -> bytes:
    """A PNG of pairs by deviation (across) and mean (up) of their probability over epochs.

    Args:
        mean, variance: (T,), NaN for pairs never seen, which are left out.
        kinds: names of the kinds. kind: (T,) index into them, below 0 for pairs never seen.
        seed: of the draw of pairs if there are more than 20,000.
    """
    figure = new_figure(8, 5.2, 130)
    axes = figure.subplots()
    rows = np.flatnonzero(kind >= 0)
    rows = np.random.default_rng(seed).permutation(rows)[:_MOST_POINTS]
    for number, name in enumerate(kinds):
        of_kind = rows[kind[rows] == number]
        label = f"{name} ({int((kind == number).sum()):,})"
        axes.scatter(
            np.sqrt(variance[of_kind]),
            mean[of_kind],
            s=5,
            alpha=0.4,
            linewidths=0,
            color=_KIND_COLOURS[name],
            label=label,
        )
    axes.set_ylim(-0.02, 1.02)
    finish(axes, "mean probability of a pair over epochs", "its deviation over epochs")
    legend = axes.get_legend()
    for handle in [] if legend is None else legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
    return png(figure)


def write_diagnosis_page(
    file: Path,
    title: str,
    lines: Sequence[str],
    pictures: Sequence[tuple[str, bytes | str]],
    suspects: Sequence[Suspect],
) -> Path:
    """Write the page.

    Args:
        file: the HTML file.
        title: name of the data or run.
        lines: the estimate and remarks, a sentence each.
        pictures: caption, and PNG or SVG, of each plot.
        suspects: the pairs with the lowest scores, worst first.

    Returns:
        `file`.
    """
    parts = [f"<p>{escape(line)}</p>" for line in lines]
    if pictures:
        parts.append(figures(pictures))
    if suspects:
        parts.append(f"<h2>The worst {len(suspects):,}</h2>{''.join(map(_suspect, suspects))}")
    return write_page(file, title, "which pairs are wrong, by varalign", parts)


def _suspect(suspect: Suspect) -> str:
    named = f'<div class="grey">{file_name(suspect.image)}</div>' if isinstance(suspect.image, Path) else ""
    truth = {None: "", True: ", made wrong on purpose", False: ", not made wrong on purpose"}[suspect.known_wrong]
    cards = [card(suspect.caption, f"its caption: {suspect.score}{truth}")]
    if suspect.better is not None:
        cards.append(card(suspect.better, f"fits best: {suspect.better_score or ''}", right=True))
    return example(suspect.image, named, cards)
