"""A contact sheet: pictures in a grid, each with a line or two below it, in one PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from varalign.data.files import read_bytes, write_atomically
from varalign.data.images import MAX_FILE_BYTES, decode_image
from varalign.data.terminal import printable

COLUMNS = 5
_SIDE, _LINE, _MARGIN = 240, 18, 12


def write_sheet(file: Path, title: str, items: Sequence[tuple[Path, Sequence[str]]]) -> Path:
    """Write the sheet atomically.

    Args:
        file: the PNG.
        title: plain text.
        items: image files, each with the lines of plain text below it; a line that is too long is cut. A file that
            cannot be read leaves its place empty, and says so.

    Returns:
        `file`.
    """
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", 13)  # Pillow's own has Latin letters alone
    columns, lines = min(COLUMNS, len(items)), max((len(text) for _, text in items), default=0)
    wide, high = _SIDE + _MARGIN, _SIDE + lines * _LINE + _MARGIN
    size = (_MARGIN + max(columns, 2) * wide, 3 * _MARGIN + _LINE + math.ceil(len(items) / COLUMNS) * high)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)

    def write(x: int, y: int, text: str, width: int, colour: str = "#22262e") -> None:
        text = printable(text)
        if draw.textlength(text, font=font) > width:
            while text and draw.textlength(text + "…", font=font) > width:
                text = text[: min(len(text) - 1, len(text) * 15 // 16)]
            text += "…"
        draw.text((x, y), text, fill=colour, font=font)

    write(_MARGIN, _MARGIN, title, size[0] - 2 * _MARGIN)
    for place, (path, texts) in enumerate(items):
        x = _MARGIN + place % COLUMNS * wide
        y = 2 * _MARGIN + _LINE + place // COLUMNS * high
        try:
            whole = Image.fromarray(decode_image(read_bytes(path, MAX_FILE_BYTES)))
            picture = ImageOps.contain(whole, (_SIDE, _SIDE))
            sheet.paste(picture, (x + (_SIDE - picture.width) // 2, y + (_SIDE - picture.height) // 2))
        except (ValueError, OSError, MemoryError):
            write(x, y + _SIDE // 2, "cannot be read", _SIDE, "#6b7484")
        for number, text in enumerate(texts):
            write(x, y + _SIDE + number * _LINE, text, _SIDE, "#22262e" if number else "#6b7484")
    written = io.BytesIO()
    sheet.save(written, "PNG")
    write_atomically(file, written.getvalue())
    return file
