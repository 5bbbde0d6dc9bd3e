"""A data set of images with captions, read from a folder in one of the layouts that people have."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from varalign.data.checks.near_duplicates import find_near_duplicates
from varalign.data.errors import DataError, first_three, shown
from varalign.data.index import CaptionIndex
from varalign.data.ranks import world
from varalign.data.readers.folders import FoundFolder, Missing, read_folder, uncollected
from varalign.data.readers.image_folder import ImageFolder, identical_files
from varalign.data.readers.reading import Reading
from varalign.data.same_captions import SameCaption
from varalign.data.shards.shard_members import shards_of
from varalign.data.splits import choose_splits, limit_training, without_splits


@dataclass(frozen=True)
class ImageCaptions(CaptionIndex):
    """I images and their T captions, in the order of the captions file.

    folder, caption_file: where they come from (the first captions file where there are several).
    image_names: (I,) names relative to the image folder. image_paths: (I,). image_bytes: (I,) int64 sizes of the files.
    captions: (T,). caption_image_ids: (T,) int64, the row of each caption's image.
    split: (I,) int8: 0 train, 1 dev, 2 test, -1 none.
    image_ids: (I,) int64, equal for byte-identical files; an id is never in two splits.
    split_by: how its splits were made, as `Reading.split_by`.
    notes: lines that the user should see. same_caption: whether equal captions are one text, see `CaptionIndex`.
    """

    folder: Path
    caption_file: Path
    image_names: list[str]
    image_paths: list[Path]
    captions: list[str]
    caption_image_ids: NDArray[np.int64]
    split: NDArray[np.int8]
    image_ids: NDArray[np.int64]
    image_bytes: NDArray[np.int64]
    notes: list[str] = field(default_factory=list)
    same_caption: SameCaption = "positive"
    split_by: str | None = None
    other_splits = "add images; where the splits are given, --split-by seed draws all three anew"

    @property
    def caption_owner(self) -> NDArray[np.int64]:
        """(T,) int64: the image row that each caption belongs to."""
        return self.caption_image_ids

    @property
    def caption_texts(self) -> list[str]:
        """(T,) the captions."""
        return self.captions

    @cached_property
    def image_shards(self) -> NDArray[np.int64] | None:  # type: ignore[override]
        """(I,) int64: the number of the tar shard that each image lies in; None where images lie in none."""
        return shards_of(self.image_paths)[1]

    def keeping(self, rows: NDArray[np.int64]) -> ImageCaptions:
        """The same with some of the captions alone, given as (n,) rows."""
        captions = [self.captions[row] for row in rows.tolist()]
        return replace(self, captions=captions, caption_image_ids=self.caption_image_ids[rows], split=self.split.copy())

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of image names, file sizes, captions and whose they are; not of the splits, nor of the pixels."""
        digest = hashlib.sha256()
        for texts in (self.image_names, self.captions):
            for text in texts:
                digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
            digest.update(b"\1")
        digest.update(self.image_bytes.astype("<i8").tobytes())
        digest.update(self.caption_image_ids.astype("<i8").tobytes())
        return digest.hexdigest()


@uncollected()
def load_dataset(
    folder: Path | str,
    *,
    seed: int = 0,
    skip_missing: bool = False,
    dataset_size: int | None = None,
    captions_per_image: int | None = None,
    reading: Reading = Reading(),
    whole_below: int = 0,
) -> ImageCaptions:
    """Read a folder of images and captions and give every image its split.

    seed: draws the splits where the folder has none, and the images of `dataset_size`.
    skip_missing: leave out captions whose image is missing, and empty captions, instead of refusing the folder.
    dataset_size: keep that many training images, nested for growing numbers; the others get split -1.
    captions_per_image: keep the first that many captions of each training image; dev and test stay whole.
    reading: what the user says of how the folder is read: captions file, image folder, separator, columns.
    whole_below: with fewer images than this and no splits in the folder, every image is for training.
    Raises DataError for everything the user can mend.
    """
    if captions_per_image is not None and captions_per_image < 1:
        raise DataError(f"--captions-per-image {captions_per_image}: wanted at least 1")
    # Of several processes the first one unpacks and converts what the others then find.
    found = world().writer_first(lambda: read_folder(Path(folder), reading, skip_empty=skip_missing))
    if found.missing and not skip_missing:
        raise DataError(missing_message(found))
    split_by = reading.split_by
    if split_by is None and len(found.images) < whole_below and without_splits(found):
        split_by = "none"
    dataset = assemble(found, seed=seed, dataset_size=dataset_size, split_by=split_by)
    return dataset if captions_per_image is None else _first_captions_only(dataset, captions_per_image)


