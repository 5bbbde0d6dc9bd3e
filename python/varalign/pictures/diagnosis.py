"""The page of a diagnosis: the estimate, the scores drawn, and the worst pairs beside what would fit better."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from varalign.pictures.plots import I2T_COLOUR, T2I_COLOUR, _finish
from varalign.pictures.report import _STYLE, _data_uri, _thumbnail

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
_KIND_COLOURS = {"learnt": T2I_COLOUR, "ambiguous": "#9aa3b2", "probably wrong": I2T_COLOUR}
_MOST_POINTS = 20_000  # drawn of the pairs: more cannot be told apart


@dataclass(frozen=True)
class Suspect:
    """One pair of the page.

    Attributes:
        image: the file, or the image's name where there is none.
        caption: its own caption; a number in words where texts are not known.
        score: what it is ranked by, in words.
        better: the caption of the collection that fits best, if known.
        better_score: its score.
        known_wrong: the truth, where noise was injected on purpose.
    """

    image: Path | str
    caption: str
    score: str
    better: str | None = None
    better_score: str | None = None
    known_wrong: bool | None = None


def draw_scores(
    scores: Floats, wrong_share: float, right: tuple[Floats, Floats], wrong: tuple[Floats, Floats]
) -> bytes:
    """A PNG of the scores' histogram under the two fitted densities.

    Args:
        scores: (n,) finite.
        wrong_share: share of the second density.
        right, wrong: places and densities of right and of wrong pairs, each of integral 1.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), dpi=130, layout="constrained", facecolor="white")
    axes = figure.subplots()
    low, high = float(scores.min()) - 0.5, float(scores.max()) + 0.5
    axes.hist(scores, bins=np.linspace(low, high, 81).tolist(), density=True, color="#dfe4ec")
    for (places, density), share, colour, name in (
        (wrong, wrong_share, I2T_COLOUR, "wrong pairs"),
        (right, 1 - wrong_share, T2I_COLOUR, "right pairs"),
    ):
        shown = (places >= low) & (places <= high)
        axes.plot(places[shown], share * density[shown], color=colour, linewidth=1.8, label=name)
    axes.set_yticks([])
    _finish(axes, "scores", "score: 0 and deviation 1 for a wrong pair")
    return _png(figure)


def draw_cartography(
    mean: Floats, variance: Floats, kinds: Sequence[str], kind: NDArray[np.int8], seed: int = 0
) -> bytes:
    """A PNG of pairs by deviation (across) and mean (up) of their probability over epochs.

    Args:
        mean, variance: (T,), NaN for pairs never seen, which are left out.
        kinds: the names; kind: (T,) index into them, below 0 where never seen.
        seed: draws the pairs shown where there are more than 20,000.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.2), dpi=130, layout="constrained", facecolor="white")
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
    _finish(axes, "mean probability of a pair over epochs", "its deviation over epochs")
    legend = axes.get_legend()
    for handle in [] if legend is None else legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
    return _png(figure)


def diagnosis_page(
    title: str, lines: Sequence[str], pictures: Sequence[tuple[str, bytes]], suspects: Sequence[Suspect]
) -> str:
    """The page as HTML that needs no other file and no network.

    Args:
        title: what was diagnosed.
        lines: the estimate and what else there is to say, a sentence each.
        pictures: captions and PNGs.
        suspects: the worst pairs, worst first.
    """
    parts = [f'<h1>{escape(title)}</h1><p class="grey">which pairs are wrong, by varalign</p>']
    parts += [f"<p>{escape(line)}</p>" for line in lines]
    if pictures:
        shown = [
            f'<figure><img src="{_data_uri(png, "png")}" alt="{escape(name)}">'
            f"<figcaption>{escape(name)}</figcaption></figure>"
            for name, png in pictures
        ]
        parts.append(f'<div class="pictures">{"".join(shown)}</div>')
    if suspects:
        parts.append(f"<h2>The worst {len(suspects):,}</h2>{''.join(map(_suspect, suspects))}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)} – varalign</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _suspect(suspect: Suspect) -> str:
    image = _thumbnail(suspect.image) if isinstance(suspect.image, Path) else escape(suspect.image)
    name = f'<div class="grey">{escape(suspect.image.name)}</div>' if isinstance(suspect.image, Path) else ""
    truth = {None: "", True: ", made wrong on purpose", False: ", not made wrong on purpose"}[suspect.known_wrong]
    cells = [
        f'<div class="item text">{escape(suspect.caption)}<div class="grey">its caption: {escape(suspect.score)}{truth}'
        "</div></div>"
    ]
    if suspect.better is not None:
        cells.append(
            f'<div class="item text right">{escape(suspect.better)}<div class="grey">fits best: '
            f"{escape(suspect.better_score or '')}</div></div>"
        )
    shown = f'<div class="query">{image}{name}</div><div class="found">{"".join(cells)}</div>'
    return f'<div class="example">{shown}</div>'


def _png(figure: Figure) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()
