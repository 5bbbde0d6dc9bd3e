"""The histogram of scores is drawn to scale."""

from __future__ import annotations

import re

import numpy as np
from varalign.pictures.score_plot import draw_scores


def test_bars_and_curves_are_drawn_to_one_scale() -> None:
    """Half of the scores are 0, half 7: two bars of one height, 0.5 / 0.1 wide = density 5, above both densities."""
    places = np.linspace(-5.0, 12.0, 50)
    density = np.full(50, 0.5)
    svg = draw_scores(np.repeat([0.0, 7.0], 10), 0.5, (places, density), (places, density / 2))
    bars = [
        [float(value) for value in bar]
        for bar in re.findall(r'x="([\d.]+)" y="([\d.]+)" width="10.0" height="([\d.]+)"', svg)
    ]
    assert bars == [[50.0, 30.0, 340.0], [750.0, 30.0, 340.0]]
    red, blue = re.findall(r'stroke="(#\w+)" stroke-width="2" points="([^"]+)"', svg)
    heights = [{float(point.split(",")[1]) for point in points.split()} for _, points in (red, blue)]
    assert heights == [{370 - 340 * 0.125 / 5}, {370 - 340 * 0.25 / 5}]
    assert re.findall(r">(-?\d+)</text>", svg) == [str(value) for value in range(8)]
