"""Search over a folder at size: queries on 100,000 made vectors, here and over HTTP; `embed --images` of 20,000 files.

    OMP_NUM_THREADS=1 python bench/serve.py [--vectors N] [--width D] [--queries Q] [--files N] [--folder DIR]

Queries are vectors, so that no tower counts. Targets: a median of 30 ms, and the same answers as float32 products in
memory. The memory is that of the serving process after all queries: what it alone holds, and what it maps of files,
which the system may take back. `embed` runs as a process, imports included: on all files, again, after 10 were changed,
and after a byte of the store was changed, which must be named.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from harness import Row, judged, main, percentile, single
from numpy.typing import NDArray

TOP, MILLISECONDS = 24, 30.0
PACKAGES = ["torch", "numpy", "fastapi", "uvicorn"]


def unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def made_search(folder: Path) -> Any:
    """A search over the made store, which is mapped."""
    from varalign.aligner.folder_gallery import FolderGallery
    from varalign.aligner.folder_search import FolderSearch
    from varalign.inputs.kept import read_kept

    found = read_kept(folder / "made.safetensors", "made", mapped=True)
    assert isinstance(found, dict), found
    names = [f"{row}.jpg" for row in range(len(found["vectors"]))]
    store = folder / "made.safetensors"
    gallery = FolderGallery(folder, names, False, found["vectors"], found["priors"], store, found["digests"], {}, {})
    return FolderSearch(SimpleNamespace(name="made"), gallery)  # type: ignore[arg-type]


def write_store(folder: Path, count: int, width: int) -> None:
    """Vectors in 1,000 clusters, as those of images are, with a prior."""
    from varalign.inputs.kept import write_kept

    random = np.random.default_rng(0)
    centres = random.normal(size=(1000, width)).astype(np.float32)
    vectors = unit(centres[random.integers(0, 1000, count)] + random.normal(size=(count, width)).astype(np.float32))
    arrays = {
        "vectors": vectors.astype(np.float16),
        "digests": random.integers(0, 256, (count, 32)).astype(np.uint8),
        "priors": (0.05 * random.normal(size=count)).astype(np.float32),
    }
    write_kept(folder / "made.safetensors", "made", arrays)


def serve(folder: Path, port: Any) -> None:
    """In a process of its own: serve the made store."""
    from varalign.aligner.serve.app import build_app
    from varalign.aligner.serve.server import listen, server_of

    app, listening = build_app(made_search(folder), None), listen("127.0.0.1", 0)
    port.put(listening.getsockname()[1])
    server_of(app).run([listening])


def timed(calls: Iterator[Any]) -> tuple[list[float], list[Any]]:
    """Milliseconds and results of calls, one after another."""
    times, results = [], []
    begin = time.perf_counter()
    for result in calls:
        times.append(1000 * (time.perf_counter() - begin))
        results.append(result)
        begin = time.perf_counter()
    return times, results


def latencies(subject: str, times: list[float], agrees: bool) -> list[Row]:
    median, last = percentile(times, 0.5), percentile(times, 0.99)
    return [
        single(subject, "varalign, median", median, "ms", agrees=agrees, packages=PACKAGES),
        single(subject, "varalign, 99th percentile", last, "ms", agrees=agrees, packages=PACKAGES),
        judged(subject, f"median of {MILLISECONDS:g} ms", MILLISECONDS / median, 1.0),
    ]


def queries(options: argparse.Namespace, folder: Path) -> Iterator[Sequence[Row]]:
    """In the process beside float32 in memory, then over HTTP."""
    from varalign.aligner.folder_search import Query

    write_store(folder, options.vectors, options.width)
    search = made_search(folder)
    random = np.random.default_rng(1)
    rows = random.integers(0, options.vectors, options.queries)
    noise = random.normal(size=(options.queries, options.width)).astype(np.float32) / options.width**0.5
    asked = unit(search.gallery.vectors[rows].astype(np.float32) + noise)
    search.images(Query(asked[0], "text"), TOP)
    times, hits = timed(search.images(Query(vector, "text"), TOP) for vector in asked)
    wide, prior = search.gallery.vectors.astype(np.float32), search.gallery.prior

    def in_memory(vector: NDArray[np.float32]) -> NDArray[np.int64]:
        scores = wide @ vector - prior
        best = np.argpartition(-scores, TOP)[:TOP]
        return best[np.argsort(-scores[best], kind="stable")]

    few = asked[: max(1, options.queries // 10)]
    peer_times, peer_rows = timed(in_memory(vector) for vector in few)
    agrees = all({hit.row for hit in found} == set(peer.tolist()) for found, peer in zip(hits, peer_rows, strict=False))
    subject = f"{options.queries:,} queries on {options.vectors:,} vectors of {options.width}, top {TOP}"
    found = latencies(subject, times, agrees)
    peer = percentile(peer_times, 0.5)
    found.append(single(subject, "numpy, float32 in memory, median", peer, "ms", ratio=found[0].value / peer))
    yield found

    port: Any = multiprocessing.get_context("spawn").Queue()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, port), daemon=True)
    process.start()
    connection = http.client.HTTPConnection("127.0.0.1", port.get(timeout=300))

    def ask(vector: NDArray[np.float32]) -> list[int]:
        connection.request("POST", "/knn-service", json.dumps({"embedding_input": vector.tolist(), "num_images": TOP}))
        return [hit["id"] for hit in json.load(connection.getresponse())]

    ask(asked[0])
    times, answers = timed(ask(vector) for vector in asked)
    plain = [[hit.row for hit in search.images(Query(vector, "image"), TOP)] for vector in asked[:50]]
    subject = f"the same over HTTP, POST /knn-service, {search.gallery.store.stat().st_size / 2**20:.0f} MiB of store"
    found = latencies(subject, times, answers[:50] == plain)
    status = Path(f"/proc/{process.pid}/status").read_text()
    for what, field in (("held by the process alone", "RssAnon"), ("mapped files", "RssFile")):
        size = int(re.search(rf"{field}:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
        found.append(single(subject, f"memory, {what}", size, "MiB", packages=PACKAGES))
    process.terminate()
    yield found


def embedding(options: argparse.Namespace, folder: Path) -> Iterator[Sequence[Row]]:
    """`embed --images` on made files: all, none, 10 changed, and a damaged store."""
    from PIL import Image
    from varalign.data.sample import write_sample

    write_sample(folder / "data", images=60, size=32)
    words = ["train", "--data", folder / "data", "--image-size", 32, "--epochs", 1, "--batch-size", 16]
    run = folder / "run"
    varalign(*words, "--start", "random", "--hub-correction", "dev", "--out", run)
    pictures = folder / "pictures"
    for number in range(options.files):
        place = pictures / f"{number // 1000:03}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((160, 120)).save(place / f"{number:06}.jpg", quality=85)
    subject = f"embed --images, {options.files:,} files of 160 x 120, ResNet-18 at 32 px"

    def row(what: str, embedded: int, note: str = "") -> Row:
        wall, processor, said, error = varalign("embed", run, "--images", pictures, "--json")
        agrees = json.loads(said)["embedded"] == embedded and note in error
        store[:] = [Path(json.loads(said)["store"])]
        return single(
            subject, what, wall, "s", agrees=agrees, note=f"processor {processor:.1f} s; {embedded:,} embedded"
        )

    store: list[Path] = []
    found = [row("the first time", options.files), row("again", 0)]
    for number in range(10):
        pixels = np.random.default_rng(options.files + number).integers(0, 256, (120, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / "000" / f"{number:06}.jpg")
    found.append(row("10 changed", 10))
    content = bytearray(store[0].read_bytes())
    content[len(content) // 2] ^= 1
    store[0].write_bytes(content)
    found.append(row("a byte of the store changed", options.files, f"{store[0]}: damaged"))
    yield found


def varalign(*words: object) -> tuple[float, float, str, str]:
    """Seconds by the wall and of the processor, standard output and error of one command."""
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    line = [sys.executable, "-m", "varalign", *map(str, words), "--threads", "1", "--device", "cpu"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begin, processor, done.stdout, done.stderr


def subjects(options: argparse.Namespace) -> Iterator[Sequence[Row]]:
    """Queries, then embedding."""
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        yield from queries(options, Path(place))
        if options.files:
            yield from embedding(options, Path(place))


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much of what is made, and where."""
    parser.add_argument("--vectors", type=int, default=100_000, help="size of the gallery (default 100,000)")
    parser.add_argument("--width", type=int, default=512, help="dimensions (default 512)")
    parser.add_argument("--queries", type=int, default=1000, help="number of queries (default 1,000)")
    parser.add_argument("--files", type=int, default=20_000, help="files to embed (default 20,000; 0: none)")
    parser.add_argument("--folder", help="folder for the made files (default: the system's)")


if __name__ == "__main__":
    main(__doc__, subjects, add_options)
