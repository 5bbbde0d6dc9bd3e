"""Files whose headers are odd, damaged or not quite of the standard: what Pillow reads of the same bytes, we read."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from varalign.data.images import decode_image

NUMBERS = {1: "B", 3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I", 16: "Q"}
"""Types of an EXIF entry: the code of each and how its value is packed."""


def pillow(data: bytes) -> np.ndarray[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def saved(kind: str, mode: str = "RGB", size: tuple[int, int] = (5, 3), **options: Any) -> bytes:
    levels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def exif_block(rng: random.Random) -> bytes:
    """A TIFF structure with an orientation of some type, count and place, and with some of what goes wrong in them."""
    order = rng.choice("<>")
    orientation = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 6, 8, 0, 9, 300])
    kind = rng.choice([3, 3, 3, 4, 8, 9, 5, 10, 6, 11, 12, 13, 16, 1, 2, 7, 0, 99])
    count = rng.choice([1, 1, 1, 2, 2, 3, 0, 1000])
    code = NUMBERS.get(kind, "H")
    values = [orientation % 128] + [1] * (len(code) - 1 if rng.random() < 0.8 else 0)
    values += [2] * (len(code) - len(values))
    value = struct.pack(order + code, *values) * min(count, 4)
    entries = [(0x010E, 2, 4, b"abc\0")] * rng.choice([0, 0, 1, 2])
    entries.insert(rng.randrange(len(entries) + 1), (0x0112, kind, count, value))
    if rng.random() < 0.1:
        entries.append((0x0112, 3, 1, struct.pack(order + "H", 3)))
    start = rng.choice([8, 8, 8, 12])
    declared = len(entries) + rng.choice([0, 0, 0, 1, -1])
    behind = start + 2 + 12 * len(entries) + 4
    table, rest = b"", b""
    for tag, kind, count, value in entries:
        if len(value) > 4:
            place = behind + len(rest) + rng.choice([0, 0, 0, 5000])
            rest, value = rest + value, struct.pack(order + "I", place)
        table += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start) + b"\0" * (start - 8)
    block = head + struct.pack(order + "H", max(declared, 0)) + table + b"\0" * 4 + rest
    return b"Exif\0\0" * rng.choice([1, 1, 1, 2]) + block[: rng.choice([None, None, None, rng.randrange(len(block))])]


def with_exif(kind: str, block: bytes, xmp: bytes = b"") -> bytes:
    if kind == "PNG":
        plain = saved("PNG")
        chunk = b"eXIf" + block.removeprefix(b"Exif\0\0")
        made = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return plain[:33] + made + plain[33:]
    if kind == "WebP":
        return saved("WebP", lossless=True, exif=block)
    plain = saved("JPEG", quality=95, subsampling=0)
    segments = [block] + ([b"http://ns.adobe.com/xap/1.0/\0" + xmp] if xmp else [])
    return plain[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments) + plain[2:]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
def test_where_pillow_turns_a_picture_so_do_we(kind: str) -> None:
    """Types, counts, byte orders, places, cut tables, doubled entries; not blocks for which Pillow raises."""
    rng, turned = random.Random(kind), 0
    for number in range(400):
        xmp = b'<x tiff:Orientation="6"/>' if kind == "JPEG" and number % 5 == 0 else b""
        block = exif_block(rng)
        data = with_exif(kind, block, xmp)
        try:
            theirs = pillow(data)
        except Exception:
            continue
        ours = decode_image(data)
        assert ours.shape == theirs.shape, block
        np.testing.assert_array_equal(ours, theirs, err_msg=repr(block))
        turned += ours.shape != (3, 5, 3)
    assert turned > 40


def patched(data: bytes, at: int, code: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(code, changed, at, value)
    return bytes(changed)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_bmp_headers_that_lie_about_their_length(mode: str) -> None:
    plain = saved("BMP", mode, (6, 5))
    size = struct.unpack_from("<I", plain, 14)[0]
    longer = plain[:14] + struct.pack("<I", 64) + plain[18:54] + bytes(24) + plain[54:]
    right = struct.unpack_from("<I", plain, 10)[0]
    for data, offset in [(plain, right), (plain, 14 + size), (longer, right + 24), (longer, 78), (longer, right)]:
        for place in (0, offset):
            changed = patched(data, 10, "<I", place)
            np.testing.assert_array_equal(decode_image(changed), pillow(changed))
    np.testing.assert_array_equal(decode_image(patched(plain, 10, "<I", 0)), decode_image(plain))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_a_last_bmp_row_without_padding(width: int) -> None:
    data = saved("BMP", "RGB", (width, 3))
    for left in range(-width * 3 % 4 + 1):
        cut = data[: len(data) - left]
        np.testing.assert_array_equal(decode_image(cut), pillow(cut))
    with pytest.raises(ValueError, match="BMP"):
        decode_image(data[: len(data) - 4])


def gif(*blocks: bytes, flags: int = 0, palette: bytes = b"") -> bytes:
    picture = b",\0\0\0\0\2\0\2\0\0" + b"\x02\x02\x84\x51\0"  # 2 x 2 pixels: 0 1 1 0
    return b"GIF89a\2\0\2\0" + bytes([flags, 0, 0]) + palette + b"".join(blocks) + picture + b";"


@pytest.mark.parametrize(
    "data",
    [
        gif(flags=0x80, palette=b"\1\2\3\xff\x10\x20"),
        gif(),
        gif(b"!\x42\3abc\2de\0", flags=0x80, palette=b"\1\2\3\xff\x10\x20"),
        gif(b"\0\0\0", flags=0x80, palette=b"\1\2\3\xff\x10\x20"),
        gif(b"!\xf9\4\1\0\0\1\0", b"!\xfe\4text\0", b"\0", flags=0x80, palette=b"\1\2\3\xff\x10\x20"),
    ],
    ids=["plain", "no palette", "unknown extension", "stray zeros", "all"],
)
def test_gif_blocks_that_the_standard_does_not_know(data: bytes) -> None:
    np.testing.assert_array_equal(decode_image(data), pillow(data))


@pytest.mark.parametrize("mode", ["RGB", "P", "1", "LA"])
def test_png_without_its_end(mode: str) -> None:
    data = saved("PNG", mode, (40, 30))
    np.testing.assert_array_equal(decode_image(data[:-12]), pillow(data))
    with pytest.raises(ValueError, match="PNG image: the file is cut short"):
        decode_image(data[:-40])


def test_png_errors_are_in_plain_words() -> None:
    data = bytearray(saved("PNG", "RGB", (40, 30)))
    messages = []
    for at in range(8, len(data) - 12, 7):
        changed = bytearray(data)
        changed[at] ^= 0x55
        try:
            decode_image(bytes(changed))
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 20
    for message in messages:
        assert not any(mark in message for mark in ("ChunkType", "{", "Some(", "Err(", "::")), message
    apple = (
        data[:8] + struct.pack(">I", 4) + b"CgBIP\0 \x02" + struct.pack(">I", zlib.crc32(b"CgBIP\0 \x02")) + data[8:]
    )
    with pytest.raises(ValueError, match="written for iPhones"):
        decode_image(bytes(apple))