def assemble(
    found: FoundFolder, *, seed: int = 0, dataset_size: int | None = None, split_by: str | None = None
) -> ImageCaptions:
    """The data set of what a folder holds, its missing images left out; DataError where no image or split is left."""
    if not found.images:
        raise DataError(
            f"{found.caption_files[0]}: no caption names an image that is in {_places(found)}; is it the right folder?"
        )
    names = [image.name for image in found.images]
    image_ids = together = identical_files(found.images)
    if split_by == "near-duplicates":
        together = find_near_duplicates([image.path for image in found.images], names).groups(image_ids)
    split, split_notes = choose_splits(found, together, seed=seed, split_by=split_by)
    if dataset_size is not None:
        split = limit_training(split, names, dataset_size, seed)
    return ImageCaptions(
        folder=found.folder,
        caption_file=found.caption_files[0],
        image_names=names,
        image_paths=[image.path for image in found.images],
        captions=found.captions,
        caption_image_ids=found.caption_owner,
        split=split,
        image_ids=image_ids,
        image_bytes=np.array([image.size for image in found.images], dtype=np.int64),
        split_by=split_by,
        notes=[_count(found), *found.notes, *_notes(found, image_ids), *split_notes],
    )


def missing_message(found: FoundFolder) -> str:
    """The error for captions that name missing images: the first three of those images, and how many there are."""
    first: dict[str, Missing] = {}
    for missing in found.missing:
        first.setdefault(missing.name, missing)
    folders = [ImageFolder(place) for place in found.image_folders]
    items = [_where(m, [name for images in folders for name in images.alike(m.name)]) for m in first.values()]
    lines = len(found.missing)
    if not found.images:
        mend = "no caption names an image that is there: is it the right folder?"
    else:
        mend = "put the images there, or pass --skip-missing to leave these captions out"
    return (
        f"{found.missing[0].file}: {lines:,} caption{'s name images' if lines > 1 else ' names an image'} not in "
        f"{_places(found)}: {first_three(items, 'images')}; {mend}"
    )


def _where(missing: Missing, alike: list[str]) -> str:
    """A missing image, its line, and the images that its name fits where these are several."""
    fits = f", fits {first_three([shown(name) for name in alike])}: name one of them" if len(alike) > 1 else ""
    return f"{shown(missing.name)} ({f'line {missing.line}' if missing.line else missing.file.name}{fits})"


def _places(found: FoundFolder) -> str:
    return " or ".join(str(path) for path in found.image_folders)


def _count(found: FoundFolder) -> str:
    """What was read: always said, so that nothing is lost without a word."""
    files = first_three([path.name for path in found.caption_files])
    return f"{len(found.captions):,} pairs of {len(found.images):,} images, from {files} ({found.form})"


def _notes(found: FoundFolder, image_ids: NDArray[np.int64]) -> list[str]:
    notes = []
    if found.missing:
        names = list(dict.fromkeys(shown(m.name) for m in found.missing))
        notes.append(f"{len(found.missing):,} captions left out, their images are missing: {first_three(names)}")
    if found.bare:
        names = [shown(name) for name in found.bare]
        notes.append(f"{len(names):,} images have no caption and are left out: {first_three(names)}")
    twins = np.flatnonzero(image_ids != np.arange(len(image_ids)))
    if len(twins):
        pairs = [f"{found.images[row].name} = {found.images[image_ids[row]].name}" for row in twins.tolist()]
        copies = "image is a copy" if len(twins) == 1 else "images are copies"
        notes.append(f"{len(twins):,} {copies} of another, byte for byte, and counted with it: {first_three(pairs)}")
    return notes


def _first_captions_only(dataset: ImageCaptions, count: int) -> ImageCaptions:
    """`dataset` with at most the first `count` captions of each image that is not in dev or test."""
    place = np.empty(len(dataset.captions), dtype=np.int64)
    order = dataset.captions_by_image
    place[order] = np.arange(len(order)) - dataset.caption_offsets[dataset.caption_image_ids[order]]
    held_out = dataset.split[dataset.caption_image_ids] > 0
    return dataset.keeping(np.flatnonzero((place < count) | held_out))
