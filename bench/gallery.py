"""A gallery of millions of made vectors: making its file, exact search beside the memory's speed, faiss beside exact.

    python bench/gallery.py [--vectors N] [--width D] [--folder DIR] [--peer-vectors N]

Vectors are a mixture, 500 to a centre on average: one of the random unit centres plus normal noise of the same length,
scaled to unit length; queries are stored vectors plus noise of half their length; priors are normal, with deviation
0.03. The memory's speed
is that of a plain sum over the same map by as many threads (OMP_NUM_THREADS, or every core), in turn with the searches.
The last rows search a part that fits into memory beside faiss' own exact indices.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from harness import Contender, Row, compare, main, single
from numpy.typing import NDArray

K, BLOCK = 10, 1 << 16
PACKAGES = ["torch", "numpy", "faiss-cpu"]
GIB = 1 << 30
Floats = NDArray[np.float32]


def unit(values: Floats) -> Floats:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def noise(random: np.random.Generator, count: int, width: int, rank: int = 0) -> Floats:
    """(count, width) of about unit length; with a rank, in so many directions, always the same."""
    if not rank:
        return random.standard_normal((count, width), np.float32) / np.float32(width**0.5)
    directions = noise(np.random.default_rng(3), rank, width)
    return random.standard_normal((count, rank), np.float32) / np.float32(rank**0.5) @ directions


def made_blocks(count: int, width: int, rank: int) -> Iterator[NDArray[np.float16]]:
    """The vectors in parts."""
    random = np.random.default_rng(0)
    centres = unit(noise(random, max(1, count // 500), width, rank))
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        yield unit(centres[random.integers(0, len(centres), size)] + noise(random, size, width, rank)).astype(
            np.float16
        )


def write(file: Path, count: int, width: int, rank: int, said: Any) -> None:
    """In a process of its own: write the gallery; says seconds, those in which vectors were made, and peak GiB."""
    from varalign.aligner.gallery_file import write_gallery

    making = 0.0

    def parts() -> Iterator[NDArray[np.float16]]:
        nonlocal making
        blocks = made_blocks(count, width, rank)
        while True:
            begin = time.perf_counter()
            block = next(blocks, None)
            making += time.perf_counter() - begin
            if block is None:
                return
            yield block

    names = [f"{row // 1000:05}/{row:08}.jpg" for row in range(count)]
    prior = 0.03 * np.random.default_rng(2).standard_normal(count, np.float32)
    about = {"model": "made", "weights": "", "correction": "", "folder": "/", "rank": str(rank)}
    begin = time.perf_counter()
    write_gallery(file, names, parts(), width, first_copies=np.arange(count), prior=prior, about=about)
    seconds = time.perf_counter() - begin
    said.put((seconds, making, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)))


class Held:
    """The most memory that this process alone holds (not mapped files) while the block runs, in GiB."""

    def __enter__(self) -> Held:
        self.peak, self._end = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._end.wait(0.005):
            status = Path("/proc/self/status").read_text()
            self.peak = max(self.peak, int(status.partition("RssAnon:")[2].split()[0]) / (1 << 20))

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the wall and of the processor."""
    begin, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - begin, time.process_time() - processor


def plain_sum(vectors: NDArray[np.float16], threads: int) -> int:
    """The sum over the bytes as whole numbers of 64 bits."""
    whole = vectors.reshape(-1).view(np.uint64)
    with ThreadPoolExecutor(threads) as pool:
        return sum(map(int, pool.map(np.sum, np.array_split(whole, 8 * threads))))


def plain_search(queries: Floats, gallery: Any) -> list[set[int]]:
    """The rows of the K best of each query by float32 products, block by block."""
    best, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(gallery.vectors), BLOCK):
        part = gallery.vectors[start : start + BLOCK].astype(np.float32)
        scores = queries @ part.T - gallery.prior[start : start + BLOCK]
        best = np.concatenate([best, scores], axis=1)
        places = np.tile(np.arange(start, start + len(part)), (len(queries), 1))
        rows = np.concatenate([rows, places], axis=1)
        order = np.argpartition(-best, K, axis=1)[:, :K]
        best, rows = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)
    return [set(found) for found in rows.tolist()]


