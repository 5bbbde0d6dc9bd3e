"""Image decoding and loading, exact and fast, on one thread and on all, and memory a thread, against what people use.

`--data FOLDER` takes JPEG files, else some are made here. Decoding gives RGB of the whole picture; loading gives
normalised float32 [B, 3, 224, 224] as CLIP wants it. Agreement is with Pillow (ours decodes to the bit): a mean
difference under one level, for the fast forms under three. These run on pictures made here, 640 x 480 and 4000 x 3000.
Memory is the rise of the peak while loading, measured for each loader in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from harness import Contender, Row, compare, judged, main, single
from image_memory import of_a_worker
from image_peers import PACKAGES, Load, arguments, decoders, loaders, made, photographs, reduced_loaders
from varalign.data.images import Preprocess, decode_image, load_images

BATCH = 25


def each(load: Load, files: Sequence[bytes]) -> Callable[[], list[Any]]:
    """A contender's run: one file after another."""
    return lambda: [np.asarray(load(data)) for data in files]


def all_at_once(load: Load, files: Sequence[bytes], pool: ThreadPoolExecutor) -> Callable[[], list[Any]]:
    """The same on a pool's threads."""
    return lambda: [np.asarray(result) for result in pool.map(load, files)]


def quickest(rows: Sequence[Row], wall: bool = False, leave: str = "varalign") -> float:
    """Ours / theirs, against the quickest peer that agrees; by processor time unless `wall`."""
    peers = [row for row in rows if row.agrees and not row.contender.startswith(leave)]
    return min((row.ratio if wall else row.processor_ratio or row.ratio) for row in peers)


def within(levels: float, unit: float) -> Callable[[Sequence[Any], Sequence[Any]], bool]:
    """Whether the mean difference is under so many levels, all shapes being the same."""

    def agree(truth: Sequence[Any], result: Sequence[Any]) -> bool:
        if [a.shape for a in truth] != [b.shape for b in result]:
            return False
        pairs = zip(truth, result, strict=True)
        return bool(np.mean([np.abs(a.astype(np.float32) - b).mean() for a, b in pairs]) < levels * unit)

    return agree


def in_batches(paths: Sequence[Path], preprocess: Preprocess, threads: int) -> Callable[[], list[Any]]:
    """Ours, a batch at a time."""
    batches = [paths[begin : begin + BATCH] for begin in range(0, len(paths), BATCH)]
    return lambda: [image for batch in batches for image in load_images(batch, preprocess, threads=threads)[0]]


def in_one_call(paths: Sequence[Path], preprocess: Preprocess, threads: int = 1) -> Callable[[], list[Any]]:
    """Ours, all files at once."""
    return lambda: list(load_images(paths, preprocess, threads=threads)[0])


def decoded_on(files: Sequence[bytes], pool: ThreadPoolExecutor | None, where: str, **kept: Any) -> list[Row]:
    """Decoding alone, one file after another or on a pool's threads."""

    def run(decode: Load) -> Callable[[], list[Any]]:
        return each(decode, files) if pool is None else all_at_once(decode, files, pool)

    contenders = [Contender("varalign", run(decode_image), ours=True)]
    contenders += [Contender(name, run(decode)) for name, decode in decoders()]
    subject = f"decode {len(files)} JPEG files to RGB, {where}"
    return compare(subject, contenders, work=len(files), agree=within(1, 1), **kept)


def memory(paths: Sequence[Path], preprocess: Preprocess, what: str, threads: int) -> Iterator[Row]:
    """MiB a thread while loading, ours and the peers'."""
    names = ["varalign", *(name for name, _, why in loaders(preprocess) if not why)]
    needs = {name: of_a_worker(name, threads, paths) for name in names}
    for name, need in needs.items():
        ratio = needs["varalign"] / max(need, 1e-9)
        note = (
            f"peak over what was there before, {threads} threads" if threads > 1 else "peak over what was there before"
        )
        yield single(f"memory of {what}", name, need, "MiB a thread", ratio=ratio, note=note, packages=PACKAGES)


