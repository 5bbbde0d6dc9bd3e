"""Says what is in a data folder, and whether training on it would work."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from varalign.data.checks.caption_check import SPLIT_PAIRS, check_captions
from varalign.data.checks.near_duplicates import DIFFERING, NearDuplicates, alike, find_near_duplicates
from varalign.data.checks.split_sizes import ENOUGH, split_sizes
from varalign.data.datasets import ImageCaptions, assemble, missing_message
from varalign.data.errors import DataError, first_three, shown
from varalign.data.files import read_bytes
from varalign.data.images import decode_image
from varalign.data.index import SPLITS
from varalign.data.readers.folders import FoundFolder, read_folder
from varalign.data.readers.reading import Reading
from varalign.data.shards.shard_members import shown_place
from varalign.data.waiting import counted

MAX_BAD = 0.01
_SHOWN = 10


@dataclass
class Report:
    """What `check_dataset` found.

    splits: images in each split, with those in none. sizes: the lines of `split_sizes`. captions_per_image: least, mean
    and most. missing: "name (where)" of each caption's image that is not there. unreadable: image name to what is wrong
    with it. copies: groups of byte-identical images. suspicious: "name: 'caption': why". repeated: captions that stand
    under more than one image, with their number. repeated_across: "train and test" and the like to the number of
    captions in both. uncut: script to the number of captions whose words the word tokenizer cannot tell apart.
    near_duplicates: pairs of `images`, with their `files`, `splits`, `bits` and `cosine`; None where nobody asked for
    them. near_across: "train and test" and the like to the number of pairs. without_captions: images that no caption
    names. problems: why training would fail; empty where it would not. few: splits that training runs on but that are
    too small for its figures to say much. notes: what loading the data says.
    """

    folder: str
    captions_file: str | None = None
    images: int = 0
    captions: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    sizes: list[str] = field(default_factory=list)
    captions_per_image: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    copies: list[list[str]] = field(default_factory=list)
    suspicious: list[str] = field(default_factory=list)
    repeated: dict[str, int] = field(default_factory=dict)
    repeated_across: dict[str, int] = field(default_factory=dict)
    uncut: dict[str, int] = field(default_factory=dict)
    near_duplicates: list[dict[str, Any]] | None = None
    near_across: dict[str, int] = field(default_factory=dict)
    without_captions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    few: list[str] = field(default_factory=list)

    @property
    def faults(self) -> bool:
        """Whether training would fail."""
        return bool(self.problems)

    def as_dict(self) -> dict[str, object]:
        """All of it as plain values for JSON, with `faults`."""
        return {**asdict(self), "faults": self.faults}

    def lines(self) -> list[str]:
        """All of it for people, at most ten entries of each list."""
        lines = [f"{self.folder}: {self.images:,} images, {self.captions:,} captions"]
        if self.captions_file:
            lines[0] += f" ({self.captions_file})"
        lines += self.sizes
        if self.splits.get("none"):
            lines.append(f"in no split: {self.splits['none']:,} images")
        if self.captions_per_image:
            per = self.captions_per_image
            lines.append(f"captions an image: {per['least']:.0f} to {per['most']:.0f}, {per['mean']:.2f} on average")
        lines += [f"note: {note}" for note in self.notes]
        unreadable = [f"{shown(name)}: {why}" for name, why in self.unreadable.items()]
        repeated = [f"{shown(caption)}: {count:,} times" for caption, count in self.repeated.items()]
        near = []
        for one in self.near_duplicates or ():
            named = (f"{shown(name)} ({split})" for name, split in zip(one["images"], one["splits"], strict=True))
            near.append(f"{' = '.join(named)}: {alike(one)}")
        for title, items in (
            ("missing images", self.missing),
            ("unreadable images", unreadable),
            ("copies, byte for byte", [" = ".join(shown(name) for name in group) for group in self.copies]),
            ("suspicious captions", self.suspicious),
            *([] if self.near_duplicates is None else [("near-duplicates" + _across(self.near_across), near)]),
            ("captions under more than one image" + _across(self.repeated_across), repeated),
            ("images without captions", [shown(name) for name in self.without_captions]),
        ):
            lines.append(f"{title}: {len(items):,}" if items else f"{title}: none")
            lines += [f"  {item}" for item in items[:_SHOWN]]
            if len(items) > _SHOWN:
                lines.append(f"  and {len(items) - _SHOWN:,} more")
        lines += [
            f"no spaces between words: {count:,} captions ({script}): the LSTM's tokenizer makes a word of each run of "
            "letters; a text encoder with subwords reads them, such as bert:bert-base-multilingual-cased"
            for script, count in self.uncut.items()
        ]
        lines += [f"fault: {problem}" for problem in self.problems]
        lines += [f"too few: {split}" for split in self.few]
        lines.append("training would fail" if self.faults else "fit for training")
        if self.few and not self.faults:
            wanted = ", ".join(f"{least} {name}" for name, least in ENOUGH.items())
            lines[-1] = f"training would run, but its figures would say little; wanted at least {wanted} images"
        return lines


def _across(counts: dict[str, int]) -> str:
    """ " (in train and test 3)", or nothing where there is none."""
    return f" (in {', '.join(f'{name} {count:,}' for name, count in counts.items())})" if counts else ""


def check_dataset(
    folder: Path | str,
    *,
    seed: int = 0,
    reading: Reading = Reading(),
    max_bad: float = MAX_BAD,
    threads: int | None = None,
    near_duplicates: bool = False,
    differing_bits: int = DIFFERING,
    features: Path | str | None = None,
    skip_missing: bool = False,
) -> Report:
    """Read captions and splits, decode every image, and report; nothing that is bad in the data raises.

    seed, reading: as for `load_dataset`. max_bad: share of unreadable images from which on training stops.
    threads: for decoding; None takes the processors there are. near_duplicates: compare every image with every other,
    as `find_near_duplicates` does with `differing_bits` and `features`; it raises DataError where these are wrong.
    skip_missing: captions that are empty or name a missing image are left out, as in training, and are no fault.
    """
    folder = Path(folder)
    report = Report(shown_place(folder))
    try:
        found = read_folder(folder, reading, skip_empty=True)
        report.captions_file = first_three([str(path) for path in found.caption_files])
        report.images, report.captions = len(found.images), len(found.captions)
        report.missing = sorted(
            {f"{shown(m.name)} ({f'line {m.line}' if m.line else m.file.name})" for m in found.missing}
        )
        report.without_captions = found.bare
        if not skip_missing:
            _note_faults_of_captions(report, found)
        dataset = assemble(found, seed=seed, split_by=reading.split_by)
    except DataError as error:
        report.problems.append(str(error))
        return report
    _describe(report, dataset)
    captions = check_captions(dataset)
    report.suspicious, report.repeated = captions.suspicious, captions.repeated
    report.repeated_across, report.uncut = captions.across, captions.uncut
    _decode_all(report, dataset, max_bad, threads)
    if near_duplicates:
        paths, names = dataset.image_paths, dataset.image_names
        found_pairs = find_near_duplicates(paths, names, bits=differing_bits, features=features, threads=threads)
        _list_near_duplicates(report, dataset, found_pairs)
    return report


def _list_near_duplicates(report: Report, dataset: ImageCaptions, found: NearDuplicates) -> None:
    split_names = {code: name for name, code in SPLITS.items()} | {-1: "no split"}
    report.near_duplicates = [
        {
            "images": [dataset.image_names[row] for row in rows],
            "files": [str(dataset.image_paths[row]) for row in rows],
            "splits": [split_names[int(dataset.split[row])] for row in rows],
            "bits": None if bits < 0 else bits,
            "cosine": None if np.isnan(cosine) else round(cosine, 4),
        }
        for rows, bits, cosine in zip(found.pairs.tolist(), found.bits.tolist(), found.cosine.tolist(), strict=True)
    ]
    met = Counter(frozenset(one["splits"]) for one in report.near_duplicates)
    report.near_across = {f"{a} and {b}": met[frozenset((a, b))] for a, b in SPLIT_PAIRS if met[frozenset((a, b))]}


def _note_faults_of_captions(report: Report, found: FoundFolder) -> None:
    if found.missing:
        report.problems.append(missing_message(found))
    if found.empty:
        report.problems.append(
            f"{len(found.empty):,} captions are empty: {first_three(found.empty)}; write them, remove the lines, or "
            "pass --skip-missing to leave them out"
        )


def _describe(report: Report, dataset: ImageCaptions) -> None:
    report.notes = [note for note in dataset.notes if "left out" not in note and "copies of another" not in note]
    report.splits = {name: int((dataset.split == code).sum()) for name, code in SPLITS.items()}
    report.sizes = split_sizes(dataset)
    report.splits["none"] = int((dataset.split < 0).sum())
    counts = np.diff(dataset.caption_offsets)
    report.captions_per_image = {"least": int(counts.min()), "mean": float(counts.mean()), "most": int(counts.max())}
    groups: dict[int, list[str]] = {}
    for name, image_id in zip(dataset.image_names, dataset.image_ids.tolist(), strict=True):
        groups.setdefault(image_id, []).append(name)
    report.copies = [names for names in groups.values() if len(names) > 1]
    report.problems += dataset.lacking(held_out=dataset.split_by != "none")
    report.few = [
        f"{report.splits[name]:,} {name} images, wanted at least {least}"
        for name, least in ENOUGH.items()
        if report.splits[name] < least
    ]


def _decode_all(report: Report, dataset: ImageCaptions, max_bad: float, threads: int | None) -> None:
    with ThreadPoolExecutor(threads or min(32, os.cpu_count() or 1)) as pool:
        paths = dataset.image_paths
        parts = [paths[start : start + 64] for start in range(0, len(paths), 64)]  # a future for each file costs more
        found = chain.from_iterable(pool.map(lambda part: [_unreadable(path) for path in part], parts))
        faults = counted(found, "decoding images", len(paths))
        report.unreadable = {name: why for name, why in zip(dataset.image_names, faults, strict=True) if why}
    share = len(report.unreadable) / len(dataset.image_names)
    if share > max_bad:
        report.problems.append(
            f"{len(report.unreadable):,} of {len(dataset.image_names):,} images are unreadable, more than the "
            f"{100 * max_bad:g} % that `train --max-bad` allows: mend or remove them"
        )


def _unreadable(path: Path) -> str:
    """What is wrong with an image file, or nothing."""
    try:
        decode_image(read_bytes(path))
    except ValueError as error:
        return str(error)
    return ""
