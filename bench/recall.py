"""Ranks of 5,000 images among 25,000 texts beside a plain float32 loop, which decides near ties by chance.

python bench/recall.py --rounds 5
python bench/recall.py --large    # 100,000 images and 500,000 texts: the time and the memory of one run, minutes
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from harness import Contender, Row, compare, main, peak_memory, single
from numpy.typing import NDArray
from torch import Tensor
from varalign.evaluation.embedding_statistics import summary
from varalign.evaluation.retrieval import ranks

IMAGES, TEXTS_EACH, WIDTH = 5000, 5, 256
Ranks = tuple[NDArray[np.int64], NDArray[np.int64]]


def plain(images: Tensor, texts: Tensor, owner: Tensor, *, elements: int) -> Ranks:
    """Ranks by float32 products of some images with all texts at once; `elements` similarities are held."""
    right = (images[owner] * texts).sum(1)
    best = right.new_full((len(images),), -torch.inf).scatter_reduce(0, owner, right, "amax")
    i2t, t2i = torch.empty(len(images), dtype=torch.int64), torch.zeros(len(texts), dtype=torch.int64)
    step = max(1, elements // len(texts))
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        similarity = images[part] @ texts.T
        own = torch.arange(start * TEXTS_EACH, min((start + step) * TEXTS_EACH, len(texts)))
        similarity[owner[own] - start, own] = -torch.inf  # in another product it may be above itself
        i2t[part] = (similarity > best[part, None]).sum(1)
        t2i += (similarity > right).sum(0)
    return i2t.numpy(), t2i.numpy()


def agree(ours: Ranks, theirs: Ranks) -> bool:
    """Whether all but a few ranks, of near ties, are equal, and the others are off by a few."""
    differences = np.concatenate([np.abs(a - b) for a, b in zip(ours, theirs, strict=True)])
    return bool((differences > 0).mean() < 0.01 and differences.max() <= 3)


def embeddings(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(count, D) images, (5 count, D) texts near them, and the texts' images."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(count).repeat_interleave(TEXTS_EACH)
    images = torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=generator), dim=1)
    noise = torch.randn(len(owner), WIDTH, generator=generator)
    return images, torch.nn.functional.normalize(images[owner] + 1.5 / 16 * noise, dim=1), owner


def large() -> Iterator[Sequence[Row]]:
    """Ranks of many images and texts; some images' ranks are compared with those by float64."""
    images, texts, owner = given = embeddings(100_000)
    held, began = peak_memory(anew=True), time.process_time()  # making the embeddings had a higher one
    found, _ = ranks(*given)
    seconds = time.process_time() - began
    grown = (peak_memory() - held) / 2**20
    some = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))[:50]
    similarity = images[some].double() @ texts.double().T
    own = owner == some[:, None]
    best = similarity.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    wanted = ((similarity > best) & ~own).sum(1).numpy()
    right = bool((found[some.numpy()] == wanted).all())
    title = f"ranks, {len(images):,} images and {len(texts):,} texts, {WIDTH} wide"
    yield [
        single(f"{title}: processor time", "varalign", seconds, "s", agrees=right, packages=["torch", "numpy"]),
        single(f"{title}: memory beside them", "varalign", grown, "MiB", agrees=right, packages=["torch", "numpy"]),
    ]


def subjects(options: argparse.Namespace) -> Iterator[Sequence[Row]]:
    """The ranks, then the statistics of the same embeddings beside the ranks."""
    if options.large:
        yield from large()
        return
    given = embeddings(IMAGES)
    owner = given[2]
    yield compare(
        f"ranks, {IMAGES:,} images and {len(owner):,} texts, {WIDTH} wide",
        [
            Contender("varalign", lambda: ranks(*given), ours=True),
            Contender("a float32 loop", lambda: plain(*given, elements=1 << 21)),
            Contender("with chunks a quarter as large", lambda: plain(*given, elements=1 << 19)),
        ],
        work=1.0,
        unit="s",
        agree=agree,
        rounds=options.rounds,
        packages=["torch", "numpy"],
    )
    yield compare(
        "statistics of these embeddings, uniformity by a sample",
        [
            Contender("varalign", lambda: summary(*given), ours=True),
            Contender("the ranks", lambda: ranks(*given), differs="for scale"),
        ],
        work=1.0,
        unit="s",
        agree=lambda ours, theirs: False,
        rounds=options.rounds,
        packages=["torch", "numpy"],
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """The script's own option."""
    parser.add_argument("--large", action="store_true", help="100,000 images and 500,000 texts, once, instead")


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
