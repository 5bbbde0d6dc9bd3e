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
    for at in range(8, len(data) - 12):
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


def run_lengths(rng: random.Random, four: bool) -> bytes:
    """Runs, literal pixels, ends of rows and jumps, drawn."""
    out = b""
    for _ in range(rng.randint(5, 60)):
        count = rng.randint(3, 12)
        stored = (count + 1) // 2 if four else count
        out += rng.choices(
            [
                bytes([rng.randint(1, 20), rng.randint(0, 255)]),
                bytes([0, count]) + rng.randbytes(stored) + bytes(stored % 2),
                b"\0\0",
                bytes([0, 2, rng.randint(0, 5), rng.randint(0, 2)]),
                b"\0\1",
            ],
            [50, 29, 10, 10, 1],
        )[0]
    return out


MASKS = {
    16: [(0xF800, 0x7E0, 0x1F, 0), (0x7C00, 0x3E0, 0x1F, 0)],
    24: [(0xFF0000, 0xFF00, 0xFF, 0)],
    32: [
        (0xFF0000, 0xFF00, 0xFF, 0),
        (0xFF000000, 0xFF0000, 0xFF00, 0),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0,) * 4,
    ],
}
"""Masks of red, green, blue and alpha that Pillow knows, by bits a pixel."""


def bmp(rng: random.Random) -> bytes:
    """A BMP file of some depth, header, palette, direction and packing."""
    width, height, bits = rng.randint(1, 20), rng.randint(1, 12), rng.choice([1, 4, 8, 16, 24, 32])
    length, top_down = rng.choice([12, 40, 40, 52, 56, 64, 108, 124]), rng.random() < 0.2
    packed = length > 12 and rng.random() < 0.5
    compression = {4: 2, 8: 1, 1: 0}.get(bits, 3) if packed else 0
    colors = rng.choice([0, 0, rng.randint(3, 256)]) if bits == 8 and length > 12 else 0
    masks = rng.choice(MASKS[bits]) if compression == 3 else (0,) * 4
    if length == 12:
        head = struct.pack("<IHHHH", 12, width, height, rng.choice([1, 2]), bits)
    else:
        sizes = (width, -height if top_down else height)
        head = struct.pack("<IiiHHIIiiII", length, *sizes, rng.choice([1, 2]), bits, compression, 0, 0, 0, colors, 0)
        head += struct.pack("<IIII", *masks)[: 12 if length == 40 else 16] if length > 40 or compression == 3 else b""
        head = head.ljust(length, b"\0")[: max(length, 52 if compression == 3 else 0)]
    count = (colors or 1 << bits) if bits <= 8 else 0
    entry = 3 if length == 12 else 4
    palette = rng.randbytes(count * entry)
    if bits == 8 and rng.random() < 0.2:
        palette = b"".join(bytes([level] * 3 + [0] * (entry - 3)) for level in range(count))
    pixels = rng.randbytes((width * bits + 31) // 32 * 4 * height)
    if compression in (1, 2):
        pixels = run_lengths(rng, bits == 4)
    gap = rng.choice([0, 0, 1, 2])
    offset = 14 + len(head) + len(palette) + gap
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, offset) + head + palette + bytes(gap) + pixels


def test_bmp_of_every_depth_header_and_packing() -> None:
    """5- and 6-bit levels, several planes, short and grey palettes, run lengths with jumps: Pillow's levels."""
    rng, equal = random.Random(5), 0
    for _ in range(2000):
        data = bmp(rng)
        try:
            theirs = pillow(data)
        except (OSError, ValueError):  # run lengths that end early
            continue
        np.testing.assert_array_equal(decode_image(data), theirs, err_msg=data[:70].hex())
        equal += 1
    assert equal > 1500


def test_a_dib_is_a_bmp_without_its_file_header() -> None:
    for mode in ("RGB", "P", "1"):
        data = saved("DIB", mode, (7, 5))
        np.testing.assert_array_equal(decode_image(data), pillow(data))


def test_png_checksums_of_pixels_are_not_looked_at_and_those_before_them_are() -> None:
    data = bytearray(saved("PNG", "P", (40, 30)))
    at = data.index(b"IDAT")
    end = at + 4 + struct.unpack_from(">I", data, at - 4)[0]
    data[end] ^= 1
    np.testing.assert_array_equal(decode_image(bytes(data)), pillow(bytes(data)))
    data[data.index(b"PLTE") - 8] ^= 1  # the header's
    with pytest.raises(ValueError, match="IHDR"):
        decode_image(bytes(data))


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("flags", range(4))
def test_the_first_frame_of_an_animation_stands_on_black(mode: str, lossless: bool, flags: int) -> None:
    """At its place, whatever the colour of the background and the ways of blending and disposing."""
    levels = np.random.default_rng(3).integers(0, 256, (9, 12, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).convert(mode).save(buffer, "WebP", lossless=lossless, exact=True)
    still = buffer.getvalue()[12:]
    if still[:4] == b"VP8X":
        still = still[18:]
    place = bytes([2, 0, 0, 1, 0, 0, 11, 0, 0, 8, 0, 0, 100, 0, 0, flags])
    frames = chunk(b"ANMF", place + still) + chunk(b"ANMF", bytes(6) + place[6:] + still)
    head = chunk(b"VP8X", bytes([2 | 16, 0, 0, 0, 19, 0, 0, 14, 0, 0])) + chunk(
        b"ANIM", bytes([10, 200, 90, 255, 0, 0])
    )
    body = b"WEBP" + head + frames
    data = b"RIFF" + struct.pack("<I", len(body)) + body
    theirs = pillow(data)
    assert theirs.shape == (15, 20, 3)
    np.testing.assert_array_equal(decode_image(data), theirs)
    cut = bytearray(data)
    cut[data.index(b"ANMF") + 8] = 5  # reaches past the picture
    with pytest.raises(ValueError, match="WebP image"):
        decode_image(bytes(cut))


def test_an_arithmetic_coded_jpeg_is_refused_with_what_converts_it() -> None:
    data = saved("JPEG").replace(b"\xff\xc0", b"\xff\xc9")
    with pytest.raises(ValueError, match="arithmetic coding is not supported; convert it without loss by `jpegtran"):
        decode_image(data)
