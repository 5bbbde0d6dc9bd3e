"""AVIF, HEIC, JPEG 2000 and JPEG XL through Pillow, and what is refused with the conversion to use."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from varalign.data import other_images
from varalign.data.images import IMAGE_SUFFIXES, MAX_PIXELS, Preprocess, decode_image, load_images
from varalign.data.pipeline import ImagePipeline

FORMATS = {"AVIF": "AVIF", "HEIC": "HEIF", "JPEG 2000": "JPEG2000", "JPEG XL": "JXL"}
"""The core's name, and Pillow's."""
PLUGINS = {"HEIC": "pillow_heif", "JPEG XL": "pillow_jxl"}


def encoded(name: str, mode: str = "RGB", size: tuple[int, int] = (61, 47), orientation: int = 1) -> bytes:
    if name in PLUGINS:
        plugin = pytest.importorskip(PLUGINS[name], reason="the extra `formats` is not installed")
        if name == "HEIC":
            plugin.register_heif_opener()
    levels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[274] = orientation
    options = {} if orientation == 1 else {"exif": exif.tobytes()}
    Image.fromarray(levels).convert(mode).save(buffer, FORMATS[name], **options)
    return buffer.getvalue()


def pillow(name: str, data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data), formats=[FORMATS[name]])).convert("RGB"))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_pixels_are_pillows(name: str, mode: str, orientation: int) -> None:
    data = encoded(name, mode, orientation=orientation)
    np.testing.assert_array_equal(decode_image(data), pillow(name, data))


@pytest.mark.parametrize("name", FORMATS)
def test_the_pipeline_decodes_them_on_its_threads(name: str, tmp_path: Path) -> None:
    """The batches of one thread and of four; a generator that is dropped with threads at work ends them."""
    paths = [tmp_path / f"{number}.jpg" for number in range(24)]
    for number, path in enumerate(paths):
        path.write_bytes(encoded(name, size=(30 + number, 40)))
    order = [np.arange(start, start + 8) for start in (0, 8, 16)]
    one, four = (
        [
            batch.pixels
            for batch in ImagePipeline(paths, Preprocess(size=16), threads=threads, dtype="uint8").batches(order)
        ]
        for threads in (1, 4)
    )
    for ours, theirs in zip(one, four, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.any()
    loaded, errors = load_images(paths, Preprocess(size=16), threads=2, dtype="uint8")
    assert not errors
    np.testing.assert_array_equal(loaded, np.concatenate(one))
    batches = ImagePipeline(paths, Preprocess(size=16), threads=4, dtype="uint8").batches(order)
    del batches
    gc.collect()


@pytest.mark.parametrize("name", FORMATS)
def test_damage_and_too_many_pixels_are_errors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(name)
    with pytest.raises(ValueError, match=f"{name} image: damaged|{name} image: "):
        decode_image(data[:60] + bytes(len(data) - 60))
    with pytest.raises(ValueError, match=f"{name} image: declares 61x47, more than the limit of 2866 pixels"):
        other_images.decode_other(data, name, 61 * 47 - 1)
    assert other_images.decode_other(data, name, 61 * 47).shape == (47, 61, 3)


@pytest.mark.parametrize(
    "size", [(8, 8), (256, 256), (61, 47), (64, 48), (48, 64), (1000, 37), (300, 200), (160, 90), (9000, 3)]
)
def test_the_declared_size_of_jpeg_xl(size: tuple[int, int]) -> None:
    assert other_images._jxl_size(encoded("JPEG XL", size=size)) == size
    assert other_images._jxl_size(encoded("JPEG XL", size=size, orientation=6)) == size


def test_a_huge_jpeg_xl_is_refused_before_it_is_decoded() -> None:
    pytest.importorskip("pillow_jxl", reason="the extra `formats` is not installed")
    bits = 0 | 3 << 1 | (99_999 << 3) | (1 << 33)  # 100,000 rows, as many columns
    with pytest.raises(ValueError, match=f"declares 100000x100000, more than the limit of {MAX_PIXELS} pixels"):
        decode_image(b"\xff\x0a" + bits.to_bytes(20, "little"))


def test_a_missing_plugin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("HEIC")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    other_images._pillow_name.cache_clear()
    with pytest.raises(ValueError, match=r"HEIC image: what reads it is not installed; pip install '\.\[formats\]'"):
        decode_image(data)
    other_images._pillow_name.cache_clear()


def test_an_interrupt_within_the_decoder_is_raised_when_the_core_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("AVIF")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    def work() -> None:
        with contextlib.suppress(ValueError):
            decode_image(data)
        for _ in range(100):  # signals are handled here
            pass

    monkeypatch.setattr(other_images, "_check_pixels", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_is_said_once_that_they_are_slower(caplog: pytest.LogCaptureFixture) -> None:
    other_images._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, "varalign"):
        for _ in range(3):
            decode_image(encoded("AVIF"))
    assert [record.message for record in caplog.records] == [
        "AVIF, HEIC, JPEG 2000 and JPEG XL are decoded by Pillow, slower than the other formats"
    ]


def test_no_plugin_is_loaded_before_it_is_needed() -> None:
    code = "import sys, varalign.data.images; assert not {'PIL', 'pillow_heif', 'pillow_jxl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_suffixes_of_all_formats_are_known() -> None:
    assert {".tif", ".tiff", ".avif", ".heic", ".jp2", ".jxl", ".jpg"} < IMAGE_SUFFIXES


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes(128) + b"DICM" + bytes(20), "DICOM; convert it to PNG"),
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(40), "a camera's raw data"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a camera's raw file; develop it as JPEG or TIFF"),
        (b"FUJIFILMCCD-RAW 0201", "a camera's raw file"),
        (b"8BPS\0\1" + bytes(20), r"Photoshop \(PSD\); save it as PNG"),
        (b"<?xml version='1.0'?><svg/>", "SVG; draw it as PNG"),
        (b"%PDF-1.7 ", "PDF; draw its pages as PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript; draw it as PNG"),
        (zlib.compress(b"x"), "no image format begins with the bytes 78 9c"),
    ],
)
def test_what_is_refused_names_the_conversion(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_image(data)
