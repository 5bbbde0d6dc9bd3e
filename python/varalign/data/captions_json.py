"""The two JSON forms of captions: Karpathy's `dataset.json` and COCO's `captions_*.json`.

Karpathy's has `{"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}`; its splits are train, val,
test and restval, and restval counts as train, as everyone reads it (Karpathy & Fei-Fei, CVPR 2015). COCO's has
`{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`, one file a split, named by the file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from varalign.data.caption_file import MAX_LINE_BYTES, CaptionFile, CaptionFormat
from varalign.data.errors import DataError, first_three, shown
from varalign.data.json_file import without_repeats

_SPLITS = {"train": "train", "restval": "train", "val": "dev", "dev": "dev", "test": "test"}


def _read(path: Path, text: str) -> CaptionFile:
    try:
        value = json.loads(text, parse_int=_bounded_int, parse_constant=_no_constant, object_pairs_hook=without_repeats)
    except RecursionError:
        raise DataError(f"{path}: the JSON is nested too deeply to be a captions file") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    images = value.get("images") if isinstance(value, dict) else None
    if not isinstance(images, list):
        raise DataError(
            f"{path}: wanted a JSON object with a list 'images' (Karpathy's dataset.json or COCO's captions_*.json)"
        )
    if not images:
        raise DataError(f"{path}: the list 'images' is empty")
    if "annotations" in value:
        return _coco(path, images, value["annotations"])
    return _karpathy(path, images)


def _karpathy(path: Path, images: list[Any]) -> CaptionFile:
    names: list[str] = []
    captions: list[str] = []
    splits: dict[str, str] = {}
    odd: list[str] = []
    for position, image in enumerate(images):
        where = f"images[{position}]"
        name = _string(path, where, image, "filename")
        folder = _string(path, where, image, "filepath") if "filepath" in image else ""
        name = f"{folder}/{name}" if folder else name
        sentences = image.get("sentences")
        if not isinstance(sentences, list):
            raise DataError(f"{path}: {where} has no list 'sentences'; wanted Karpathy's dataset.json")
        for k, sentence in enumerate(sentences):
            names.append(name)
            captions.append(_one_line(_string(path, f"{where}.sentences[{k}]", sentence, "raw")))
        if "split" in image:
            word = _string(path, where, image, "split")
            split = _SPLITS.get(word)
            if split is None:
                odd.append(shown(word))
            elif splits.setdefault(name, split) != split:
                raise DataError(f"{path}: {where}: image {shown(name)} is in {splits[name]} and in {split}; keep one")
    found = CaptionFile(path, names, captions, [0] * len(names), splits or None)
    if odd:
        found.notes.append(
            f"{path.name}: {len(odd):,} images have a split we do not know ({first_three(odd)}): in none"
        )
    return found


def _coco(path: Path, images: list[Any], annotations: Any) -> CaptionFile:
    if not isinstance(annotations, list):
        raise DataError(f"{path}: 'annotations' is not a list; wanted COCO's captions_*.json")
    name_of: dict[int, str] = {}
    for position, image in enumerate(images):
        where = f"images[{position}]"
        name = _string(path, where, image, "file_name")
        if name_of.setdefault(_integer(path, where, image, "id"), name) != name:
            raise DataError(f"{path}: {where} has the id of another image; ids name one image each")
    names: list[str] = []
    captions: list[str] = []
    for position, annotation in enumerate(annotations):
        where = f"annotations[{position}]"
        image_id = _integer(path, where, annotation, "image_id")
        if image_id not in name_of:
            raise DataError(f"{path}: {where} has image_id {image_id}, which no entry of 'images' has")
        names.append(name_of[image_id])
        captions.append(_one_line(_string(path, where, annotation, "caption")))
    words = (("train", "train"), ("val", "dev"), ("test", "test"))  # captions_val2017.json is dev
    split = next((split for word, split in words if word in path.stem.lower()), None)
    match = re.fullmatch(r"captions_(.+)", path.stem)
    return CaptionFile(
        path,
        names,
        captions,
        [0] * len(names),
        dict.fromkeys(names, split) if split else None,
        image_folders=(match[1], f"images/{match[1]}") if match else (),  # of captions_val2017.json: val2017
    )


def _string(path: Path, where: str, item: Any, key: str) -> str:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, str):
        raise DataError(
            f"{path}: {where} has no text {key!r}; wanted Karpathy's dataset.json or COCO's captions_*.json"
        )
    if len(value) > MAX_LINE_BYTES:
        raise DataError(f"{path}: {where}.{key} is {len(value):,} characters long, more than {MAX_LINE_BYTES:,}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{path}: {where}.{key} holds half of a surrogate pair, which is no character; mend it"
        ) from None
    if "\0" in value:
        raise DataError(f"{path}: {where}.{key} holds a NUL character; mend it")
    return value.strip()


def _one_line(caption: str) -> str:
    return " ".join(caption.splitlines()).strip()


def _integer(path: Path, where: str, item: Any, key: str) -> int:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{path}: {where} has no whole number {key!r}; wanted COCO's captions_*.json")
    return value


def _bounded_int(digits: str) -> int:
    """Numbers of captions files are ids; thousands of digits would take quadratic time to convert."""
    if len(digits) > 30:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


JSON = CaptionFormat(
    files=("dataset.json", "dataset_flickr8k.json", "annotations/captions_*.json", "captions_*.json"),
    knows=lambda path, text: path.suffix.lower() == ".json" or text[:256].lstrip()[:1] in ("{", "["),
    read=_read,
)
