"""What a caller of the library hands over to be encoded: texts, and images as files, bytes, Pillow's or arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varalign.data.errors import DataError
from varalign.encoders.specs import Side

WANTED = (
    "a text (str), an image file (Path), the bytes of one, a Pillow image, or an array of pixels (H, W, 3) or (H, W), "
    "uint8"
)


@dataclass(frozen=True)
class Given:
    """Inputs by side.

    Attributes:
        items: (N,) in the caller's order; arrays of several images are taken apart.
        sides: (N,) of each.
        single: whether the caller gave one input, not a list.
    """

    items: list[Any]
    sides: list[Side]
    single: bool

    @classmethod
    def of(cls, inputs: Any) -> Given:
        """Sort inputs by side.

        Raises:
            TypeError: an input is nothing that can be encoded; it is named by its place.
        """
        single = _side(inputs) is not None
        if not single and (isinstance(inputs, Mapping) or not isinstance(inputs, Iterable)):
            raise TypeError(f"inputs: {type(inputs).__name__}; wanted {WANTED}, or a list of these")
        if not single and isinstance(inputs, np.ndarray) and inputs.ndim != 4 and inputs.dtype.kind not in "OU":
            raise TypeError(f"inputs: an array of shape {inputs.shape} and type {inputs.dtype}; wanted {WANTED}")
        items = [inputs] if single else list(inputs)
        items = [item.item() if isinstance(item, np.str_) else item for item in items]
        sides = [_side(item) for item in items]
        for place, (item, side) in enumerate(zip(items, sides, strict=True)):
            if side is None:
                about = f" of {item.shape} {item.dtype}" if isinstance(item, np.ndarray) else ""
                raise TypeError(f"inputs[{place}]: {type(item).__name__}{about}; wanted {WANTED}")
        return cls(items, [side for side in sides if side is not None], single)

    def rows(self, side: Side) -> NDArray[np.int64]:
        """The places of a side's inputs."""
        return np.array([place for place, other in enumerate(self.sides) if other == side], dtype=np.int64)


def _side(item: Any) -> Side | None:
    if isinstance(item, str):
        return "text"
    if isinstance(item, os.PathLike | bytes | bytearray | memoryview) or _is_pillow(item):
        return "image"
    if not isinstance(item, np.ndarray) or item.dtype != np.uint8 or not item.size:
        return None
    return "image" if item.ndim == 2 or (item.ndim == 3 and item.shape[2] == 3) else None


def _is_pillow(item: Any) -> bool:
    from PIL import Image

    return isinstance(item, Image.Image)


@contextmanager
def as_image_files(items: Mapping[int, Any]) -> Iterator[list[Path]]:
    """Within, images are files: what lies in memory is written to a temporary folder.

    They are then read like all others, by the one reader, so that an image has the same pixels however it was given.

    Args:
        items: the images by their place among the caller's inputs, which names them in messages.
    """
    with TemporaryDirectory(prefix="varalign-") as folder:
        try:
            yield [
                Path(item) if isinstance(item, os.PathLike) else _written(Path(folder) / f"inputs[{place}]", item)
                for place, item in items.items()
            ]
        except DataError as error:
            raise DataError(str(error).replace(folder + os.sep, "")) from None


def _written(file: Path, item: Any) -> Path:
    """Write an image that lies in memory: bytes as they are, pixels as BMP, which costs least."""
    if isinstance(item, bytes | bytearray | memoryview):
        file.write_bytes(item)
        return file
    from PIL import Image, ImageOps

    if isinstance(item, np.ndarray):
        picture = Image.fromarray(np.ascontiguousarray(item))
    else:
        picture = ImageOps.exif_transpose(item)
        if picture.mode.startswith("I;16"):
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    picture.convert("RGB").save(file, "BMP")
    return file
