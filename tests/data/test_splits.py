"""Who is in which split: lists, draws, twins, and training sets of growing size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from varalign.data.datasets import load_dataset
from varalign.data.errors import DataError
from varalign.data.splits import LISTS, limit_training, seeded_split, separate_twins

NAMES = [f"{number}.jpg" for number in range(12)]
PARTS = {"train": NAMES[:6], "dev": NAMES[6:8], "test": NAMES[8:10]}


def lay_out(folder: Path, lists: dict[str, list[str]], place: str = "", end: str = "\n") -> Path:
    (folder / "Images").mkdir(parents=True, exist_ok=True)
    (folder / place).mkdir(exist_ok=True)
    for number, name in enumerate(NAMES):
        (folder / "Images" / name).write_bytes(b"image" + bytes([number]))
    (folder / "captions.txt").write_text("".join(f"{name},A caption .\n" for name in NAMES))
    for split, names in lists.items():
        (folder / place / LISTS[split]).write_text(end.join([*names, ""]))
    return folder


@pytest.mark.parametrize("place", ["", "Flickr8k_text"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_the_official_lists_decide(tmp_path: Path, place: str, end: str) -> None:
    dataset = load_dataset(lay_out(tmp_path, PARTS, place, end))
    assert dataset.split.tolist() == [0] * 6 + [1] * 2 + [2] * 2 + [-1] * 2
    assert dataset.notes[1:] == [
        "splits from Flickr_8k.trainImages.txt and its like: 6 train, 2 dev, 2 test; 2 images in none"
    ]


def test_two_lists_of_three_are_refused(tmp_path: Path) -> None:
    lay_out(tmp_path, {"train": NAMES[:6], "test": NAMES[8:]})
    with pytest.raises(
        DataError, match=r"trainImages.txt and Flickr_8k.testImages.txt but no Flickr_8k.devImages.txt; put"
    ):
        load_dataset(tmp_path)


def test_an_image_in_two_lists_is_refused(tmp_path: Path) -> None:
    lay_out(tmp_path, {**PARTS, "test": ["8.jpg", "", "2.jpg"]})
    with pytest.raises(
        DataError, match=r"testImages.txt line 3: image '2.jpg' is in Flickr_8k.trainImages.txt as well"
    ):
        load_dataset(tmp_path)


def test_listed_images_that_are_not_there_are_noted(tmp_path: Path) -> None:
    lay_out(tmp_path, {**PARTS, "dev": ["6.jpg", "absent.jpg"]})
    assert "Flickr_8k.devImages.txt: 1 names have no image with captions: 'absent.jpg'" in load_dataset(tmp_path).notes


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    lay_out(tmp_path, PARTS)
    (tmp_path / LISTS["dev"]).write_bytes(b"6.jpg\n\xff\xfe")
    with pytest.raises(DataError, match=r"devImages\.txt: byte 6 is not UTF-8"):
        load_dataset(tmp_path)


def test_no_training_image(tmp_path: Path) -> None:
    lay_out(tmp_path, {**PARTS, "train": []})
    with pytest.raises(DataError, match="no image is left for training"):
        load_dataset(tmp_path)


def test_a_twin_of_a_held_out_image_leaves_training(tmp_path: Path) -> None:
    lay_out(tmp_path, PARTS)
    (tmp_path / "Images" / "0.jpg").write_bytes(b"image" + bytes([8]))
    (tmp_path / "Images" / "7.jpg").write_bytes(b"image" + bytes([9]))
    dataset = load_dataset(tmp_path)
    assert dataset.split.tolist() == [-1, 0, 0, 0, 0, 0, 1, -1, 2, 2, -1, -1]
    assert dataset.image_ids[0] == dataset.image_ids[8]
    assert "2 images taken out of their split, copies of dev or test images: '0.jpg', '7.jpg'" in dataset.notes


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(0, 2**32))
def test_no_id_is_in_two_splits_after_separating(ids: list[int], seed: int) -> None:
    image_ids = np.array(ids)
    before = np.random.default_rng(seed).integers(-1, 3, size=len(ids)).astype(np.int8)
    after = before.copy()
    notes = separate_twins(after, image_ids)
    for image_id in set(ids):
        mine = image_ids == image_id
        highest = before[mine].max()
        assert set(after[mine].tolist()) <= {-1, highest}
        assert (after[mine][before[mine] == highest] == highest).all()
    assert bool(notes) == bool((before != after).any())


@given(st.integers(3, 120), st.integers(0, 5), st.integers(0, 40))
def test_a_drawn_split_is_by_image_and_of_the_stated_sizes(count: int, seed: int, twins: int) -> None:
    names = [f"{number}.jpg" for number in range(count)]
    ids = np.arange(count)
    ids[max(3, count - twins) :] %= 3
    split = seeded_split(names, ids, seed)
    assert all(len(set(split[ids == image_id].tolist())) == 1 for image_id in set(ids.tolist()))
    assert set(split.tolist()) == {0, 1, 2}
    if twins == 0:
        held_out = max(1, round(count / 10))
        assert [(split == code).sum() for code in (0, 1, 2)] == [count - 2 * held_out, held_out, held_out]


def test_a_drawn_split_depends_on_seed_and_names_only() -> None:
    names = [f"{number}.jpg" for number in range(200)]
    order = np.random.default_rng(0).permutation(200)
    split = seeded_split(names, np.arange(200), 0)
    shuffled = seeded_split([names[i] for i in order], np.arange(200), 0)
    assert shuffled.tolist() == split[order].tolist()
    assert seeded_split(names, np.arange(200), 1).tolist() != split.tolist()
    assert np.flatnonzero(split == 2).tolist()[:6] == DRAWN, "a seed's split must never change: runs are compared by it"


DRAWN = [13, 23, 26, 42, 56, 57]


def test_too_few_images_to_draw_from() -> None:
    with pytest.raises(DataError, match="2 different images are too few"):
        seeded_split(["a", "b", "c"], np.array([0, 1, 1]), 0)


def test_training_sets_of_growing_size_are_nested() -> None:
    names = [f"{number}.jpg" for number in range(100)]
    split = np.array([0, 0, 0, 1, 2] * 20, dtype=np.int8)
    sizes = [1, 2, 7, 30, 59, 60]
    chosen = [set(np.flatnonzero(limit_training(split, names, size, 0) == 0).tolist()) for size in sizes]
    assert [len(rows) for rows in chosen] == sizes
    assert all(chosen[k] < chosen[k + 1] for k in range(len(chosen) - 1))
    limited = limit_training(split, names, 7, 0)
    assert (limited[split > 0] == split[split > 0]).all()
    assert set(np.flatnonzero(limit_training(split, names, 30, 1) == 0).tolist()) != chosen[3]
    for size in (0, -1, 61):
        with pytest.raises(
            DataError, match=rf"--dataset-size {size}: wanted 1 to 60, the images of the training split"
        ):
            limit_training(split, names, size, 0)


def test_dataset_size_of_a_folder(tmp_path: Path) -> None:
    lay_out(tmp_path, PARTS)
    small, large = (set(load_dataset(tmp_path, dataset_size=size).rows("train").tolist()) for size in (2, 4))
    assert small < large < set(range(6))
