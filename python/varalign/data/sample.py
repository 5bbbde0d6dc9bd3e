"""The built-in data set: drawn scenes with five captions each, in Flickr8k's layout, for a first run on any machine.

A scene is one to four large things (a colour, a shape, a size) in one of six places. Its captions name colours, shapes,
counts, relations and the place in different words: most captions fit one scene only. No two images have the same scene.
Everything is drawn from a seed: a seed gives the same bytes with one version of Pillow.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from varalign.data.errors import DataError
from varalign.data.files import read_bytes
from varalign.data.scenes import Scene, caption_scene, draw_scene, imagine_scene
from varalign.data.splits import LISTS

SAMPLE_IMAGES = 2400
SAMPLE_PIXELS = 128
SAMPLE_SIZE = 64
"""Image size for training on the sample: scenes can still be told apart at this side in pixels."""

MARK = "sample.json"
_VERSION = 1


def write_sample(folder: Path | str, *, images: int = SAMPLE_IMAGES, seed: int = 0, size: int = SAMPLE_PIXELS) -> str:
    """Write the built-in data set into a folder: `Images/*.jpg`, `captions.txt` and the three split lists.

    images: at least 12; dev and test get a twelfth each, at least 100 where that is no more than a quarter.
    size: side of the square images in pixels, 32 to 512.
    The folder appears whole or not at all. Where the same sample is there already, nothing is done.
    Returns one line that says what was done. Raises DataError where the folder holds anything else.
    """
    folder = Path(folder)
    if images < 12 or not 32 <= size <= 512:
        raise DataError(f"a sample of {images} images of {size} pixels: wanted at least 12 images, of 32 to 512 pixels")
    wanted = {"kind": "varalign sample", "version": _VERSION, "images": images, "seed": seed, "size": size}
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        _refuse_another(folder, wanted)
        return f"{folder}: the built-in sample is there already ({images:,} images, seed {seed})"
    try:
        _write_whole(folder, wanted)
    except OSError as error:
        raise DataError(f"{folder}: the sample cannot be written: {error.strerror or error}") from error
    parts = ", ".join(f"{count:,} {split}" for split, count in split_sizes(images).items())
    return f"{folder}: wrote the built-in sample, {images:,} drawn images ({parts}) with 5 captions each, seed {seed}"


def split_sizes(images: int) -> dict[str, int]:
    """How many of the sample's images are for training, dev and test."""
    held_out = min(max(100, images // 12), images // 4)
    return {"train": images - 2 * held_out, "dev": held_out, "test": held_out}


def sample_scenes(images: int, seed: int) -> Iterator[tuple[str, Scene, list[str]]]:
    """(file name, scene, its five captions) of each image of a sample; no scene comes twice."""
    seen: set[Scene] = set()
    for number in range(images):
        rng = random.Random(f"varalign sample {_VERSION} {seed} {number}")
        scene = imagine_scene(rng)
        while scene in seen:
            scene = imagine_scene(rng)
        seen.add(scene)
        yield f"scene_{number:05d}.jpg", scene, caption_scene(scene, rng)


def _refuse_another(folder: Path, wanted: dict[str, Any]) -> None:
    try:
        mark = json.loads(read_bytes(folder / MARK))
        found = {key: mark.get(key) for key in wanted}
        digest = mark.get("sha256")
    except (OSError, ValueError, AttributeError):
        raise DataError(
            f"{folder}: the folder is not empty and holds no built-in sample; name a new folder, or empty this one"
        ) from None
    if found != wanted:
        differing = ", ".join(
            f"{key} {found[key]} (wanted {wanted[key]})" for key in wanted if found[key] != wanted[key]
        )
        raise DataError(f"{folder}: holds another built-in sample: {differing}; name a new folder, or remove this one")
    try:
        whole = _digest(folder, wanted["images"]) == digest
    except DataError:
        whole = False
    if not whole:
        raise DataError(f"{folder}: holds the built-in sample with files changed or missing; remove it to have it anew")


def _write_whole(folder: Path, wanted: dict[str, Any]) -> None:
    """Write under another name beside the folder, then rename."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.partial-"))
    try:
        _write_files(partial, wanted["images"], wanted["seed"], wanted["size"])
        mark = {**wanted, "sha256": _digest(partial, wanted["images"])}
        (partial / MARK).write_text(json.dumps(mark, indent=2) + "\n", encoding="utf-8")
        partial.chmod(0o755)
        if folder.is_dir():
            folder.rmdir()
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_files(folder: Path, images: int, seed: int, size: int) -> None:
    (folder / "Images").mkdir()
    names, lines = [], ["image,caption"]
    for name, scene, captions in sample_scenes(images, seed):
        jitter = random.Random(f"varalign sample {_VERSION} {seed} {name} drawing")
        picture = draw_scene(scene, size, jitter)
        encoded = io.BytesIO()  # where Pillow writes to a file itself, it does not say that the disk is full
        picture.save(encoded, "JPEG", quality=90, subsampling=0)
        (folder / "Images" / name).write_bytes(encoded.getvalue())
        names.append(name)
        lines += [f'{name},"{caption}"' if "," in caption else f"{name},{caption}" for caption in captions]
    _write_text(folder / "captions.txt", lines)
    start = 0
    for split, count in split_sizes(images).items():
        _write_text(folder / LISTS[split], names[start : start + count])
        start += count


def _write_text(path: Path, lines: list[str]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def _digest(folder: Path, images: int) -> str:
    digest = hashlib.sha256()
    for name in ("captions.txt", *LISTS.values(), *(f"Images/scene_{number:05d}.jpg" for number in range(images))):
        data = read_bytes(folder / name)
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()
