"""Progressive JPEG files that lack scans: libjpeg-turbo (in Pillow) smooths between blocks, and so do we, alike."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from varalign.data.images import Preprocess, decode_image, load_images

END = b"\xff\xd9"


def progressive(mode: str, size: tuple[int, int], seed: int, **options: Any) -> bytes:
    """A file of soft shapes and noise: both smooth blocks and sharp ones."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    levels = np.asarray(small) + rng.normal(0, 9, (size[1], size[0], 3))
    buffer = io.BytesIO()
    picture = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).convert(mode)
    picture.save(buffer, "JPEG", progressive=True, **options)
    return buffer.getvalue()


def scans(data: bytes) -> Iterator[int]:
    """Where each scan after the first begins, and the end marker."""
    at, first = 2, True
    while data[at : at + 2] != END:
        if data[at] != 0xFF or data[at + 1] in (0, 0xFF) or 0xD0 <= data[at + 1] <= 0xD7:
            at += 1
            continue
        if data[at + 1] == 0xDA:
            if not first:
                yield at
            first = False
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    yield at


def pillow(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("quality", [30, 90])
@pytest.mark.parametrize(("mode", "subsampling"), [("L", 0), ("RGB", 0), ("RGB", 1), ("RGB", 2), ("CMYK", 0)])
def test_a_file_of_some_scans_is_smoothed_as_libjpeg_smooths_it(mode: str, subsampling: int, quality: int) -> None:
    """Ended after each scan and within each, sizes of whole and broken units; cut without an end, both refuse."""
    rng, smoothed = np.random.default_rng(1), 0
    for number, size in enumerate([(64, 48), (61, 47), (9, 70), (33, 8), (17, 25), (1, 1)]):
        restarts = {"restart_marker_blocks": 3} if number == 1 else {}
        data = progressive(mode, size, number, quality=quality, subsampling=subsampling, **restarts)
        ends = list(scans(data))
        ends += rng.integers(ends[0], ends[-1], 8).tolist()
        whole = pillow(data)
        for end in ends:
            try:
                theirs = pillow(data[:end] + END)
            except OSError:  # within a header
                with pytest.raises(ValueError, match="JPEG image"):
                    decode_image(data[:end] + END)
                continue
            ours = decode_image(data[:end] + END)
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{size}, {end} of {ends}")
            smoothed += bool((theirs != whole).any())
        with pytest.raises(ValueError, match="cut short"):
            decode_image(data[: ends[0]])
        with pytest.raises(OSError, match="truncated"):
            pillow(data[: ends[0]])
    assert smoothed > 20


def test_a_smaller_picture_of_some_scans_is_smoothed_too(tmp_path: Any) -> None:
    """With `decode="fast"`, nearer to the exact path than the blocks of the first scan would be."""
    data = progressive("RGB", (256, 256), 4, quality=75)
    path = tmp_path / "a.jpg"
    path.write_bytes(data[: next(scans(data))] + END)
    exact, fast = (load_images([path], Preprocess(size=64, decode=how), dtype="uint8")[0] for how in ("exact", "fast"))  # type: ignore[arg-type]
    assert np.abs(exact.astype(int) - fast).mean() < 1.0
