"""What the compiled core refuses: arrays of another layout, numbers out of range; memory or handles that run out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from varalign import _core
from varalign.data.images import Preprocess, prepare
from varalign.data.moments import RunningMoments
from varalign.data.pipeline import ImagePipeline


@pytest.fixture
def path(tmp_path: Path) -> str:
    levels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def test_arrays_that_are_not_c_contiguous_are_refused(path: str) -> None:
    preparation = prepare(Preprocess(size=4))
    whole = np.zeros((2, 3, 4, 4), np.float32)
    assert not _core.load_images([path, path], [0, 1], preparation, whole)
    unaligned = np.zeros(2 * 3 * 16 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(2, 3, 4, 4)
    for out in (np.zeros((2, 3, 4, 4), np.float32, order="F"), np.zeros((4, 3, 4, 4), np.float32)[::2], unaligned):
        with pytest.raises(ValueError, match="out must be aligned and C-contiguous"):
            _core.load_images([path, path], [0, 1], preparation, out)
    whole.flags.writeable = False
    for other in (whole, whole.astype(">f4"), whole.astype(np.float64), whole[0]):
        with pytest.raises(TypeError):
            _core.load_images([path, path], [0, 1], preparation, other)
    tokenizer = _core.CaptionTokenizer.words("dog\ncat")
    ids, lengths = np.zeros((2, 5), np.int64), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="ids must be aligned and C-contiguous"):
        tokenizer.encode(("dog", "cat"), np.asfortranarray(ids), lengths, 1)
    with pytest.raises(ValueError, match="lengths must be aligned and C-contiguous"):
        tokenizer.encode(("dog", "cat"), ids, np.zeros(4, np.int64)[::2], 1)
    with pytest.raises(ValueError, match="values must be aligned and C-contiguous"):
        _core.Moments(2).update(np.asfortranarray(np.ones((3, 2))))
    with pytest.raises(ValueError, match="sizes must be of 1 rows and 2 columns"):
        _core.load_images(
            [path], [0], preparation, np.zeros((1, 3, 4, 4), np.float32), 0, 1, np.zeros((2, 2), np.int64)
        )


def test_numbers_out_of_range_are_named(path: str) -> None:
    preparation, out = prepare(Preprocess(size=4)), np.zeros((1, 3, 4, 4), np.float32)
    for keys, name in [({"epoch": -1}, "epoch"), ({"threads": -2}, "threads"), ({"threads": 5000}, "threads")]:
        with pytest.raises(ValueError, match=f"{name} must be"):
            _core.load_images([path], [0], preparation, out, **keys)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rows must be a whole number of at least 0 .* got -3"):
        _core.load_images([path], [-3], preparation, out)
    with pytest.raises(ValueError, match="size must be from 1 to 8192 pixels, got -1"):
        prepare(Preprocess(size=-1))
    with pytest.raises(ValueError, match="seed must be"):
        prepare(Preprocess(), seed=-1)
    with pytest.raises(ValueError, match="threads must be 0 .* to 1024, got 5000"):
        ImagePipeline([path], Preprocess(), threads=5000)
    with pytest.raises(ValueError, match="columns must be"):
        RunningMoments(-1)
    with pytest.raises(ValueError, match="short must be"):
        _core.shrink_images([path], -1, preparation)
    with pytest.raises(ValueError, match="threads must be"):
        RunningMoments().update(np.ones(3), threads=-1)


BATCH = """
import resource
import numpy as np
from varalign.data.images import Preprocess
from varalign.data.moments import RunningMoments
from varalign.data.pipeline import ImagePipeline
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
pipeline = ImagePipeline(["a.png"], Preprocess(size=8192), threads=1)
for attempt in (lambda: next(pipeline.batches([np.zeros(64, np.int64)])), lambda: RunningMoments(1 << 34)):
    try:
        attempt()
    except MemoryError as error:
        print(error)
"""


def test_memory_that_is_not_there_is_an_error_with_the_size() -> None:
    done = subprocess.run([sys.executable, "-c", BATCH], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    batch, columns = done.stdout.splitlines()
    assert f"{64 * 3 * 8192 * 8192 * 4} bytes for a batch of 64 images of 8192 x 8192 pixels" in batch
    assert f"{(1 << 34) * 32} bytes cannot be allocated" in columns


def test_files_that_cannot_be_opened_for_want_of_handles_are_an_error_of_the_run(path: str) -> None:
    code = f"""
import resource
import numpy as np
from varalign.data.images import Preprocess, load_images
from varalign.data.pipeline import ImagePipeline
pipeline = ImagePipeline([{path!r}], Preprocess(size=8), threads=1)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
for attempt in (
    lambda: load_images([{path!r}], Preprocess(size=8), threads=1),
    lambda: next(pipeline.batches([np.zeros(1, np.int64)])),
):
    try:
        attempt()
    except OSError as error:
        print(error.errno, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert line.startswith("24 ") and "ulimit -n" in line and "a.png" in line
    assert len(done.stdout.splitlines()) == 2
