"""AVIF, HEIC, JPEG 2000 and JPEG XL, which the compiled core hands to Pillow and its plugins.

A picture is opened as the one format that its first bytes name, never by Pillow's search through all its plugins.
"""

from __future__ import annotations

import io
import logging
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray

from varalign.data.errors import how_to_install

LOGGER = logging.getLogger("varalign")

_PLUGINS = {
    "AVIF": ("AVIF", "PIL.AvifImagePlugin"),
    "HEIC": ("HEIF", "pillow_heif"),
    "JPEG 2000": ("JPEG2000", "PIL.Jpeg2KImagePlugin"),
    "JPEG XL": ("JXL", "pillow_jxl"),
}
"""The core's name of a format: Pillow's, and the module that reads it."""

_JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


@lru_cache(maxsize=1)
def versions() -> list[str]:
    """The installed versions that pixels of these formats depend on."""
    found = []
    for package in ("pillow", "pillow-heif", "pillow-jxl-plugin"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def _say_once() -> None:
    LOGGER.warning("AVIF, HEIC, JPEG 2000 and JPEG XL are decoded by Pillow, slower than the other formats")


@lru_cache(maxsize=len(_PLUGINS))
def _pillow_name(name: str) -> str:
    """Pillow's name of a format, whose plugin is loaded; ValueError where there is none."""
    pillow_name, module = _PLUGINS[name]
    try:
        plugin = import_module(module)
    except ImportError as error:
        message = f"{name} image: what reads it is not installed; {how_to_install('formats')}"
        raise ValueError(message) from error
    if name == "HEIC":
        plugin.register_heif_opener()
    return pillow_name


def decode_other(data: bytes, name: str, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a picture of a format of `_PLUGINS` as Pillow does: (H, W, 3) uint8, upright, alpha dropped.

    16-bit grey keeps its high byte, as in the other formats. ValueError where the bytes are damaged, of too many
    pixels, or of a format whose plugin is missing. May be called on any thread.
    """
    from PIL import Image, ImageOps

    pillow_name = _pillow_name(name)
    _say_once()
    try:
        # The plugin of JPEG XL decodes when it opens.
        _check_pixels(name, _jxl_size(data) if name == "JPEG XL" else (0, 0), max_pixels)
        with Image.open(io.BytesIO(data), formats=[pillow_name]) as opened:
            _check_pixels(name, opened.size, max_pixels)
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):
                high = (np.asarray(image) >> 8).astype(np.uint8)
                return np.repeat(high[..., None], 3, axis=2)
            if image.mode in ("I", "F"):
                raise ValueError(f"{name} image: samples of 32 bits cannot be read; save it as PNG of 8 bits")
            return np.array(image.convert("RGB"))
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        message = str(error)
        raise ValueError(message if message.startswith(name) else f"{name} image: damaged: {message}") from error


def _check_pixels(name: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ValueError(f"{name} image: declares {width}x{height}, more than the limit of {max_pixels} pixels")


def _jxl_size(data: bytes) -> tuple[int, int]:
    """Width and height that a JPEG XL file declares (ISO/IEC 18181-1, SizeHeader); (0, 0) for a damaged header."""
    at = 0
    while data[at : at + 2] != b"\xff\x0a":
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        head = 16 if size == 1 else 8
        if kind in (b"jxlc", b"jxlp"):
            at += head + 4 * (kind == b"jxlp")
            break
        if size == 0 or at + 8 > len(data):
            return 0, 0
        at += max(head, int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size)
    bits = int.from_bytes(data[at + 2 : at + 18], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    if ratio == 0:
        return side(), height
    across, down = _JXL_RATIOS[ratio - 1]
    return height * across // down, height
