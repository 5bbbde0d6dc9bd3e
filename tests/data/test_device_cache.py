"""The decoded cache on a device: the pixels of `ImagePipeline` to the bit, whatever the parts, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from varalign.data import device_cache
from varalign.data.decoded import DecodedCache, decoded_cache
from varalign.data.device_cache import DeviceCache
from varalign.data.images import Augment, Preprocess, prepare
from varalign.data.pipeline import ImagePipeline

Make = Callable[..., NDArray[np.uint8]]
ROWS = np.array([4, 0, 3, 6, 1, 5, 2])
SIZES = [(61, 47), (40, 90), (90, 30), (33, 33), (20, 21), (130, 25), (64, 96)]
"""Heights and widths: kept whole and made smaller, tall (resized down first) and wide (crops of a fixed ratio)."""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, photograph: Make) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    made = [folder / f"{row}.png" for row in range(len(SIZES))]
    for row, (path, size) in enumerate(zip(made, SIZES, strict=True)):
        Image.fromarray(photograph(*size, row)).save(path)
    return made


def both(
    paths: list[Path], folder: Path, preprocess: Preprocess, augment: Augment | None, dtype: Any = "float32"
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two epochs of the device's batches, and the pipeline's."""
    cache = decoded_cache(paths, preprocess, folder, augment=augment)
    resident = DeviceCache(cache, preprocess, "cpu", augment=augment, seed=3)
    pipeline = ImagePipeline(paths, preprocess, augment=augment, seed=3, decoded=cache, dtype=dtype)
    ours = [resident.batch(ROWS, epoch=epoch, dtype=dtype).numpy() for epoch in (0, 1)]
    theirs = [batch.pixels for epoch in (0, 1) for batch in pipeline.batches([ROWS], epoch=epoch)]
    return np.concatenate(ours), np.concatenate(theirs)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [16, 31])
@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_pixels_are_those_of_the_pipeline_to_the_bit(
    paths: list[Path], tmp_path: Path, interpolation: Any, size: int, jitter: float
) -> None:
    preprocess = Preprocess(size=size, interpolation=interpolation)
    augment = Augment(scale=(0.2, 1.0), jitter=(jitter, jitter, jitter))
    ours, theirs = both(paths, tmp_path, preprocess, augment)
    assert ours.dtype == np.float32 and ours.shape == (2 * len(ROWS), 3, size, size)
    np.testing.assert_array_equal(ours, theirs)
    ours, theirs = both(paths, tmp_path, preprocess, augment, "uint8")
    np.testing.assert_array_equal(ours, theirs)


def test_crops_far_larger_than_the_result_differ_by_a_level_at_most(paths: list[Path], tmp_path: Path) -> None:
    """With ratios of up to 8 an axis may have 8 kept pixels for each one: sums are longer than float32 holds."""
    augment = Augment(scale=(0.5, 1.0), ratio=(1 / 8, 8.0))
    ours, theirs = both(paths, tmp_path, Preprocess(size=8), augment, "uint8")
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.002


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_finished_squares_are_taken_as_they_are(paths: list[Path], tmp_path: Path, resize: Any) -> None:
    ours, theirs = both(paths, tmp_path, Preprocess(size=12, resize=resize), None)
    np.testing.assert_array_equal(ours, theirs)


def test_neither_parts_nor_precision_nor_autocast_show(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess, augment = Preprocess(size=16), Augment(jitter=(0.3, 0.3, 0.3))
    cache = decoded_cache(paths, preprocess, tmp_path, augment=augment)
    resident = DeviceCache(cache, preprocess, "cpu", augment=augment)
    whole = resident.batch(ROWS, epoch=2)
    assert whole.is_contiguous(memory_format=torch.channels_last) and not whole.requires_grad
    single = torch.cat([resident.batch(ROWS[[place]], epoch=2) for place in range(len(ROWS))])
    torch.testing.assert_close(single, whole, rtol=0, atol=0)
    assert resident.batch(ROWS[:0]).shape == (0, 3, 16, 16)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        monkeypatch.setattr(device_cache, "WORKING_MEMORY", 1)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(resident.batch(ROWS, epoch=2), whole, rtol=0, atol=0)
    finally:
        torch.set_float32_matmul_precision(before)


def test_draws_are_those_of_each_row(paths: list[Path]) -> None:
    preparation = prepare(Preprocess(), Augment(jitter=(0.1, 0.2, 0.3)), seed=5)
    sizes, rows = np.array([[500, 375], [30, 40]]), np.array([7, 2])
    drawn = preparation.draws(sizes, rows, 4)
    names = ["brightness", "contrast", "saturation"]
    for row, size, found in zip(rows.tolist(), sizes.tolist(), drawn.tolist(), strict=True):
        assert tuple(found[:5]) == preparation.crop(*size, 4, row)
        assert [(names[int(which)], factor) for which, factor in zip(found[5::2], found[6::2], strict=True)] == (
            preparation.colors(4, row)
        )
    plain = prepare(Preprocess(), Augment()).draws(sizes, rows, 4)
    assert (plain[:, 6::2] == 1).all()
    with pytest.raises(ValueError, match="draws no crops"):
        prepare(Preprocess()).draws(sizes, rows, 0)
    with pytest.raises(ValueError, match="for each of 1 rows"):
        preparation.draws(sizes, rows[:1], 0)


def test_what_cannot_be_is_said(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess, augment = Preprocess(size=16), Augment()
    rows = np.array([0, 2])
    cache = decoded_cache(paths, preprocess, tmp_path, augment=augment, rows=rows)
    resident = DeviceCache(cache, preprocess, "cpu", augment=augment)
    assert resident.holds(np.array([0, 1, 2])).tolist() == [True, False, True]
    assert resident.nbytes == cache.path.stat().st_size
    with pytest.raises(KeyError, match=r"rows \[1\] are not in the decoded cache"):
        resident.batch(np.array([0, 1]))
    with pytest.raises(ValueError, match="float64, which mps has not"):
        DeviceCache(cache, preprocess, "mps", augment=augment)
    with pytest.raises(ValueError, match=r"was made for random crops of 16 .* and finished squares of 16"):
        DeviceCache(cache, preprocess, "cpu")

    def full(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", full)
        with pytest.raises(MemoryError, match=r"2 decoded images .* take 256 MiB on cpu, and DefaultCPU.* memory$"):
            DeviceCache(cache, preprocess, "cpu", augment=augment)
    length = cache.path.stat().st_size
    read = np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda file, dtype, count: read(file, dtype, count - 1))
    with pytest.raises(ValueError, match=f"ends at byte {length - 1} of {length}; remove it"):
        DeviceCache(cache, preprocess, "cpu", augment=augment)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_and_nothing_waits_for_the_host(paths: list[Path], tmp_path: Path) -> None:
    preprocess, augment = Preprocess(size=32), Augment(jitter=(0.3, 0.3, 0.3))
    cache: DecodedCache = decoded_cache(paths, preprocess, tmp_path, augment=augment)
    on = {device: DeviceCache(cache, preprocess, device, augment=augment) for device in ("cpu", "cuda")}
    on["cuda"].batch(ROWS)  # the first call loads kernels, which may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = on["cuda"].batch(ROWS, epoch=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), on["cpu"].batch(ROWS, epoch=1), rtol=0, atol=0)
