"""Which images are for training, development and test.

The first of these that is there decides, and a note says which: splits in the captions file (Karpathy's, a column) or
in the names of files and folders (COCO's, `train/`), where there is more than one; Flickr8k's lists
(Flickr_8k.trainImages.txt, .devImages.txt, .testImages.txt, all three, in the folder or in Flickr8k_text/), where an
image in no list gets none; else a split drawn by the seed, image by image. Where a captions file has no test split
(COCO's), half of its dev images, drawn by the seed, are the test split, and the other way round. Where it says that all
images are for training, the splits are drawn from these; where it says that none is, it is refused. `--split-by seed`
draws all splits, whatever is there; `--split-by none` draws none, and every image is for training.

The drawn split gives a tenth of the images each to dev and test, at least 1 and at most 5,000, and needs 3 different
images. Images are ordered by a hash of seed and name, so the split depends on the seed and the set of images alone.
Byte-identical files count as one image: they are drawn together. Where lists put copies into different splits, test
keeps its copies, dev those that are not in test, train those that are in neither. With `--split-by near-duplicates` the
same holds for images that are nearly the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from varalign.data.draws import name_key
from varalign.data.errors import DataError, first_three, shown
from varalign.data.files import read_bytes
from varalign.data.index import SPLITS
from varalign.data.readers.caption_file import split_lines
from varalign.data.readers.folders import FoundFolder
from varalign.data.readers.image_folder import Spellings

LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "dev": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
MAX_HELD_OUT = 5000


def choose_splits(
    found: FoundFolder, image_ids: NDArray[np.int64], *, seed: int, split_by: str | None = None
) -> tuple[NDArray[np.int8], list[str]]:
    """(I,) int8 splits (0 train, 1 dev, 2 test, -1 none) and the notes that say where they come from.

    image_ids: (I,) equal for images that stay in one split: byte-identical files, and near-duplicates where `split_by`
    says so. Raises DataError where lists contradict each other, where one of the
    three is missing, or where there are too few images to draw a split.
    """
    names = [image.name for image in found.images]
    there = set(found.splits.values())
    notes: list[str] = []
    if split_by == "none":
        split = np.zeros(len(names), dtype=np.int8)
        source = "no dev or test split, every image is for training"
    elif split_by == "seed":
        split, notes = seeded_split(names, image_ids, seed), []
        source = f"splits drawn by seed {seed}, as --split-by says"
    elif there in ({"dev"}, {"test"}):
        raise DataError(
            f"{found.caption_files[0]}: no image is left for training: every image that has a split is in "
            f"{there.pop()}; add training images, or pass --split-by seed to have all splits drawn"
        )
    elif len(there) > 1:
        split = np.full(len(names), -1, dtype=np.int8)
        for row, name in found.splits.items():
            split[row] = SPLITS[name]
        source = f"splits from {found.splits_from}"
        notes = _halve_held_out(split, names, image_ids, seed)
    elif lists := _find_lists(found.folder):
        split, notes = _from_lists(lists, names)
        source = f"splits from {LISTS['train']} and its like"
    elif there:
        split, notes = np.full(len(names), -1, dtype=np.int8), []
        rows = np.array(sorted(found.splits))
        split[rows] = seeded_split([names[row] for row in rows.tolist()], image_ids[rows], seed)
        source = f"splits drawn by seed {seed} from the images in train, as the others are not there"
    else:
        split = seeded_split(names, image_ids, seed)
        source, notes = f"splits drawn by seed {seed}, as no list is there", []
    twins = "near-duplicates" if split_by == "near-duplicates" else "copies"
    notes += separate_twins(split, image_ids, names, twins)
    sizes = ", ".join(f"{int((split == code).sum()):,} {name}" for name, code in SPLITS.items())
    none = int((split < 0).sum())
    notes.insert(0, f"{source}: {sizes}" + (f"; {none:,} images in none" if none else ""))
    if not (split == 0).any():
        raise DataError(
            f"{found.folder}: no image is left for training ({notes[0]}); put images and captions of it there"
        )
    return split, notes


def without_splits(found: FoundFolder) -> bool:
    """Whether a folder says nothing of splits, or only that all images are for training."""
    return set(found.splits.values()) <= {"train"} and not _find_lists(found.folder)


def _halve_held_out(split: NDArray[np.int8], names: list[str], image_ids: NDArray[np.int64], seed: int) -> list[str]:
    """Where a captions file has one of dev and test (COCO's), make half of it, by seed, the other; in place."""
    there = set(split.tolist()) & {1, 2}
    if len(there) != 1:
        return []
    code = there.pop()
    rows = np.flatnonzero(split == code)
    first = {image_id: names[row] for row, image_id in reversed(list(zip(rows, image_ids[rows].tolist(), strict=True)))}
    chosen = sorted(first, key=lambda image_id: name_key(first[image_id], seed))[: len(first) // 2]
    split[rows[np.isin(image_ids[rows], chosen)]] = 3 - code
    have, new = ("dev", "test") if code == 1 else ("test", "dev")
    return [f"there is no {new} split: half of the {have} images, drawn by seed {seed}, are {new}"]


def seeded_split(names: list[str], image_ids: NDArray[np.int64], seed: int) -> NDArray[np.int8]:
    """(I,) int8: a split drawn by the seed, equal ids together; a pure function of the seed and the set of names."""
    groups: dict[int, list[int]] = {}
    for row, image_id in enumerate(image_ids.tolist()):
        groups.setdefault(image_id, []).append(row)
    if len(groups) < 3:
        raise DataError(
            f"{len(groups)} different images are too few to draw train, dev and test from; wanted at least 3"
        )
    held_out = min(MAX_HELD_OUT, max(1, round(len(names) / 10)))
    ordered = sorted(groups.values(), key=lambda rows: min(name_key(names[row], seed) for row in rows))
    split = np.zeros(len(names), dtype=np.int8)
    place = 0
    for name, left in (("test", 2), ("dev", 1)):  # at least so many groups are left for the other splits
        taken = 0
        while taken < held_out and place < len(ordered) - left:
            split[ordered[place]] = SPLITS[name]
            taken += len(ordered[place])
            place += 1
    return split


def limit_training(split: NDArray[np.int8], names: list[str], size: int, seed: int) -> NDArray[np.int8]:
    """(I,) int8: `split` with all but `size` training images set to -1; drawn by seed, nested for growing `size`.

    Raises DataError where `size` is less than 1 or more than the training split has.
    """
    training = np.flatnonzero(split == 0)
    if not 1 <= size <= len(training):
        raise DataError(f"--dataset-size {size}: wanted 1 to {len(training):,}, the images of the training split")
    ordered = sorted(training.tolist(), key=lambda row: name_key(names[row], seed))
    limited: NDArray[np.int8] = split.copy()
    limited[ordered[size:]] = -1
    return limited


def separate_twins(
    split: NDArray[np.int8], image_ids: NDArray[np.int64], names: list[str] | None = None, twins: str = "copies"
) -> list[str]:
    """Set the split of copies to -1, in place: test keeps its copies, then dev. Returns the notes that say so.

    image_ids: (I,) equal for copies. names: (I,) for the notes; rows stand for them where there are none. twins: what
    the notes call them.
    """
    highest = np.full(int(image_ids.max(initial=-1)) + 1, -1, dtype=np.int8)
    np.maximum.at(highest, image_ids, split)
    clashes = np.flatnonzero((split >= 0) & (split < highest[image_ids]))
    if not len(clashes):
        return []
    shown_names = [shown(names[row]) if names else f"row {row}" for row in clashes.tolist()]
    split[clashes] = -1
    return [
        f"{len(clashes):,} images taken out of their split, {twins} of dev or test images: {first_three(shown_names)}"
    ]


def _find_lists(folder: Path) -> dict[str, Path]:
    """The three list files, or nothing where there is none of them."""
    for place in (folder, folder / "Flickr8k_text"):
        lists = {split: place / name for split, name in LISTS.items() if (place / name).is_file()}
        if lists and len(lists) < len(LISTS):
            absent = [LISTS[split] for split in LISTS if split not in lists]
            there = " and ".join(path.name for path in lists.values())
            raise DataError(
                f"{place}: there is {there} but no {' and no '.join(absent)}; put all three there, or none to have the "
                "splits drawn by seed"
            )
        if lists:
            return lists
    return {}


def _from_lists(lists: dict[str, Path], names: list[str]) -> tuple[NDArray[np.int8], list[str]]:
    row_of = {name: row for row, name in enumerate(names)}
    spellings = Spellings(names)
    split = np.full(len(names), -1, dtype=np.int8)
    notes = []
    listed_in: dict[str, str] = {}
    for name, path in lists.items():
        unknown = []
        for number, line in enumerate(_list_lines(path), 1):
            if not line.strip():
                continue
            image = spellings.find(line.strip()) or line.strip()
            if listed_in.setdefault(image, name) != name:
                raise DataError(
                    f"{path} line {number}: image {shown(image)} is in {lists[listed_in[image]].name} as well; remove "
                    "it from one of them"
                )
            if image in row_of:
                split[row_of[image]] = SPLITS[name]
            else:
                unknown.append(shown(image))
        if unknown:
            notes.append(f"{path.name}: {len(unknown):,} names have no image with captions: {first_three(unknown)}")
    return split, notes


def _list_lines(path: Path) -> list[str]:
    try:
        return split_lines(read_bytes(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; wanted one image name a line") from None