def asked(gallery: Any, count: int) -> Floats:
    """Noisy copies of stored vectors."""
    random = np.random.default_rng(count)
    rows = np.sort(random.integers(0, len(gallery.vectors), count))
    return unit(
        gallery.vectors[rows].astype(np.float32)
        + 0.5 * noise(random, count, gallery.vectors.shape[1], int(gallery.about["rank"]))
    )


def exact(gallery: Any, threads: int, rounds: int, subject: str, answers: list[Any]) -> Iterator[list[Row]]:
    """1, 100 and 1,000 queries beside a plain sum of the map; the answers to the last are put into `answers`."""
    from varalign.evaluation.nearest import nearest_of_each

    def search(queries: Floats) -> Any:
        return nearest_of_each(queries, gallery.vectors, K, prior=gallery.prior)

    size = gallery.vectors.nbytes
    few = asked(gallery, 20)
    agrees = [set(rows.tolist()) for _, rows in search(few)] == plain_search(few, gallery)
    for count in (1, 100, 1000):
        queries = asked(gallery, count)
        times, sums = [], []
        with Held() as held:
            for _ in range(rounds if count == 1 else 1):
                sums.append(timed(lambda: plain_sum(gallery.vectors, threads)))
                times.append(timed(lambda: answers.append(search(queries))))  # noqa: B023
                del answers[:-1]
        wall, processor = (statistics.median(time[clock] for time in times) for clock in (0, 1))
        shares = [
            statistics.median(own[clock] / other[clock] for own, other in zip(sums, times, strict=True))
            for clock in (0, 1)
        ]
        note = f"{shares[0]:.2f} of the memory's speed by the wall, {shares[1]:.2f} by processor time; "
        note += f"{processor:.2f} s of the processor, {threads} threads, {held.peak:.2f} GiB held beside the map"
        row = single(subject, f"exact, {count:,} queries", wall, "s", agrees=agrees, note=note, packages=PACKAGES)
        speed = size / statistics.median(time[0] for time in sums) / 1e9
        yield [row, single(subject, f"a plain sum, beside {count:,} queries", speed, "GB/s", packages=PACKAGES)]


def indexed(gallery: Any, subject: str, right: Any) -> Iterator[list[Row]]:
    """The index: time, size, recall by other queries than it was made with, queries a second."""
    from dataclasses import replace

    from varalign.aligner.index_file import Sample, index_path, make_index, open_index

    rows = np.linspace(0, len(gallery.vectors) - 1, 256).astype(np.int64)
    own = Sample("images", gallery.vectors[rows].astype(np.float32), False, rows)
    samples = [own, Sample("queries", asked(gallery, 256), True)]
    with Held() as held:
        begin = time.perf_counter()
        made = make_index(gallery.store, gallery.key, gallery.vectors, gallery.prior, samples)
        seconds = time.perf_counter() - begin
    about = f"{made['lists_read']:,} of {made['lists']:,} lists are read; {held.peak:.1f} GiB held"
    size = index_path(gallery.store).stat().st_size / GIB
    found = replace(gallery, index=open_index(gallery.store, gallery.key, gallery.vectors.shape))
    queries = asked(gallery, 1000)
    with Held() as held:
        begin = time.perf_counter()
        near = [found.nearest(query, K, corrected=True) for query in queries]
        each = (time.perf_counter() - begin) / len(queries)
    hits = [len(set(a[1].tolist()) & set(b[1].tolist())) / K for a, b in zip(near, right, strict=True)]
    recall = float(np.mean(hits))
    yield [
        single(subject, "index, made", seconds, "s", note=about, packages=PACKAGES),
        single(subject, "index, size", size, "GiB", packages=PACKAGES),
        *(
            single(subject, f"index, recall@10 by its {name}", value, "", packages=PACKAGES)
            for name, value in made["recall@10"].items()
        ),
        single(subject, "index, recall@10 by 1,000 other queries", recall, "", agrees=recall >= 0.95),
        single(
            subject,
            "index, one query after another",
            1 / each,
            "queries/s",
            note=f"{held.peak:.2f} GiB held",
            packages=PACKAGES,
        ),
    ]


