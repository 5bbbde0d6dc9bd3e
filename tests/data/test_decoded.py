"""The decoded cache: where it is the plain path to the bit, how near it is elsewhere, and what it notices."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import varalign.data.decoded as decoded_module
from numpy.typing import NDArray
from PIL import Image
from varalign.data.decoded import DecodedCache, decoded_cache
from varalign.data.images import Augment, Preprocess, load_images
from varalign.data.pipeline import ImagePipeline
from varalign.data.sample import write_sample

Make = Callable[..., NDArray[np.uint8]]
ORDER = [np.array([4, 0, 3]), np.array([1, 5, 2])]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, photograph: Make) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    made = [folder / f"{row}.png" for row in range(6)]
    for row, path in enumerate(made):
        Image.fromarray(photograph(150 + 17 * row, 220 - 19 * row, row)).save(path)
    return made


def pixels(paths: list[Path], size: int, cache: DecodedCache | None, **keys: object) -> NDArray[np.generic]:
    pipeline = ImagePipeline(paths, Preprocess(size=size), decoded=cache, seed=3, dtype="uint8", **keys)  # type: ignore[arg-type]
    return np.concatenate([batch.pixels for epoch in (0, 1) for batch in pipeline.batches(ORDER, epoch=epoch)])


def test_pictures_kept_whole_give_the_same_pixels_as_their_files(paths: list[Path], tmp_path: Path) -> None:
    """Short sides are at most 1.5 times 150: nothing is made smaller, so crops agree to the bit."""
    augment = Augment()
    cache = decoded_cache(paths, Preprocess(size=150), tmp_path, augment=augment)
    assert len(cache) == 6 and cache.index[2, 1:3].tolist() == [150 + 34, 220 - 38]
    np.testing.assert_array_equal(pixels(paths, 150, cache, augment=augment), pixels(paths, 150, None, augment=augment))


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_without_augmentation_the_finished_squares_are_kept(paths: list[Path], tmp_path: Path, resize: str) -> None:
    preprocess = Preprocess(size=24, resize=resize)  # type: ignore[arg-type]
    cache = decoded_cache(paths, preprocess, tmp_path, augment=None)
    assert (cache.index[:, 1:3] == 24).all()
    ours, plain = (
        np.concatenate([batch.pixels for batch in ImagePipeline(paths, preprocess, decoded=decoded).batches(ORDER)])
        for decoded in (cache, None)
    )
    np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize(
    ("size", "margin", "mean", "p999"), [(64, 1.5, 1.6, 12), (64, 2.0, 0.9, 6), (40, 1.5, 2.0, 15)]
)
def test_smaller_pictures_give_the_same_crops_a_little_softer(
    paths: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    margin: float,
    mean: float,
    p999: float,
) -> None:
    """The same crop and mirror, so the difference is that of resampling twice: stated in levels, and without a bias."""
    augment = Augment()
    monkeypatch.setattr(decoded_module, "MARGIN", margin)
    cache = decoded_cache(paths, Preprocess(size=size), tmp_path, augment=augment)
    assert cache.index[0, 1:3].min() == round(size * margin)
    ours, plain = (pixels(paths, size, decoded, augment=augment).astype(int) for decoded in (cache, None))
    difference = np.abs(ours - plain)
    assert difference.mean() <= mean and np.quantile(difference, 0.999) <= p999
    assert abs((ours - plain).mean()) < 0.1
    # A crop that lay elsewhere would differ by far more.
    moved = np.abs(np.roll(plain, 1, axis=-1) - plain).mean()
    assert difference.mean() < moved / 2


def test_the_result_depends_on_seed_epoch_and_row_alone(paths: list[Path], tmp_path: Path) -> None:
    cache = decoded_cache(paths, Preprocess(size=32), tmp_path, augment=Augment(), threads=2)
    first = pixels(paths, 32, cache, augment=Augment(), threads=1, prefetch=1)
    again = decoded_cache(paths, Preprocess(size=32), tmp_path / "again", augment=Augment(), threads=1)
    assert cache.path.read_bytes() == again.path.read_bytes()
    for threads in (2, 5):
        np.testing.assert_array_equal(pixels(paths, 32, again, augment=Augment(), threads=threads), first)


def test_rows_that_are_not_kept_come_from_their_files(paths: list[Path], tmp_path: Path) -> None:
    broken = [*paths[:5], tmp_path / "broken.png"]
    broken[5].write_text("no image")
    rows = np.array([0, 2, 5], np.int64)
    cache = decoded_cache(broken, Preprocess(size=16), tmp_path, augment=Augment(), rows=rows)
    assert len(cache) == 2
    assert (cache.index[:, 1] > 0).tolist() == [True, False, True, False, False, False]
    pipeline = ImagePipeline(broken, Preprocess(size=16), augment=Augment(), decoded=cache)
    (batch,) = pipeline.batches([np.array([5, 1, 0])])
    ((position, message),) = batch.errors
    assert position == 0 and "broken.png" in message and "text file" in message
    assert not batch.pixels[0].any() and batch.pixels[1].any() and batch.pixels[2].any()


def copied(paths: list[Path], folder: Path) -> list[Path]:
    folder.mkdir()
    copies = [folder / path.name for path in paths]
    for path, copy in zip(paths, copies, strict=True):
        copy.write_bytes(path.read_bytes())
        os.utime(copy, ns=(0, 0))
    return copies


def test_a_whole_cache_is_read_again_and_a_damaged_one_made_anew(paths: list[Path], tmp_path: Path) -> None:
    said: list[str] = []

    def make() -> DecodedCache:
        said.clear()
        return decoded_cache(paths, Preprocess(size=16), tmp_path / "cache", augment=Augment(), say=said.append)

    cache = make()
    whole = cache.path.read_bytes()
    assert len(said) == 1 and "6 images" in said[0] and "kept in" in said[0]
    make()
    assert len(said) == 1 and "6 images from" in said[0]
    cut = len(whole) - 36 - 40 * len(paths)  # where the pixels end
    places = [0, 1000, cut - 1, cut, cut + 60, len(whole) - 36, len(whole) - 1]
    flipped = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in places]
    for damage in [*flipped, whole[:-1], whole[:100], b"", whole + b"\0", whole[3:]]:
        cache.path.write_bytes(damage)
        assert make().path.read_bytes() == whole
        assert "is damaged" in said[0] and "made anew" in said[0] and "kept in" in said[-1]
    assert list((tmp_path / "cache").iterdir()) == [cache.path], "nothing is left beside the file"


def test_a_cache_is_that_of_the_bytes_of_its_images(paths: list[Path], tmp_path: Path, photograph: Make) -> None:
    """Equal names, sizes and times of change (as after a checkout) do not make two folders one."""
    size = max(path.stat().st_size for path in paths) + 1000
    first, same, other = (copied(paths, tmp_path / name) for name in ("first", "same", "other"))
    Image.fromarray(photograph(90, 80)).save(other[3])
    for path in [*first, *same, *other]:
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))  # a decoder passes over what follows the picture
        os.utime(path, ns=(0, 0))
    keep = {"augment": Augment()}
    caches = [decoded_cache(files, Preprocess(size=16), tmp_path, **keep) for files in (first, same, other)]
    assert caches[0].path == caches[1].path != caches[2].path
    Image.fromarray(photograph(80, 90)).save(first[0])
    os.utime(first[0], ns=(0, 0))
    assert decoded_cache(first, Preprocess(size=16), tmp_path, **keep).path not in [cache.path for cache in caches]


def test_images_that_change_while_they_are_decoded_are_not_kept(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photograph: Make
) -> None:
    files, plain = copied(paths, tmp_path / "images"), decoded_module._decode

    def meanwhile(*arguments: Any) -> Any:
        Image.fromarray(photograph(33, 44)).save(files[0])
        return plain(*arguments)

    monkeypatch.setattr(decoded_module, "_decode", meanwhile)
    with pytest.raises(OSError, match="the images changed while they were decoded"):
        decoded_cache(files, Preprocess(size=16), tmp_path / "cache", augment=None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_in_use_stays_what_it_is_whatever_happens_to_its_name(paths: list[Path], tmp_path: Path) -> None:
    cache = decoded_cache(paths, Preprocess(size=32), tmp_path, augment=Augment())
    expected = pixels(paths, 32, cache, augment=Augment())
    other = decoded_cache(paths[::-1], Preprocess(size=32), tmp_path, augment=Augment())
    os.replace(other.path, cache.path)
    np.testing.assert_array_equal(pixels(paths, 32, cache, augment=Augment()), expected)
    cache.path.unlink()
    np.testing.assert_array_equal(pixels(paths, 32, cache, augment=Augment()), expected)


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.long)])
def test_runs_with_other_rows_share_a_folder(paths: list[Path], tmp_path: Path, times: int) -> None:
    """As two runs with different `--dataset-size` and one `--cache`: each crops from its own rows, kept whole."""
    plain = pixels(paths, 150, None, augment=Augment())
    broken = [*paths[:5], tmp_path / "none.png"]

    start = threading.Barrier(2, timeout=900)

    def run(rows: list[int]) -> None:
        for turn in range(times):
            start.wait()
            if turn % 3 == 0:
                shutil.rmtree(tmp_path / "cache", ignore_errors=True)
            start.wait()
            cache = decoded_cache(
                broken, Preprocess(size=150), tmp_path / "cache", augment=Augment(), rows=np.array(rows)
            )
            start.wait()  # both have opened theirs before either takes its first batch
            assert np.flatnonzero(cache.index[:, 1]).tolist() == rows
            np.testing.assert_array_equal(pixels(paths, 150, cache, augment=Augment()), plain)

    def run_or_stop_both(rows: list[int]) -> None:
        try:
            run(rows)
        except threading.BrokenBarrierError:
            pass  # the other's fault is told
        except BaseException:
            start.abort()
            raise

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run_or_stop_both, ([0, 1, 2], [0, 2, 3, 4])))
    assert not start.broken


@pytest.mark.long
def test_two_training_runs_share_folder_and_cache_twenty_times(tmp_path: Path) -> None:
    """Losses are those of runs without a cache: 32 pixels are kept whole at an image size of 32."""
    write_sample(tmp_path / "data", images=60, size=32)

    def train(name: str, images: int, cache: str) -> subprocess.Popen[bytes]:
        options = (
            f"--dataset-size {images} --decoded-cache {cache} --image-size 32 --batch-size 8 --epochs 1 --threads 1"
        )
        places = ["--data", str(tmp_path / "data"), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / name)]
        command = [sys.executable, "-m", "varalign", "train", *places, *options.split(), "--embedding-dim", "8"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def losses(name: str, process: subprocess.Popen[bytes]) -> list[float]:
        _, said = process.communicate(timeout=900)
        assert process.returncode == 0, said.decode()
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines]

    sizes = (16, 24)
    expected = [losses(f"off{size}", train(f"off{size}", size, "off")) for size in sizes]
    for turn in range(20):
        if turn % 3 == 0:
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        running = [(f"{turn}-{size}", train(f"{turn}-{size}", size, "disk")) for size in sizes]
        assert [losses(*one) for one in running] == expected, turn


def test_wrong_settings_are_errors(paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(OSError, match="file"):
        (tmp_path / "file").write_text("")
        decoded_cache(paths, Preprocess(size=8), tmp_path / "file", augment=None)


def test_a_cache_of_other_settings_is_refused(paths: list[Path], tmp_path: Path) -> None:
    small, large = Preprocess(size=16), Preprocess(size=24)
    cache = decoded_cache(paths, small, tmp_path, augment=None)
    for preprocess, augment in ((large, None), (small, Augment()), (replace(small, interpolation="bilinear"), None)):
        with pytest.raises(ValueError, match=r"was made for \(16, .*\) and 6 files, but"):
            ImagePipeline(paths, preprocess, augment=augment, decoded=cache)
    with pytest.raises(ValueError, match="and 6 files, but .* and 1 files are wanted"):
        ImagePipeline(paths[:1], small, decoded=cache)
    with pytest.raises(ValueError, match=r"rows must be from 0 to \d+, got -1"):
        decoded_cache(paths, small, tmp_path, augment=None, rows=np.array([-1]))


def test_a_file_that_is_not_there_is_met_by_the_pipeline(paths: list[Path], tmp_path: Path) -> None:
    some, preprocess = [paths[0], tmp_path / "none.jpg"], Preprocess(size=16)
    cache = decoded_cache(some, preprocess, tmp_path, augment=None)
    assert len(cache) == 1
    [batch] = ImagePipeline(some, preprocess, decoded=cache).batches([np.arange(2)])
    assert [row for row, _ in batch.errors] == [1]
    with pytest.raises(TypeError, match="wanted a list of paths, got one path"):
        load_images(str(paths[0]), preprocess)
