"""Pages: thumbnails by our own decoder, and nothing else in the product opens pictures by guesswork."""

from __future__ import annotations

import ast
import base64
import io
import os
from pathlib import Path

import numpy as np
import pytest
import varalign
from PIL import Image
from varalign.pictures.page import card, example, figures, thumbnail, write_page


def test_a_thumbnail_is_a_small_upright_jpeg(tmp_path: Path) -> None:
    rows = np.linspace(0, 255, 480).astype(np.uint8)[:, None, None]
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.fromarray(np.broadcast_to(rows, (480, 640, 3)).copy()).save(tmp_path / "a.jpg", exif=exif)
    kind, _, content = thumbnail(tmp_path / "a.jpg").partition('src="')[2].partition('"')[0].partition(",")
    shown = Image.open(io.BytesIO(base64.b64decode(content)), formats=["JPEG"])
    assert kind == "data:image/jpeg;base64" and shown.size == (195, 260)
    levels = np.asarray(shown, np.float64).mean((0, 2))
    assert levels[0] > 240 and levels[-1] < 15, "the top of the stored picture is on the right"


def test_a_postscript_file_named_jpg_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's plugin for PostScript would start Ghostscript, found on the PATH."""
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    assert "a.jpg</bdi> (cannot be read)" in thumbnail(picture)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",  # Pillow: SyntaxError or OSError
        b"II*\x00\x08\x00\x00\x00\xff\xff",
        b"GIF89a\x01\x00",
        b"RIFF\x04\x00\x00\x00WEBP",
        b"\xff\xd8\xff\xe0",
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "<a>.jpg").write_bytes(content)
    assert thumbnail(tmp_path / "<a>.jpg") == '<span class="grey"><bdi>&lt;a&gt;.jpg</bdi> (cannot be read)</span>'


def test_no_file_a_folder_and_a_pipe_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("none.jpg", "folder.jpg", "pipe.jpg"):
        assert "cannot be read" in thumbnail(tmp_path / name)


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>\udcff'
    cards = [card(evil, evil, right=True), card(tmp_path / "'\"><b>.jpg", evil)]
    file = write_page(tmp_path / "page.html", evil, evil, [figures([(evil, b"png")]), example(evil, "", cards)])
    page = file.read_text(encoding="utf-8")
    assert "<script" not in page and "<b>" not in page and page.count("&lt;script&gt;alert(1)") == 9


def test_pillow_opens_only_formats_that_are_named() -> None:
    package = Path(varalign.__file__).parent
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"):
                assert "formats" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"


def test_a_caption_stands_in_its_own_direction(tmp_path: Path) -> None:
    """Arabic runs from the right, whatever stands around it; a name beside it does not change places with it."""
    arabic = "كلبان يركضان (2) في الثلج"
    assert f'<div dir="auto">{arabic}</div><div class="grey">its caption: 0.5</div>' in card(arabic, "its caption: 0.5")
    assert f'<div class="query"><div dir="auto">{arabic}</div>' in example(arabic, "", [])
    assert f"<bdi>{arabic}.jpg</bdi> (cannot be read)" in thumbnail(tmp_path / f"{arabic}.jpg")
