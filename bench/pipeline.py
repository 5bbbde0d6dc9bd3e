"""ImagePipeline against torchvision on Pillow in a DataLoader: a whole epoch of batches, augmented, on every core.

Pictures are those of bench/decode.py. The peer draws its own random crops, so that only shape, type and range can be
compared: a batch agrees where it has the same shape and its mean is within a twentieth of a deviation.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from decode import PACKAGES, arguments, photographs
from harness import Contender, Row, compare, main
from varalign.data.images import Augment, ImagePipeline, Preprocess

BATCH = 32


def data_loader(paths: list[Path], preprocess: Preprocess, augment: Augment, workers: int) -> Any:
    """The peer: one epoch as a list of arrays."""
    import torch
    from PIL import Image
    from torchvision import transforms

    steps = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                preprocess.size, augment.scale, augment.ratio, transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(augment.flip),
            transforms.ToTensor(),
            transforms.Normalize(preprocess.mean, preprocess.std),
        ]
    )

    class Pictures(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, row: int) -> Any:
            with Image.open(paths[row]) as image:
                return steps(image.convert("RGB"))

    loader = torch.utils.data.DataLoader(
        Pictures(), batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: [batch.numpy() for batch in loader]


def subjects(options: argparse.Namespace) -> Iterable[Sequence[Row]]:
    """One subject: epochs."""
    files = photographs(options.images, options.count)
    preprocess, augment = Preprocess(), Augment()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(len(files))]
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
        order = [np.arange(begin, min(begin + BATCH, len(paths))) for begin in range(0, len(paths), BATCH)]
        pipeline = ImagePipeline(paths, preprocess, augment=augment)
        contenders = [Contender("varalign", lambda: [b.pixels for b in pipeline.batches(order)], ours=True)]
        if importlib.util.find_spec("torchvision"):
            workers = os.cpu_count() or 1
            peer = data_loader(paths, preprocess, augment, workers)
            contenders.append(Contender(f"DataLoader, {workers} workers, torchvision on Pillow", peer))

        def alike(ours: list[Any], theirs: list[Any]) -> bool:
            return [a.shape for a in ours] == [b.shape for b in theirs] and all(
                abs(float(a.mean()) - float(b.mean())) < 0.05 for a, b in zip(ours, theirs, strict=True)
            )

        yield compare(
            f"an epoch of {len(files)} JPEG files, random resized crops of 224, every core",
            contenders,
            work=len(files),
            unit="images/s",
            agree=alike,
            rounds=options.rounds,
            packages=PACKAGES,
        )


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
