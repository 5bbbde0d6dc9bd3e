"""Writes the fuzzer's seeds: small pictures in every form that is decoded, and texts of every script.

    python fuzz/make_seeds.py

Crashes that a fuzzer found are added by hand, as `fuzz/seeds/TARGET/crash-…`, and stay.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

SEEDS = Path(__file__).resolve().parent / "seeds"

TEXTS = {
    "plain": "Two dogs running in the snow.",
    "empty": "",
    "accents": "Cafe\u0301 re\u0301sume\u0301 \u00c5ngstr\u00f6m \u0130stanbul",
    "chinese": "狗在雪中奔跑 ｶﾀｶﾅ 한국어",
    "emoji": "👩‍👩‍👧‍👦 family of 🇫🇷 ☃\ufe0f",
    "bidi": "שלום عالم \u202eabc\u202c",
    "controls": "a\x00b\x07c\x0bd\x1ce\x7ff\x85g\u200bh\ufeffi",
    "entities": "AT&T &amp;lt;b&amp;gt; &#39;s &copy; &#xD800;",
    "contractions": "don't they'll we've 'S ''' <start_of_text><end_of_text>",
    "marks": "[CLS] [mask] [SEP]dog[PAD] ##s",
    "long": "dog" * 60 + " " + "!" * 80,
    "pieces": "two\ndogs\n\nruns",
    "digits": "1234 3.14 1,000 ½ ² ٣",
}

VOCABULARIES = {
    "clip": ["#version\nd o\ndo g</w>\n\u0120 a", "#version\n\na b\na b", "#version\na b c"],
    "bert": ["[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ndog\n##dog\n##\n\ndog", "[CLS]\n[SEP]\n[PAD]\n[UNK]\n[MASK]"],
    "words": ["dog\ncat", "dog\n\ndog", ""],
}


def pictures() -> dict[str, bytes]:
    """Encoded pictures of a few hundred bytes, by name."""
    random = np.random.default_rng(0)
    slope = np.add.outer(np.arange(20) * 5, np.arange(28) * 4)[..., None] + np.array([0, 40, 80])
    colour = Image.fromarray((slope + random.integers(0, 9, slope.shape)).clip(0, 255).astype(np.uint8))
    grey, alpha = colour.convert("L"), colour.copy()
    alpha.putalpha(grey)
    palette, bits = colour.quantize(16), grey.convert("1")
    deep = Image.fromarray((np.asarray(grey).astype(np.uint16) << 8) + 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    wanted = {
        "jpeg-420": (colour, "JPEG", {"quality": 70}),
        "jpeg-444": (colour, "JPEG", {"quality": 90, "subsampling": 0}),
        "jpeg-422-restarts": (colour, "JPEG", {"quality": 60, "subsampling": 1, "restart_marker_blocks": 1}),
        "jpeg-progressive": (colour, "JPEG", {"quality": 70, "progressive": True}),
        "jpeg-grey": (grey, "JPEG", {"quality": 70}),
        "jpeg-cmyk": (colour.convert("CMYK"), "JPEG", {"quality": 70}),
        "jpeg-rotated": (colour, "JPEG", {"quality": 50, "exif": exif.tobytes()}),
        "tiff-lzw": (colour, "TIFF", {"compression": "tiff_lzw", "tiffinfo": {317: 2, 278: 5}}),
        "tiff-deflate": (alpha, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff-packbits": (palette, "TIFF", {"compression": "packbits"}),
        "tiff-raw": (colour.convert("CMYK"), "TIFF", {}),
        "tiff-jpeg": (colour, "TIFF", {"compression": "jpeg"}),
        "tiff-group4": (bits, "TIFF", {"compression": "group4"}),
        "tiff-group3": (bits, "TIFF", {"compression": "group3", "tiffinfo": {292: 1}}),
        "tiff-runs": (bits, "TIFF", {"compression": "tiff_ccitt"}),
        "tiff-big": (deep, "TIFF", {"big_tiff": True}),
        "png-rgb": (colour, "PNG", {}),
        "png-rgba": (alpha, "PNG", {}),
        "png-grey-alpha": (alpha.convert("LA"), "PNG", {}),
        "png-palette": (palette, "PNG", {"bits": 4, "transparency": 3}),
        "png-bits": (bits, "PNG", {}),
        "png-16": (deep, "PNG", {}),
        "png-rotated": (grey, "PNG", {"exif": exif.tobytes()}),
        "webp-lossy": (colour, "WEBP", {"quality": 60}),
        "webp-lossless": (colour, "WEBP", {"lossless": True}),
        "webp-alpha": (alpha, "WEBP", {"quality": 60, "exif": exif.tobytes()}),
        "webp-animated": (palette, "WEBP", {"save_all": True, "append_images": [grey.rotate(90)]}),
        "gif": (palette, "GIF", {}),
        "gif-animated": (palette, "GIF", {"save_all": True, "append_images": [palette.rotate(180)], "transparency": 0}),
        "bmp": (colour.resize((9, 7)), "BMP", {}),
        "bmp-palette": (palette.resize((9, 7)), "BMP", {}),
        "bmp-bits": (bits, "BMP", {}),
    }
    found = {}
    for name, (picture, form, options) in wanted.items():
        written = io.BytesIO()
        picture.save(written, form, **options)
        found[name] = written.getvalue()
    return found


def main() -> None:
    """Write every seed."""
    seeds = {"image": pictures()}
    for target, vocabularies in VOCABULARIES.items():
        seeds[target] = {name: text.encode() for name, text in TEXTS.items()}
        for number, vocabulary in enumerate(vocabularies):
            seeds[target][f"vocabulary-{number}"] = vocabulary.encode() + b"\xff" + TEXTS["plain"].encode()
    for target, files in seeds.items():
        folder = SEEDS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
