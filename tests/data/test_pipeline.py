"""ImagePipeline: order, determinism, back-pressure, shutdown, errors as values."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from varalign.data.images import Augment, Preprocess, load_images
from varalign.data.pipeline import ImagePipeline

PREPROCESS = Preprocess(size=24)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    made = []
    for row in range(23):
        made.append(folder / f"{row}.jpg")
        levels = rng.integers(0, 256, (40 + row, 60 - row, 3), dtype=np.uint8)
        Image.fromarray(levels).save(made[-1], quality=90)
    return made


def order_of(rows: int, size: int = 4, epochs: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [part for _ in range(epochs) for part in np.array_split(rng.permutation(rows), -(-rows // size))]


def image_threads() -> list[str]:
    """Names of this process's threads that belong to a pipeline."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread may end between the two looks
            names.append((task / "comm").read_text().strip())
    return [name for name in names if name.startswith(("varalign-image", "varalign-batch"))]


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted through /proc")


def test_batches_are_those_of_load_images_in_order(paths: list[Path]) -> None:
    order = order_of(len(paths))
    batches = list(ImagePipeline(paths, PREPROCESS, threads=2).batches(order))
    assert len(batches) == len(order)
    for batch, rows in zip(batches, order, strict=True):
        expected, errors = load_images([paths[row] for row in rows], PREPROCESS)
        np.testing.assert_array_equal(batch.rows, rows)
        np.testing.assert_array_equal(batch.pixels, expected)
        assert batch.errors == errors == [] and batch.wait >= 0
        assert batch.pixels.dtype == np.float32 and batch.pixels.flags.c_contiguous and batch.pixels.flags.writeable


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_the_result_does_not_depend_on_threads_or_prefetch(paths: list[Path], dtype: str) -> None:
    order = order_of(len(paths), epochs=3)

    def run(threads: int, prefetch: int) -> np.ndarray:
        pipeline = ImagePipeline(
            paths, PREPROCESS, augment=Augment(), seed=3, threads=threads, prefetch=prefetch, dtype=dtype
        )  # type: ignore[call-overload]
        return np.concatenate([batch.pixels for batch in pipeline.batches(order, epoch=5)])

    first = run(1, 1)
    for threads, prefetch in [(1, 4), (2, 1), (3, 2), (8, 16), (0, 3)]:
        np.testing.assert_array_equal(run(threads, prefetch), first)


def test_augmentation_is_that_of_load_images(paths: list[Path]) -> None:
    pipeline = ImagePipeline(paths, PREPROCESS, augment=Augment(), seed=9)
    for epoch in (0, 1):
        (batch,) = pipeline.batches([np.array([4, 2])], epoch=epoch)
        expected, _ = load_images([paths[4], paths[2]], PREPROCESS, augment=Augment(), seed=9, epoch=epoch, rows=[4, 2])
        np.testing.assert_array_equal(batch.pixels, expected)


def test_errors_are_values_and_their_pixels_zero(paths: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(paths[0].read_bytes()[:300])
    files = [paths[0], bad, tmp_path / "missing.png", paths[1]]
    (batch,) = ImagePipeline(files, PREPROCESS).batches([np.array([1, 0, 2, 3])])
    assert [position for position, _ in batch.errors] == [0, 2]
    assert "bad.jpg: JPEG image: the file is cut short" in batch.errors[0][1]
    assert "missing.png" in batch.errors[1][1]
    assert not batch.pixels[[0, 2]].any() and batch.pixels[[1, 3]].any(axis=(1, 2, 3)).all()


def test_rows_without_a_path_are_refused_at_once(paths: list[Path]) -> None:
    pipeline = ImagePipeline(paths, PREPROCESS)
    for row in (len(paths), -1):
        with pytest.raises(ValueError, match=f"batch 1 asks for row {row}, but there are {len(paths)} image paths"):
            pipeline.batches([np.array([0]), np.array([row])])
    for wrong in ({"prefetch": 0}, {"threads": -1}):
        with pytest.raises(ValueError, match="must be"):
            ImagePipeline(paths, PREPROCESS, **wrong)  # type: ignore[arg-type]


def test_nothing_asked_and_empty_batches(paths: list[Path]) -> None:
    pipeline = ImagePipeline(paths, PREPROCESS)
    assert list(pipeline.batches([])) == []
    (batch,) = pipeline.batches([np.array([], dtype=np.int64)])
    assert batch.pixels.shape == (0, 3, 24, 24)


@needs_proc
def test_threads_are_gone_after_the_end_a_drop_a_close_and_an_exception(paths: list[Path]) -> None:
    pipeline = ImagePipeline(paths, PREPROCESS, threads=3)
    order = order_of(len(paths), epochs=20)
    assert image_threads() == []

    list(pipeline.batches(order[:3]))
    assert image_threads() == []

    batches = pipeline.batches(order)
    next(batches)
    assert image_threads()
    del batches
    gc.collect()
    assert image_threads() == []

    with pytest.raises(KeyError):
        for batch in pipeline.batches(order):
            raise KeyError(batch.rows[0])
    gc.collect()
    assert image_threads() == []

    closing = pipeline.batches(order)
    next(closing)
    closing.close()
    assert image_threads() == []
    with pytest.raises(StopIteration):
        next(closing)


def test_no_more_than_prefetch_batches_are_made_ahead(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path)
    paths = [tmp_path / f"{row}.png" for row in range(40)]
    for target in paths:
        target.symlink_to(path)
    batches = ImagePipeline(paths, PREPROCESS, threads=2, prefetch=3).batches([np.array([row]) for row in range(40)])
    next(batches)
    # Batches 1 to 3 may be made by now and no other: what is removed is missing from batch 4 on.
    for target in paths[4:]:
        target.unlink()
    failed = [bool(batch.errors) for batch in batches]
    assert failed == [False] * 3 + [True] * 36


def test_the_wait_is_measured_and_python_runs_meanwhile(paths: list[Path]) -> None:
    ticks = 0
    stop = threading.Event()

    def count() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    thread.start()
    begin = time.perf_counter()
    waits = [batch.wait for batch in ImagePipeline(paths, PREPROCESS).batches(order_of(len(paths), 23, epochs=8))]
    elapsed = time.perf_counter() - begin
    stop.set()
    thread.join()
    assert 0 < sum(waits) <= elapsed and ticks > 0


def test_two_runs_of_one_pipeline_side_by_side(paths: list[Path]) -> None:
    pipeline = ImagePipeline(paths, PREPROCESS, threads=2)
    order = order_of(len(paths))
    for one, other in zip(pipeline.batches(order), pipeline.batches(order), strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


@needs_proc
def test_file_handles_that_run_out_are_no_fault_of_an_image(paths: list[Path]) -> None:
    code = (
        "import os, resource, sys, numpy as np\n"
        "from varalign.data.images import Preprocess, load_images\nfrom varalign.data.pipeline import ImagePipeline\n"
        "paths, preprocess = sys.argv[1:], Preprocess(size=8)\n"
        "limit = max(map(int, os.listdir('/proc/self/fd'))) + 1\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))\n"
        "kept = []\n"
        "while True:\n"
        "    try:\n        kept.append(os.open('/dev/null', os.O_RDONLY))\n    except OSError:\n        break\n"
        "for run in (lambda: load_images(paths, preprocess, threads=1),\n"
        "            lambda: next(ImagePipeline(paths, preprocess, threads=1).batches([np.arange(len(paths))]))):\n"
        "    try:\n        run()\n    except OSError as error:\n        assert 'ulimit' in str(error), error\n"
        "    else:\n        raise SystemExit('no error')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
