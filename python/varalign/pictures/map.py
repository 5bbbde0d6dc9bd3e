"""The interactive map of a report page: its data and its script, both inside the page.

No plotting library that a package inlines draws thousands of points with thumbnails on hover in under 3 MB, so the
script is our own (`map.js`).
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from varalign.data.files import is_there
from varalign.data.waiting import counted
from varalign.pictures.page import thumbnail_uri
from varalign.pictures.style import BLUE, RED
from varalign.runs.json_text import json_text

_SIDE, _QUALITY = 112, 72
_SCRIPT = Path(__file__).with_name("map.js")


def map_part(shown: Mapping[str, Any]) -> str:
    """The HTML of the map.

    Args:
        shown: a showcase; its `map` has `images` and `texts` (n places each), `rank` by direction, `layouts` (2n points
            each, images first) and optionally `wrong` (n probabilities).
    """
    points = shown["map"]
    images = [shown["images"][place] for place in points["images"]]
    with ThreadPoolExecutor() as pool:
        made = pool.map(_thumbnail, [file for _, file in images])
        thumbnails = list(counted(made, "thumbnails", len(images)))
    data = {
        "colours": {"image": RED, "text": BLUE},
        "names": [name for name, _ in images],
        "texts": [shown["texts"][place] for place in points["texts"]],
        "thumbnails": thumbnails,
        "rank": points["rank"],
        "layouts": points["layouts"],
        "wrong": points.get("wrong"),
    }
    # No text of the data can end the element: "<" is written as an escape, which JSON reads as the same character.
    packed = json_text(data).replace("<", "\\u003c")
    return (
        '<div class="map" id="map"><label>layout <select name="layout"></select></label>'
        '<label>colour <select name="colour"></select></label>'
        '<label>search <input name="search" type="search" placeholder="words of a caption"></label>'
        '<canvas role="img" aria-label="map of images and captions"></canvas><div class="tip"></div></div>'
        f'<script type="application/json" id="map-data">{packed}</script>'
        f"<script>{_SCRIPT.read_text(encoding='utf-8')}</script>"
    )


def _thumbnail(file: str | None) -> str | None:
    return None if file is None or not is_there(file) else thumbnail_uri(Path(file), _SIDE, _QUALITY)
