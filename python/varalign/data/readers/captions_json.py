"""The JSON forms of captions.

* Karpathy's `dataset.json`: `{"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}`. Its splits are
  train, val, test and restval, which counts as train.
* COCO's `captions_*.json`: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`, one file a
  split, named by the file.
* A list of records: `[{"image": "a.jpg", "caption": "A dog ."}]`, the caption one or a list.
* A map of names: `{"a.jpg": "A dog .", "b.jpg": ["Two cats .", "Cats ."]}`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from varalign.data.errors import DataError, first_three, shown
from varalign.data.json_file import load_json
from varalign.data.readers.caption_file import CaptionFile, CaptionFormat, CaptionSource, Pairs, checked_text, one_line
from varalign.data.readers.captions_records import captions_of, read_records
from varalign.data.readers.columns import UNREACHABLE, Columns, split_word

_NO_COLUMNS = Columns("", "", None)
_WANTED = (
    "wanted a JSON object with a list 'images' (Karpathy's dataset.json or COCO's captions_*.json), a list of records "
    'with an image and a caption, or a map {"name.jpg": "caption"}'
)


def _read(source: CaptionSource) -> CaptionFile:
    path = source.path
    value = load_json(path, source.text)
    if isinstance(value, list):
        return read_records(source, ((0, f"[{k}]", record) for k, record in enumerate(value)), "JSON list of records")
    images = value.get("images") if isinstance(value, dict) else None
    if not isinstance(images, list):
        return _map(source, value)
    if not images:
        raise DataError(f"{path}: the list 'images' is empty")
    if "annotations" in value:
        return _coco(source, images, value["annotations"])
    return _karpathy(source, images)


def _map(source: CaptionSource, value: Any) -> CaptionFile:
    path = source.path
    if isinstance(value, dict) and "image_urls" in value:  # SBU's
        raise DataError(f"{path}: the file {UNREACHABLE}")
    if not isinstance(value, dict) or not all(isinstance(item, str | list) for item in value.values()):
        raise DataError(f"{path}: {_WANTED}")
    pairs = Pairs(source, _NO_COLUMNS)
    for name, captions in value.items():
        where = f"[{shown(name)}]"
        pairs.add(0, where, checked_text(path, where, name), captions_of(source, where, captions))
    return pairs.done("JSON map of names to captions")


def _karpathy(source: CaptionSource, images: list[Any]) -> CaptionFile:
    path = source.path
    pairs = Pairs(source, _NO_COLUMNS)
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
        texts = [_string(path, f"{where}.sentences[{k}]", item, "raw") for k, item in enumerate(sentences)]
        pairs.add(0, where, name, [one_line(text) for text in texts])
        if "split" in image:
            word = _string(path, where, image, "split")
            split = split_word(word)
            if split is None:
                odd.append(shown(word))
            elif splits.setdefault(name, split) != split:
                raise DataError(f"{path}: {where}: image {shown(name)} is in {splits[name]} and in {split}; keep one")
    if odd:
        source.notes.append(
            f"{path.name}: {len(odd):,} images have a split we do not know ({first_three(odd)}): in none"
        )
    return pairs.done("Karpathy's JSON", splits=splits or None)


def _coco(source: CaptionSource, images: list[Any], annotations: Any) -> CaptionFile:
    path = source.path
    if not isinstance(annotations, list):
        raise DataError(f"{path}: 'annotations' is not a list; wanted COCO's captions_*.json")
    name_of: dict[int, str] = {}
    for position, image in enumerate(images):
        where = f"images[{position}]"
        name = _string(path, where, image, "file_name")
        if name_of.setdefault(_integer(path, where, image, "id"), name) != name:
            raise DataError(f"{path}: {where} has the id of another image; ids name one image each")
    pairs = Pairs(source, _NO_COLUMNS)
    for position, annotation in enumerate(annotations):
        where = f"annotations[{position}]"
        image_id = _integer(path, where, annotation, "image_id")
        if image_id not in name_of:
            raise DataError(f"{path}: {where} has image_id {image_id}, which no entry of 'images' has")
        pairs.add(0, where, name_of[image_id], one_line(_string(path, where, annotation, "caption")))
    match = re.fullmatch(r"captions_(.+)", path.stem)
    folders = (match[1], f"images/{match[1]}") if match else ()  # of captions_val2017.json: val2017
    return pairs.done("COCO's JSON", image_folders=folders)


def _string(path: Path, where: str, item: Any, key: str) -> str:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, str):
        raise DataError(
            f"{path}: {where} has no text {key!r}; wanted Karpathy's dataset.json or COCO's captions_*.json"
        )
    return checked_text(path, f"{where}.{key}", value)


def _integer(path: Path, where: str, item: Any, key: str) -> int:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{path}: {where} has no whole number {key!r}; wanted COCO's captions_*.json")
    return value


JSON = CaptionFormat(
    files=(
        *("dataset.json", "dataset_flickr8k.json", "dataset_flickr30k.json", "dataset_coco.json", "dataset_rsicd.json"),
        *("annotations/captions_*.json", "captions_*.json"),
    ),
    knows=lambda source: source.path.suffix.lower() == ".json" or source.beginning[:256].lstrip()[:1] in ("{", "["),
    read=_read,
    suffixes=(".json",),
)