def peers(gallery: Any, count: int, threads: int, rounds: int) -> Iterator[list[Row]]:
    """The first vectors, beside faiss' exact indices in memory."""
    import faiss
    from varalign.evaluation.nearest import nearest_of_each

    faiss.omp_set_num_threads(threads)
    vectors, prior = np.array(gallery.vectors[:count]), np.array(gallery.prior[:count])
    width = vectors.shape[1] + 1
    flat = faiss.IndexFlatIP(width)
    half = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    for start in range(0, count, BLOCK):
        rows = slice(start, start + BLOCK)
        part = np.concatenate([vectors[rows], -prior[rows, None]], axis=1, dtype=np.float32)
        for index in (flat, half):
            index.is_trained or index.train(part)
            index.add(part)

    def agree(ours: list[set[int]], theirs: list[set[int]]) -> bool:
        """faiss' float16 rounds the priors too: one in a hundred may differ."""
        return sum(len(a & b) for a, b in zip(ours, theirs, strict=True)) >= 0.99 * K * len(ours)

    for asking in (1, 20):
        queries = asked(gallery, asking)
        wide = np.concatenate([queries, np.ones((asking, 1), np.float32)], axis=1)

        def ours(queries: Floats = queries) -> list[set[int]]:
            return [set(rows.tolist()) for _, rows in nearest_of_each(queries, vectors, K, prior=prior)]

        def theirs(index: Any, wide: Floats = wide) -> list[set[int]]:
            return [set(rows) for rows in index.search(wide, K)[1].tolist()]

        yield compare(
            f"{asking} queries on {count:,} vectors of {width - 1}, top {K}, in memory",
            [
                Contender("varalign, float16", ours, ours=True),
                Contender("faiss IndexFlatIP, float32", lambda: theirs(flat)),
                Contender("faiss IndexScalarQuantizer, float16", lambda: theirs(half)),
            ],
            work=1,
            unit="s",
            agree=agree,
            rounds=rounds,
            packages=PACKAGES,
        )


def subjects(options: argparse.Namespace) -> Iterator[Sequence[Row]]:
    """Making, opening, exact search, the index, and peers."""
    import torch
    from varalign.aligner.gallery_file import read_gallery

    if options.threads:
        torch.set_num_threads(options.threads)
    threads = torch.get_num_threads()
    subject = f"a gallery of {options.vectors:,} vectors of {options.width}"
    subject += f" in {options.rank} directions" if options.rank else ""
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        file = Path(place) / "made.safetensors"
        context = multiprocessing.get_context("spawn")
        said: Any = context.Queue()
        process = context.Process(target=write, args=(file, options.vectors, options.width, options.rank, said))
        process.start()
        seconds, making, peak = said.get()
        process.join()
        note = f"{making:.0f} s more to draw the vectors; peak {peak:.2f} GiB with the names"
        begin = time.perf_counter()
        gallery = read_gallery(file)
        opening = time.perf_counter() - begin
        yield [
            single(subject, "file, written", seconds - making, "s", note=note, packages=PACKAGES),
            single(subject, "file, size", os.stat(file).st_size / GIB, "GiB", packages=PACKAGES),
            single(subject, "file, opened and checked", opening, "s", packages=PACKAGES),
        ]
        answers: list[Any] = []
        yield from exact(gallery, threads, options.rounds, subject, answers)
        if options.index:
            yield from indexed(gallery, subject, answers[-1])
        if options.peer_vectors:
            yield from peers(gallery, options.peer_vectors, threads, options.rounds)


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much is made, and where."""
    parser.add_argument("--vectors", type=int, default=10_000_000, help="size of the gallery (default 10,000,000)")
    parser.add_argument("--width", type=int, default=256, help="dimensions (default 256)")
    parser.add_argument("--rank", type=int, default=0, help="directions in which the vectors vary (default: all)")
    parser.add_argument("--threads", type=int, default=0, help="threads of search (default: OMP_NUM_THREADS, or all)")
    parser.add_argument("--no-index", dest="index", action="store_false", help="leave out the approximate index")
    parser.add_argument(
        "--peer-vectors",
        type=int,
        default=1_000_000,
        help="vectors for faiss' exact indices (default 1,000,000; 0: none)",
    )
    parser.add_argument("--folder", help="folder for the made files (default: the system's), 8 GB at 10,000,000")


if __name__ == "__main__":
    main(__doc__, subjects, add_options)
