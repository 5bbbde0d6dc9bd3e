"""The page of near-duplicates: each pair of images side by side, pairs in two splits first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from varalign.data.checks.near_duplicates import alike
from varalign.pictures.page import card, write_page

MOST = 200  # pairs on the page: 20 kB each


def write_near_duplicates_page(file: Path, title: str, pairs: Sequence[Mapping[str, Any]]) -> Path:
    """Write the page.

    Args:
        file: the HTML file; its folder is there.
        title: name of the data.
        pairs: as `Report.near_duplicates` has them.

    Returns:
        `file`.
    """
    across = [pair for pair in pairs if _in_two_splits(pair)]
    shown = [*across, *(pair for pair in pairs if not _in_two_splits(pair))][:MOST]
    lines = f"{len(pairs):,} pairs, {len(across):,} of them in two splits"
    rest = f"; the first {MOST:,} are shown" if len(pairs) > MOST else ""
    parts = [f"<p>{lines}{rest}</p>", *map(_pair, shown)]
    return write_page(file, title, "images that are nearly the same, by varalign", parts)


def _in_two_splits(pair: Mapping[str, Any]) -> bool:
    return pair["splits"][0] != pair["splits"][1] and "no split" not in pair["splits"]


def _pair(pair: Mapping[str, Any]) -> str:
    cards = [
        card(Path(file), f"{name}, {split}")
        for file, name, split in zip(pair["files"], pair["images"], pair["splits"], strict=True)
    ]
    return (
        f'<div class="example"><div class="query">{escape(alike(pair))}</div>'
        f'<div class="found">{"".join(cards)}</div></div>'
    )
