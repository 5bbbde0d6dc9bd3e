"""An epoch of images from tar shards, beside the same images from files and beside webdataset's loader with Pillow.

    OMP_NUM_THREADS=1 python bench/shards.py [--data FOLDER] [--count N] [--json] [--out FILE]

One thread or process each, images in the order of the shards, resized and cropped to 224 pixels without augmentation:
pixels agree where at most one in a hundred is more than a level off. Opening the shards, indexed anew, is a second
subject.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import Contender, Row, compare, main
from image_peers import PACKAGES, arguments, photographs, pillow_steps
from PIL import Image
from varalign.data.converted import convert_dataset
from varalign.data.datasets import ImageCaptions, load_dataset
from varalign.data.images import Preprocess
from varalign.data.pipeline import ImagePipeline
from varalign.data.readers.reading import Reading

BATCH, SHARD = 25, 50


def write(folder: Path, files: Sequence[bytes]) -> None:
    """The files with a caption each, and the same as shards."""
    (folder / "files" / "Images").mkdir(parents=True)
    lines = ["image,caption"]
    for number, data in enumerate(files):
        (folder / "files" / "Images" / f"{number:06}.jpg").write_bytes(data)
        lines.append(f"{number:06}.jpg,photograph {number}")
    (folder / "files" / "captions.txt").write_text("\n".join(lines) + "\n")
    convert_dataset(load_dataset(folder / "files"), "webdataset", folder / "shards", shard_size=SHARD)


def ours(data: ImageCaptions, preprocess: Preprocess) -> Callable[[], Any]:
    """An epoch as a list of batches."""
    rows = np.arange(len(data.image_paths))
    order = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    pipeline = ImagePipeline(data.image_paths, preprocess, threads=1)
    return lambda: [batch.pixels for batch in pipeline.batches(order)]


def webdataset_loader(folder: Path, preprocess: Preprocess) -> Callable[[], Any]:
    """The same by webdataset, its way of decoding with Pillow, and torchvision's transforms."""
    import torch
    import webdataset

    torch.set_num_threads(1)
    steps = pillow_steps(preprocess)
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    read = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg", "txt")
    batches = read.map_tuple(steps, str).batched(BATCH)
    return lambda: [images.numpy() for images, _ in batches]


def agree(truth: Any, result: Any) -> bool:
    """Whether at most one value in a hundred is more than a level off."""
    ours, theirs = np.concatenate(truth), np.concatenate([np.asarray(part) for part in result])
    level = 1 / 255 / 0.26
    return ours.shape == theirs.shape and bool((np.abs(ours - theirs) > 1.1 * level).mean() <= 0.01)


def subjects(options: argparse.Namespace) -> Iterable[Sequence[Row]]:
    """Opening the shards, and an epoch of them."""
    preprocess, packages = Preprocess(), (*PACKAGES, "webdataset")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = photographs(options)
        write(folder, files)
        Image.open(io.BytesIO(files[0])).load()  # Pillow's plugins are imported before the clock starts
        plain = load_dataset(folder / "files")
        shards = load_dataset(folder / "shards", reading=Reading(cache=str(folder / "cache")))
        contenders = [
            Contender("varalign, shards", ours(shards, preprocess), ours=True),
            Contender("varalign, files", ours(plain, preprocess)),
            Contender("webdataset + Pillow", webdataset_loader(folder / "shards", preprocess)),
        ]
        more: dict[str, Any] = {"work": len(files), "unit": "images/s", "rounds": options.rounds, "packages": packages}
        yield compare("an epoch", contenders, agree=agree, **more)
        caches = iter(range(1 << 30))

        def opened() -> ImageCaptions:
            return load_dataset(folder / "shards", reading=Reading(cache=str(folder / f"cache-{next(caches)}")))

        contenders = [
            Contender("varalign, shards indexed anew", opened, ours=True),
            Contender("varalign, files", lambda: load_dataset(folder / "files")),
        ]
        yield compare("opening", contenders, agree=lambda a, b: a.fingerprint == b.fingerprint, **more)


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
