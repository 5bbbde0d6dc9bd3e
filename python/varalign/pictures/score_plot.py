"""The scores of a diagnosis as SVG: no plotting library is loaded for a histogram and two curves."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from varalign.pictures.style import BLUE, GREY, INK, LINE, RED

Floats = NDArray[np.float64]
_WIDTH, _HEIGHT, _HEAD, _FOOT, _BINS = 800, 340, 30, 46, 80


def draw_scores(scores: Floats, wrong_share: float, right: tuple[Floats, Floats], wrong: tuple[Floats, Floats]) -> str:
    """The SVG of the scores' histogram under the two fitted densities.

    Args:
        scores: (n,) finite.
        wrong_share: share of the second density.
        right, wrong: places and densities of right and of wrong pairs, each of integral 1.
    """
    low, high = float(scores.min()) - 0.5, float(scores.max()) + 0.5
    heights, edges = np.histogram(scores, np.linspace(low, high, _BINS + 1), density=True)
    curves = [
        (places[shown], share * density[shown], colour)
        for (places, density), share, colour in ((wrong, wrong_share, RED), (right, 1 - wrong_share, BLUE))
        for shown in [(places >= low) & (places <= high)]
    ]
    top = max(float(heights.max()), *(float(density.max(initial=0.0)) for _, density, _ in curves))

    def x(value: float) -> float:
        return _WIDTH * (value - low) / (high - low)

    def y(density: float) -> float:
        return _HEAD + _HEIGHT * (1 - density / top)

    parts = [
        f'<rect x="{x(left):.1f}" y="{y(height):.1f}" width="{_WIDTH / _BINS:.1f}" height="{y(0) - y(height):.1f}"/>'
        for left, height in zip(edges[:-1].tolist(), heights.tolist(), strict=True)
        if height
    ]
    bars = f'<g fill="#dfe4ec">{"".join(parts)}</g>'
    lines = []
    for places, density, colour in curves:
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(places.tolist(), density.tolist(), strict=True))
        lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
    step = max(1, math.ceil((high - low) / 10))
    ticks = [_text(x(value), y(0) + 18, f"{value}") for value in range(math.ceil(low), math.floor(high) + 1, step)]
    words = [
        _text(0, 16, "scores", "start", INK),
        _text(_WIDTH - 110, 16, "wrong pairs", "end", RED),
        _text(_WIDTH, 16, "right pairs", "end", BLUE),
        _text(_WIDTH / 2, y(0) + 38, "score: 0 and deviation 1 for a wrong pair"),
        f'<line x1="0" x2="{_WIDTH}" y1="{y(0):.1f}" y2="{y(0):.1f}" stroke="{LINE}"/>',
    ]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEAD + _HEIGHT + _FOOT}" role="img" aria-label="histogram of the scores">'
        f"{bars}{''.join(lines)}{''.join(ticks)}{''.join(words)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", colour: str = GREY) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="14" text-anchor="{anchor}" fill="{colour}">{text}</text>'
