"""What a caller hands over: sorted by side, images in memory as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from varalign.data.errors import DataError
from varalign.data.images import decode_image
from varalign.inputs.given import Given, as_image_files

PIXELS = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)


def test_inputs_are_sorted_by_side() -> None:
    given = Given.of(["a text", Path("a.jpg"), b"bytes", PIXELS, Image.fromarray(PIXELS), PIXELS[..., 0], ""])
    assert given.sides == ["text", "image", "image", "image", "image", "image", "text"] and not given.single
    assert given.rows("text").tolist() == [0, 6] and given.rows("image").tolist() == [1, 2, 3, 4, 5]
    assert Given.of("a").single and Given.of(PIXELS).single and Given.of(Path("a")).single
    assert len(Given.of(np.stack([PIXELS] * 3)).items) == 3 and not Given.of(()).items
    assert Given.of(np.array(["a", "b"])).sides == ["text", "text"]


@pytest.mark.parametrize("wrong", [3, None, {"a": 1}, [None], ["a", 2.5], PIXELS / 255, [PIXELS[..., :2]], PIXELS[:0]])
def test_what_cannot_be_encoded_is_named(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"^inputs(\[\d\])?: .*wanted a text"):
        Given.of(wrong)


def test_images_in_memory_keep_their_pixels() -> None:
    turned = Image.fromarray(PIXELS)
    turned.getexif()[0x0112] = 3  # upside down
    deep = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    clear = Image.fromarray(np.dstack([PIXELS, PIXELS[..., :1]]), "RGBA")
    items = {0: PIXELS, 2: PIXELS[..., 0], 3: turned, 4: deep, 5: clear}
    with as_image_files(items) as files:
        found = [decode_image(file.read_bytes()) for file in files]
    grey = np.repeat(PIXELS[..., :1], 3, axis=2)
    wanted = [PIXELS, grey, PIXELS[::-1, ::-1], grey, PIXELS]
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert not files[0].exists()


def test_a_fault_names_the_input_and_no_temporary_folder() -> None:
    with pytest.raises(DataError, match=r"^inputs\[4\]: bad$"), as_image_files({4: b"x"}) as files:
        raise DataError(f"{files[0]}: bad")
