"""Ranks and similarities of a split as SVG inside a page: no plotting library is loaded for a few bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from varalign.pictures.style import BLUE, GREY, RED

_WIDTH, _HEIGHT, _FOOT = 460, 220, 26
_LINE = f'<line x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}" stroke="#c5cad3"/>'

_RANKS = {"image → text": RED, "text → image": BLUE}
_PAIRS = {"pairs": RED, "non-pairs": GREY}


def distributions(shown: Mapping[str, Any]) -> str:
    """Two figures: where the queries' first right candidates stand, and how alike pairs and non-pairs are.

    Args:
        shown: `rank_bounds`, `ranks` and `similarities` of a showcase.
    """
    found = shown["similarities"]
    return (
        '<div class="two">'
        + _figure("Place of the first right one, % of queries", _RANKS, _ranks(shown))
        + _figure("Cosine similarity, shares of sum 1", _PAIRS, _similarities(found))
        + "</div>"
    )


def _figure(title: str, key: Mapping[str, str], content: str) -> str:
    names = " ".join(f'<span style="color:{colour}">■</span> {escape(name)}' for name, colour in key.items())
    return (
        f'<figure><figcaption>{escape(title)}<span class="key">{names}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" role="img" aria-label="{escape(title)}">{_LINE}{content}</svg>'
        "</figure>"
    )


def _bar(x: float, width: float, share: float, colour: str, label: str = "") -> str:
    height = max(0.0, min(1.0, share)) * (_HEIGHT - 16)
    y = _HEIGHT - height
    title = f"<title>{escape(label)}</title>" if label else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}">{title}</rect>'


def _text(x: float, text: str, y: float = _HEIGHT + 17, size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{GREY}" text-anchor="middle">{escape(text)}</text>'


def _ranks(shown: Mapping[str, Any]) -> str:
    bounds = shown["rank_bounds"]
    lows = [1, *(bound + 1 for bound in bounds)]
    names = [f"{low:,}" if low == bound else f"{low:,}–{bound:,}" for low, bound in zip(lows, bounds, strict=False)]
    names.append(f"above {bounds[-1]:,}")
    while len(names) > 2 and not any(shares[len(names) - 1] for shares in shown["ranks"].values()):
        names.pop()  # no query is so far from its right one, or there are not so many candidates
    highest = max(share for shares in shown["ranks"].values() for share in shares) or 1.0
    step = _WIDTH / len(names)
    parts = []
    for place, name in enumerate(names):
        for number, (direction, colour) in enumerate((("i2t", RED), ("t2i", BLUE))):
            share = shown["ranks"][direction][place]
            x = place * step + step * (0.1 + 0.4 * number)
            parts.append(_bar(x, 0.38 * step, share / highest, colour))
            parts.append(
                _text(x + 0.19 * step, f"{100 * share:.0f}", _HEIGHT - share / highest * (_HEIGHT - 16) - 4, 10)
            )
        parts.append(_text((place + 0.5) * step, name))
    return "".join(parts)


def _similarities(found: Mapping[str, Sequence[float]]) -> str:
    edges = found["edges"]
    low, high = edges[0], edges[-1]
    highest = max([*found["pairs"], *found["non_pairs"]]) or 1.0
    width = _WIDTH / (len(edges) - 1)
    parts = []
    for key, colour in (("non_pairs", f"{GREY}80"), ("pairs", f"{RED}80")):
        parts += [_bar(at * width, width, share / highest, colour) for at, share in enumerate(found[key]) if share]
    for part in range(1, 6):
        value = low + (high - low) * part / 6
        parts.append(_text(_WIDTH * part / 6, f"{value:.2f}"))
    return "".join(parts)