@contextmanager
def on_disk(files: Sequence[bytes]) -> Iterator[list[Path]]:
    """The files under names, as our loader takes them (reading them again costs it a little)."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(len(files))]
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
        yield paths


def subjects(options: argparse.Namespace) -> Iterable[Sequence[Row]]:
    """Decoding; loading; loading by a scaled transform, at two sizes."""
    files = photographs(options)
    kept: dict[str, Any] = {"unit": "images/s", "rounds": options.rounds, "packages": PACKAGES}
    cores = os.cpu_count() or 1
    decoded = decoded_on(files, None, "one thread", **kept)
    yield decoded
    with ThreadPoolExecutor(cores) as pool:
        yield decoded_on(files, pool, f"{cores} threads", **kept)

    preprocess, fast = Preprocess(), Preprocess(decode="fast")
    level = 1 / 255 / float(np.mean(preprocess.std))
    with on_disk(files) as paths:
        contenders = [
            Contender("varalign", in_batches(paths, preprocess, 1), ours=True),
            Contender("varalign, one call", in_one_call(paths, preprocess)),
        ]
        for name, load, why in loaders(preprocess):
            contenders.append(Contender(name, each(load, files), differs=why, reference="Pillow" in name))
        subject = f"load {len(files)} JPEG files to float32 [B, 3, 224, 224], one thread"
        rows = compare(subject, contenders, work=len(files), agree=within(1, level), **kept)
        yield rows
        pillow = [row.processor_ratio or 0.0 for row in rows if row.contender == "torchvision on Pillow"]
        turbo = [row.processor or 0.0 for row in decoded if "libjpeg-turbo" in row.contender]
        judgement = "targets of exact loading, one thread, by processor time"
        yield [
            judged(judgement, "over the quickest peer that agrees", quickest(rows), 1.5, PACKAGES),
            *[judged(judgement, "over torchvision on Pillow", value, 2.5, PACKAGES) for value in pillow],
            *[
                judged(judgement, "loading / libjpeg-turbo's decoding alone", (rows[0].processor or 0) / rate, 0.75)
                for rate in turbo
            ],
        ]

        with ThreadPoolExecutor(cores) as pool:
            contenders = [Contender("varalign", in_batches(paths, preprocess, 0), ours=True)]
            for name, load, why in loaders(preprocess):
                run = all_at_once(load, files, pool)
                contenders.append(Contender(name, run, differs=why, reference="Pillow" in name))
            subject = f"load {len(files)} JPEG files to float32 [B, 3, 224, 224], {cores} threads"
            rows = compare(subject, contenders, work=len(files), agree=within(1, level), **kept)
        yield rows
        judgement = f"targets of exact loading, {cores} threads, by wall time"
        yield [judged(judgement, "over the quickest peer that agrees", quickest(rows, wall=True), 1.5, PACKAGES)]
        if Path("/proc/self/clear_refs").exists():
            yield list(memory(paths, preprocess, f"loading {len(files)} JPEG files", 4))

    tiny = Preprocess(size=16, decode="fast")
    for width, height, count in ((640, 480, 24), (4000, 3000, 4)):
        files = made(width, height, count)
        with on_disk(files) as paths:
            subject = f"load {count} JPEG files of {width} x {height} to float32 [B, 3, 224, 224], fast"
            for threads in (1, cores):
                with ThreadPoolExecutor(threads) as pool:
                    contenders = [
                        Contender("varalign fast", in_one_call(paths, fast, threads), ours=True),
                        Contender("varalign exact", in_one_call(paths, preprocess, threads), reference=True),
                        # The first coefficient of each block alone becomes a pixel: what is left is entropy decoding.
                        Contender(
                            "varalign, to 16 pixels",
                            in_one_call(paths, tiny, threads),
                            differs="entropy decoding alone",
                        ),
                    ]
                    for name, load, why in reduced_loaders(preprocess):
                        run = each(load, files) if threads == 1 else all_at_once(load, files, pool)
                        contenders.append(Contender(name, run, differs=why))
                    where = "one thread" if threads == 1 else f"{threads} threads"
                    rows = compare(f"{subject}, {where}", contenders, work=count, agree=within(3, level), **kept)
                    yield rows
                judgement = f"target of fast loading of {width} x {height}, {where}, by processor time"
                yield [judged(judgement, "over the quickest peer that agrees", quickest(rows), 2, PACKAGES)]
            if width == 4000 and Path("/proc/self/clear_refs").exists():
                yield list(memory(paths, preprocess, f"loading JPEG files of {width} x {height}", 1))


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
