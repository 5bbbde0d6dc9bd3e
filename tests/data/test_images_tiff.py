"""TIFF files of every layout that Pillow and a writer of our own make, against Pillow (libtiff): equal to the bit.

Not equal by intent: grey of 12 and 16 bits, whose high byte is taken, where Pillow turns every level above 255 white.
"""

from __future__ import annotations

import io
import itertools
import random
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from varalign.data.images import decode_image


def pillow(data: bytes) -> np.ndarray[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(Image.open(io.BytesIO(data), formats=["TIFF"]).convert("RGB"))


def in_mode(mode: str, size: tuple[int, int]) -> Image.Image:
    """Runs and noise in some mode."""
    rng = np.random.default_rng(len(mode))
    levels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    levels[:, : size[0] // 2] = levels[:1, :1]
    picture = Image.fromarray(levels)
    return picture.convert("L").convert(mode) if mode in ("LA", "PA") else picture.convert(mode)


def saved(mode: str, size: tuple[int, int], **options: Any) -> bytes:
    buffer = io.BytesIO()
    in_mode(mode, size).save(buffer, "TIFF", **options)
    return buffer.getvalue()


PACKED = ["raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate"]
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("compression", PACKED)
def test_what_pillow_writes(mode: str, compression: str) -> None:
    for size, tags in itertools.product([(61, 47), (8, 8), (1, 1)], [{}, {278: 5}, {278: 1000}, {317: 2}]):
        if 317 in tags and (mode == "1" or compression in ("raw", "packbits")):
            continue
        data = saved(mode, size, compression=compression, tiffinfo=dict(tags))
        np.testing.assert_array_equal(decode_image(data), pillow(data), err_msg=f"{size} {tags}")
    big = saved(mode, (30, 20), compression=compression, big_tiff=True)
    np.testing.assert_array_equal(decode_image(big), pillow(big))


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
@pytest.mark.parametrize("options", [0, 1, 4, 5])
def test_fax_codes(compression: str, options: int) -> None:
    """Rows in runs, by the row above, with and without filling before end marks; long runs and single bits."""
    rng = np.random.default_rng(2)
    for width, height, share in [
        (1, 3, 0.5),
        (9, 4, 0.5),
        (64, 20, 0.02),
        (3000, 12, 0.0005),
        (500, 40, 0.1),
        (2700, 2, 0.0),
    ]:
        bits = rng.random((height, width)) < share
        bits = np.logical_xor.accumulate(bits, axis=1)
        bits[1::2] = np.roll(bits[::2], 1, axis=1)[: height // 2]
        for order in (1, 2):
            tags = TiffImagePlugin.ImageFileDirectory_v2()
            tags[266] = order
            if compression == "group3":
                tags[292] = options
            buffer = io.BytesIO()
            Image.fromarray(bits).save(buffer, "TIFF", compression=compression, tiffinfo=tags)
            data = buffer.getvalue()
            np.testing.assert_array_equal(decode_image(data), pillow(data), err_msg=f"{width} {order}")


@pytest.mark.parametrize("mode", ["L", "RGB", "YCbCr", "CMYK"])
@pytest.mark.parametrize("quality", [30, 95])
def test_jpeg_in_strips(mode: str, quality: int) -> None:
    for size in [(64, 64), (61, 47), (200, 333)]:
        data = saved(mode, size, compression="jpeg", quality=quality)
        np.testing.assert_array_equal(decode_image(data), pillow(data), err_msg=str(size))


def tiff(order: str, levels: np.ndarray[Any, Any], photometric: int, **tags: Any) -> bytes:
    """A file of (height, width, samples) levels.

    tags: bits, tile, rows (a strip), planar, deflate, predict, extra, reverse, big, palette, orientation.
    """
    height, width, samples = levels.shape
    bits, planar = tags.get("bits", 8), tags.get("planar", False)
    across, down = tags.get("tile", (width, tags.get("rows", height)))
    chunks = []
    for plane in range(samples) if planar else [slice(None)]:
        for top, left in itertools.product(range(0, height, down), range(0, width, across)):
            part = levels[top : top + down, left : left + across, plane].reshape(
                min(down, height - top), min(across, width - left), -1
            )
            if "tile" in tags:
                part = np.pad(part, [(0, down - part.shape[0]), (0, across - part.shape[1]), (0, 0)], mode="edge")
            part = part.astype(np.int64)
            if tags.get("predict"):
                part = np.concatenate([part[:, :1], np.diff(part, axis=1)], axis=1) % (1 << bits)
            if bits < 8 or bits == 12:
                rows = part.reshape(len(part), -1)
                places = np.arange(bits - 1, -1, -1)
                packed = np.packbits(
                    (rows[..., None] >> places & 1).reshape(len(rows), -1).astype(bool), axis=1
                ).tobytes()
            else:
                packed = part.astype({8: "u1", 16: order + "u2"}[bits]).tobytes()
            if tags.get("reverse"):
                packed = bytes(int(f"{byte:08b}"[::-1], 2) for byte in packed)
            chunks.append(zlib.compress(packed) if tags.get("deflate") else packed)
    big = tags.get("big", False)
    head = 16 if big else 8
    offsets = [head + sum(map(len, chunks[:number])) for number in range(len(chunks))]
    places = (324, 325) if "tile" in tags else (273, 279)
    entries = {
        256: [width],
        257: [height],
        258: [bits] * samples,
        259: [8 if tags.get("deflate") else 1],
        262: [photometric],
        places[0]: offsets,
        277: [samples],
        places[1]: [len(chunk) for chunk in chunks],
        284: [2 if planar else 1],
        **({322: [across], 323: [down]} if "tile" in tags else {278: [down]}),
        **({317: [2]} if tags.get("predict") else {}),
        **({338: tags["extra"]} if "extra" in tags else {}),
        **({266: [2]} if tags.get("reverse") else {}),
        **({320: tags["palette"]} if "palette" in tags else {}),
        **({274: [tags["orientation"]]} if "orientation" in tags else {}),
    }
    body = b"".join(chunks)
    start = head + len(body)
    count, place, long = ("Q", "Q", 16) if big else ("H", "I", 4)
    inside = struct.calcsize(place)
    behind = start + struct.calcsize(order + count) + (4 + 2 * inside) * len(entries) + inside
    table, rest = struct.pack(order + count, len(entries)), b""
    for tag, numbers in sorted(entries.items()):
        kind, code = (long, place) if tag in (*places, 256, 257) else (3, "H")
        packed = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        if len(packed) > inside:
            where = struct.pack(order + place, behind + len(rest))
            rest += packed
        else:
            where = packed.ljust(inside, b"\0")
        table += struct.pack(order + "HH" + place, tag, kind, len(numbers)) + where
    mark = {"<": b"II", ">": b"MM"}[order]
    first = struct.pack(order + "HHHQ", 43, 8, 0, start) if big else struct.pack(order + "HI", 42, start)
    return mark + first + body + table + bytes(inside) + rest


def drawn(rng: random.Random) -> bytes:
    """A file of some colours and layout."""
    kind = rng.choice(["grey", "white", "rgb", "rgb", "rgba", "associated", "palette", "cmyk", "wide"])
    bits = rng.choice([1, 2, 4, 8]) if kind in ("grey", "white", "palette") else rng.choice([8, 8, 16])
    samples = {"rgb": 3, "rgba": 4, "associated": 4, "cmyk": 4, "wide": 6}.get(kind, 1)
    width, height = rng.randint(1, 40), rng.randint(1, 30)
    levels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 1 << bits, (height, width, samples))
    tags: dict[str, Any] = {"bits": bits, "deflate": rng.random() < 0.6, "big": rng.random() < 0.2}
    tags["predict"] = tags["deflate"] and bits >= 8 and rng.random() < 0.4
    tags["planar"] = (
        samples in (3, 4) and rng.random() < 0.3 and (tags["deflate"] or kind in ("rgb", "cmyk")) and bits >= 8
    )
    if kind == "wide":
        tags["bits"], levels = 8, levels % 256
    if rng.random() < 0.5:
        tags["tile"] = (rng.choice([16, 32]), rng.choice([16, 32]))
    else:
        tags["rows"] = rng.randint(1, height)
    if kind in ("rgba", "associated", "wide"):
        tags["extra"] = {"rgba": [2], "associated": [1], "wide": [0, 0, 0]}[kind]
    if kind == "palette":
        tags["palette"] = [rng.randrange(1 << 16) for _ in range(3 << bits)]
    if bits < 8 and kind != "palette" and not tags["deflate"] and rng.random() < 0.3:
        tags["reverse"] = True
    if tags["planar"] and not tags["deflate"] and bits == 16:
        tags["planar"] = False
    tags["orientation"] = rng.choice([1, 1, 2, 3, 4, 5, 6, 7, 8])
    photometric = {"white": 0, "grey": 1, "palette": 3, "cmyk": 5}.get(kind, 2)
    # Pillow takes BigTIFF of the other order for a small one.
    return tiff("<" if tags["big"] else rng.choice("<>"), levels, photometric, **tags)


def test_layouts_that_other_programs_write() -> None:
    """Either byte order, BigTIFF, strips, tiles and planes, predictors, bits from either end, orientations."""
    rng = random.Random(3)
    for number in range(1500):
        data = drawn(rng)
        np.testing.assert_array_equal(decode_image(data), pillow(data), err_msg=f"{number}: {data[:4]!r}")


@pytest.mark.parametrize("order", "<>")
def test_grey_of_more_than_eight_bits_keeps_its_high_byte(order: str) -> None:
    levels = np.random.default_rng(0).integers(0, 1 << 16, (7, 9, 1))
    high = np.repeat(levels >> 8, 3, axis=2)
    np.testing.assert_array_equal(decode_image(tiff(order, levels, 1, bits=16)), high)
    np.testing.assert_array_equal(decode_image(tiff(order, levels, 0, bits=16, deflate=True)), 255 - high)
    twelve = decode_image(tiff(order, levels >> 4, 1, bits=12))
    np.testing.assert_array_equal(twelve, high)


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        (339, 3, "floating-point samples of 8 bits cannot be read; save the picture as PNG"),
        (259, 34925, r"compression \(LZMA\) is not supported; save the picture as PNG, or as TIFF with LZW"),
        (259, 6, "old-style JPEG"),
        (259, 50000, "Zstandard"),
        (262, 8, r"CIE L\*a\*b\*"),
        (262, 6, "YCbCr without JPEG"),
        (262, 32803, "camera's raw data"),
        (258, 32, "32 bits"),
        (256, 0, "no pixels"),
        (256, 70000, "cut short|more than"),
        (273, 1 << 30, "cut short"),
    ],
)
def test_what_cannot_be_read_is_named(tag: int, value: int, message: str) -> None:
    plain = bytearray(tiff("<", np.zeros((5, 4, 1)), 1))
    at = plain.index(struct.pack("<HH", 284, 3))  # not needed: becomes the tag
    struct.pack_into("<HHII", plain, at, tag, 4, 1, value)
    for other in range(struct.unpack_from("<I", plain, 4)[0] + 2, at, 12):
        if struct.unpack_from("<H", plain, other)[0] == tag:
            struct.pack_into("<H", plain, other, 60000)
    with pytest.raises(ValueError, match=f"TIFF image: .*({message})"):
        decode_image(bytes(plain))


