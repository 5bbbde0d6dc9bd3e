"""The HTML of all pages: a page is one self-contained file, and all text from outside the program is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape
from pathlib import Path

from varalign.data.files import read_bytes, write_atomically
from varalign.data.images import MAX_FILE_BYTES, MAX_PIXELS, decode_image

_STYLE = """
:root { color-scheme: light; --ink: #22262e; --grey: #6b7484; --line: #e3e7ed; --right: #2c7a4b; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink) }
body { max-width: 1080px; margin: 2.5rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem } p { margin: .3rem 0 }
.grey { color: var(--grey) } .wide { overflow-x: auto } img { max-width: 100%; display: block }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th { font-weight: 600 } th:first-child, td:first-child { text-align: left; padding-left: 0 }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(760px, 100%), 1fr)); gap: 1rem }
figure { margin: 0 } figcaption { color: var(--grey); font-size: .85rem }
.example { display: flex; gap: 1rem; padding: .9rem 0; border-bottom: 1px solid var(--line); align-items: flex-start }
.query { flex: 0 0 180px } .found { display: flex; flex-wrap: wrap; gap: .6rem; flex: 1; min-width: 0 }
.item { width: 130px; font-size: .85rem; padding: .35rem; border: 2px solid var(--line); border-radius: 6px }
.item, .query { overflow-wrap: anywhere }
.item.text { width: auto; flex: 1 1 100% } .item.right { border-color: var(--right) } .hubs { padding: .9rem 0 }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 1.2rem }
.two svg { width: 100%; height: auto } .key { float: right } figcaption { margin-bottom: .4rem }
.verdict { font-size: 1.25rem; line-height: 1.4; margin: 1rem 0 }
.tabs { display: flex; flex-wrap: wrap; gap: 0 .5rem } .tabs > input { position: absolute; opacity: 0 }
.tabs > label { padding: .25rem .7rem; border-radius: 6px; cursor: pointer; color: var(--grey); order: 0 }
.tabs > section { display: none; flex: 1 0 100%; order: 1; min-width: 0 }
.tabs > input:checked + label { background: #eef1f5; color: var(--ink) }
.tabs > input:focus-visible + label { outline: 2px solid var(--ink) }
.tabs > input:checked + label + section { display: block }
.result { font-size: .92rem } .result th, .result td { padding: .3rem .5rem } .result th { white-space: normal }
.map { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: center } .map canvas { width: 100%; height: 560px }
.map canvas { border: 1px solid var(--line); border-radius: 6px; cursor: crosshair; touch-action: none }
.map input, .map select { font: inherit; padding: .15rem .4rem; max-width: 100% } .map label { color: var(--grey) }
.map .tip { width: 100%; min-height: 7rem; display: flex; gap: .8rem; overflow-wrap: anywhere }
.map .tip img { height: 96px }
@media (max-width: 760px) {
  body { margin: 1rem auto } .example { flex-direction: column } .query { flex: none }
  .result thead { display: none } .result, .result tbody, .result tr, .result td { display: block }
  .result tr { border-bottom: 1px solid var(--line); padding: .4rem 0 }
  .result td { border: 0; text-align: left; white-space: normal; padding: .05rem 0 }
  .result td:not(:first-child):not(:empty)::before { content: attr(data-label) ": "; color: var(--grey) }
  .map canvas { height: 360px }
}
pre { background: #f6f7f9; padding: 1rem; border-radius: 6px; overflow-x: auto; font-size: .85rem }
"""
_THUMBNAIL_SIDE = 260

Item = str | Path
"""A caption, as text, or an image file."""


def write_page(file: Path, title: str, subtitle: str, parts: Iterable[str]) -> Path:
    """Write a page atomically.

    Args:
        file: the HTML file; its folder must exist.
        title, subtitle: plain text.
        parts: HTML, from the functions below or escaped by the caller.

    Returns:
        `file`.
    """
    html = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)} – varalign</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f'<body><h1>{escape(title)}</h1><p class="grey">{escape(subtitle)}</p>{"".join(parts)}</body></html>\n'
    )
    write_atomically(file, html.encode("utf-8", "replace"))  # file names may hold bytes that are not UTF-8
    return file


def figures(pictures: Iterable[tuple[str, bytes | str]]) -> str:
    """A grid of PNGs, or of SVGs as text, with their captions."""

    def image(caption: str, content: bytes | str) -> str:
        if isinstance(content, str):
            return content
        return f'<img src="{data_uri(content, "png")}" alt="{escape(caption.removesuffix(".png"))}">'

    shown = [
        f"<figure>{image(caption, content)}<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, content in pictures
    ]
    return f'<div class="pictures">{"".join(shown)}</div>'


def example(query: Item, note: str, cards: Iterable[str]) -> str:
    """A query, with `note` (HTML) below it, beside the cards of its candidates."""
    return (
        f'<div class="example"><div class="query">{_item(query)}{note}</div>'
        f'<div class="found">{"".join(cards)}</div></div>'
    )


def card(item: Item, note: str, *, right: bool = False) -> str:
    """A caption or an image in a frame, green if `right`, with `note` (plain text) below it."""
    classes = "item" + ("" if isinstance(item, Path) else " text") + (" right" if right else "")
    return f'<div class="{classes}">{_item(item)}<div class="grey">{escape(note)}</div></div>'


def _item(item: Item) -> str:
    """A thumbnail, or the text in its own direction: from the right in Arabic or Hebrew, whatever stands around it."""
    return thumbnail(item) if isinstance(item, Path) else f'<div dir="auto">{escape(item)}</div>'


def file_name(file: Path) -> str:
    """A file's name, kept apart from the direction of what stands around it."""
    return f"<bdi>{escape(file.name)}</bdi>"


def thumbnail(file: Path) -> str:
    """An embedded <img> of the file, reduced in size; the file's name as text if it cannot be read."""
    uri = thumbnail_uri(file, _THUMBNAIL_SIDE)
    if uri is None:
        return f'<span class="grey">{file_name(file)} (cannot be read)</span>'
    return f'<img src="{uri}" alt="{escape(file.name)}">'


def thumbnail_uri(file: Path, side: int, quality: int = 85) -> str | None:
    """A JPEG data URI of the file, at most `side` pixels wide and high; None if it cannot be read."""
    try:
        return data_uri(small_jpeg(read_bytes(file, MAX_FILE_BYTES), side, quality), "jpeg")
    except (ValueError, OSError, MemoryError):
        return None


def small_jpeg(content: bytes, side: int, quality: int = 85, max_pixels: int = MAX_PIXELS) -> bytes:
    """The bytes of an image file as a JPEG, at most `side` pixels wide and high.

    The compiled decoder reads them: Pillow would try all its plugins, and the PostScript one starts Ghostscript.

    Raises:
        ValueError: they are no image, or one of more than `max_pixels`.
    """
    from PIL import Image

    small = Image.fromarray(decode_image(content, max_pixels))
    small.thumbnail((side, side))
    written = io.BytesIO()
    small.save(written, "JPEG", quality=quality)
    return written.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
