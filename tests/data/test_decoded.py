"""The decoded cache: where it is the plain path to the bit, how near it is elsewhere, and what it notices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import varalign.data.decoded as decoded_module
from numpy.typing import NDArray
from PIL import Image
from varalign.data.decoded import DecodedCache, decoded_cache
from varalign.data.images import Augment, Preprocess, load_images
from varalign.data.pipeline import ImagePipeline

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
    assert len(cache) == 6 and cache[2].shape == (220 - 38, 150 + 34, 3)
    np.testing.assert_array_equal(pixels(paths, 150, cache, augment=augment), pixels(paths, 150, None, augment=augment))


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_without_augmentation_the_finished_squares_are_kept(paths: list[Path], tmp_path: Path, resize: str) -> None:
    preprocess = Preprocess(size=24, resize=resize)  # type: ignore[arg-type]
    cache = decoded_cache(paths, preprocess, tmp_path, augment=None)
    assert cache[0].shape == (24, 24, 3)
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
    assert min(cache[0].shape[:2]) == round(size * margin)
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
    with pytest.raises(KeyError, match="row 5 is not in the decoded cache"):
        cache[5]
    pipeline = ImagePipeline(broken, Preprocess(size=16), augment=Augment(), decoded=cache)
    (batch,) = pipeline.batches([np.array([5, 1, 0])])
    ((position, message),) = batch.errors
    assert position == 0 and "broken.png" in message and "text file" in message
    assert not batch.pixels[0].any() and batch.pixels[1].any() and batch.pixels[2].any()


def test_a_cache_is_read_again_until_it_is_stale_or_damaged(
    paths: list[Path], tmp_path: Path, photograph: Make
) -> None:
    said: list[str] = []

    def make(files: list[Path] = paths) -> DecodedCache:
        said.clear()
        return decoded_cache(files, Preprocess(size=16), tmp_path / "cache", augment=Augment(), say=said.append)

    copies = [tmp_path / path.name for path in paths]
    for path, copy in zip(paths, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    whole = make(copies).path.read_bytes()
    assert len(said) == 1 and "6 images" in said[0] and "kept in" in said[0]
    cache = make(copies)
    assert len(said) == 1 and "6 images from" in said[0]

    index = cache.path.with_suffix(".safetensors")
    for file, damage, message in [
        (cache.path, whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:], "picture of row 0 has changed"),
        (cache.path, whole[:-1], "lies outside the file"),
        (index, index.read_bytes()[:100], "is damaged"),
    ]:
        file.write_bytes(damage)
        assert make(copies).path.read_bytes() == whole
        assert message in said[0] and "made anew" in said[0] and "kept in" in said[-1]
    cache.path.unlink()
    assert make(copies).path.read_bytes() == whole and "made anew" in said[0]

    Image.fromarray(photograph(90, 80)).save(copies[3])
    assert make(copies).path.read_bytes() != whole
    assert "stale" in said[0] and "made anew" in said[0]
    assert len(list(cache.path.parent.iterdir())) == 2, "nothing is left beside the two files"


def test_wrong_settings_are_errors(paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(OSError, match="file"):
        (tmp_path / "file").write_text("")
        decoded_cache(paths, Preprocess(size=8), tmp_path / "file", augment=None)


def test_a_cache_of_other_settings_is_refused(paths: list[Path], tmp_path: Path) -> None:
    small, large = Preprocess(size=16), Preprocess(size=24)
    cache = decoded_cache(paths, small, tmp_path, augment=None)
    for preprocess, augment in ((large, None), (small, Augment()), (replace(small, interpolation="bilinear"), None)):
        with pytest.raises(ValueError, match="was made for finished squares of 16"):
            ImagePipeline(paths, preprocess, augment=augment, decoded=cache)
    with pytest.raises(ValueError, match=f"a data set of {len(paths)} files, not of 1"):
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