def mutated(rng: random.Random) -> bytes:
    data = bytearray(
        drawn(rng) if rng.random() < 0.6 else saved(rng.choice(MODES), (30, 20), compression=rng.choice(PACKED))
    )
    if rng.random() < 0.15:
        data = bytearray(saved("1", (60, 20), compression=rng.choice(["group3", "group4", "tiff_ccitt"])))
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(len(data))] = rng.choice([0, 1, 255, rng.randrange(256)])
    return bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data))])])


def check_damaged(seed: int, count: int) -> None:
    """Damage is an error of a sentence or a picture."""
    rng = random.Random(seed)
    for _ in range(count):
        data = mutated(rng)
        try:
            pixels = decode_image(data)
        except ValueError as error:
            assert "did not expect" not in str(error), data.hex()
        else:
            assert pixels.ndim == 3 and pixels.shape[2] == 3


def test_damage_is_an_error_or_a_picture() -> None:
    check_damaged(0, 1500)


@pytest.mark.long
def test_much_damage_is_an_error_or_a_picture() -> None:
    for seed in range(1, 40):
        check_damaged(seed, 5000)


def test_a_file_cut_short_is_an_error() -> None:
    for compression in PACKED:
        data = saved("RGB", (40, 30), compression=compression)
        for length in range(4, len(data) - 200, max(1, len(data) // 40)):
            with pytest.raises(ValueError, match="TIFF image"):
                decode_image(data[:length])
