"""A whole epoch of random resized crops and mirrors, from files and from the decoded cache, against torch's DataLoader.

`--data FOLDER` takes JPEG files, else some are made here. Random crops are drawn by each in its own way, so only shape
and range can be compared: the epoch agrees where shapes are the same and its mean is within a tenth of a deviation. How
far the cache's crops are from the files' is a row of its own, in levels of 255.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import Contender, Row, compare, judged, main, single
from image_peers import PACKAGES, arguments, as_tensor, have, photographs, pillow_steps, tensor_steps
from PIL import Image
from varalign.data.decoded import decoded_cache
from varalign.data.images import Augment, Preprocess
from varalign.data.pipeline import ImagePipeline

BATCH = 25


def data_loaders(
    paths: list[Path], preprocess: Preprocess, augment: Augment, workers: int
) -> Iterator[tuple[str, Callable[[], list[Any]]]]:
    """The peers: one epoch as a list of arrays."""
    if not have("torchvision", "torchvision"):
        return
    import torch
    from torchvision import transforms
    from torchvision.io import decode_jpeg
    from torchvision.transforms import InterpolationMode, v2

    torch.set_num_threads(1)
    bicubic = InterpolationMode.BICUBIC
    crop, mirror = transforms.RandomResizedCrop, transforms.RandomHorizontalFlip
    pillow = pillow_steps(
        preprocess, [crop(preprocess.size, augment.scale, augment.ratio, bicubic), mirror(augment.flip)]
    )
    tensor = tensor_steps(
        preprocess,
        [
            v2.RandomResizedCrop(preprocess.size, augment.scale, augment.ratio, bicubic, antialias=True),
            v2.RandomHorizontalFlip(augment.flip),
        ],
    )

    class Pictures(torch.utils.data.Dataset[Any]):
        def __init__(self, load: Callable[[bytes], Any]) -> None:
            self.load = load

        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, row: int) -> Any:
            return self.load(paths[row].read_bytes())

    for name, load in [
        ("torchvision on Pillow", lambda data: pillow(Image.open(io.BytesIO(data)).convert("RGB"))),
        ("torchvision.io + v2", lambda data: tensor(decode_jpeg(as_tensor(data)))),
    ]:
        loader = torch.utils.data.DataLoader(
            Pictures(load), batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0
        )
        yield f"DataLoader, {name}", lambda loader=loader: [batch.numpy() for batch in loader]


def alike(truth: list[Any], result: list[Any]) -> bool:
    """Same shapes, about the same mean over the epoch."""
    means = [np.mean([float(batch.mean()) for batch in batches]) for batches in (truth, result)]
    return [a.shape for a in truth] == [b.shape for b in result] and bool(abs(means[0] - means[1]) < 0.1)


def subjects(options: argparse.Namespace) -> Iterable[Sequence[Row]]:
    """The faithfulness of the cache; an epoch on one thread and on every core."""
    files = photographs(options)
    preprocess, augment = Preprocess(), Augment()
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(len(files))]
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
        order = [np.arange(begin, min(begin + BATCH, len(paths))) for begin in range(0, len(paths), BATCH)]
        cache = decoded_cache(paths, preprocess, Path(folder), augment=augment)

        def pipeline(cached: bool, **keys: Any) -> ImagePipeline:
            return ImagePipeline(paths, preprocess, augment=augment, decoded=cache if cached else None, **keys)

        def levels(cached: bool) -> Any:
            batches = pipeline(cached, dtype="uint8").batches(order)
            return np.concatenate([batch.pixels for batch in batches]).astype(np.int16)

        difference = np.abs(levels(True) - levels(False))
        subject = f"crops of {preprocess.size} from the decoded cache, against those from the files"
        yield [
            single(subject, "mean difference", float(difference.mean()), "levels", packages=PACKAGES),
            single(subject, "99.9th percentile", float(np.quantile(difference, 0.999)), "levels", packages=PACKAGES),
        ]

        for threads, workers in ((1, 0), (cores, cores)):

            def run(cached: bool, threads: int = threads) -> list[Any]:
                return [batch.pixels for batch in pipeline(cached, threads=threads).batches(order)]

            contenders = [
                Contender("varalign, decoded cache", lambda run=run: run(True), ours=True),
                Contender("varalign, files", lambda run=run: run(False)),
            ]
            for name, epoch in data_loaders(paths, preprocess, augment, workers):
                uncounted = "the workers' processor time is not counted" if workers else ""
                contenders.append(Contender(name, epoch, differs=uncounted))
            where = "one thread" if threads == 1 else f"{cores} threads or workers"
            rows = compare(
                f"an epoch of {len(files)} JPEG files, random resized crops of {preprocess.size}, {where}",
                contenders,
                work=len(files),
                unit="images/s",
                agree=alike,
                rounds=options.rounds,
                packages=PACKAGES,
            )
            # A worker's processor time is not ours to read: no figure is better than one without it.
            peers = "DataLoader" if workers else "none"
            yield [
                replace(row, processor=None, processor_ratio=None) if row.contender.startswith(peers) else row
                for row in rows
            ]
            slow = next((row for row in rows if "torchvision on Pillow" in row.contender), None)
            if slow is not None:
                ratio, clock = (slow.ratio, "wall") if workers else (slow.processor_ratio or slow.ratio, "processor")
                judgement = f"target of the decoded cache, {where}, by {clock} time"
                yield [judged(judgement, "over DataLoader, torchvision on Pillow", ratio, 10, PACKAGES)]


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
