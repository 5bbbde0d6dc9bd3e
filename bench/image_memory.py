"""How much memory a thread takes while it loads images: a part of bench/decode.py, which starts it once a loader.

    python bench/image_memory.py LOADER THREADS FILE...

loads the files on so many threads, again and again, into a batch that is there before, and prints by how many bytes the
process's peak of resident memory lies above what it held before. The loader is "varalign" or a name of `loaders`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from image_peers import loaders, made
from varalign import _core
from varalign.data.images import Preprocess, prepare

ROUNDS = 3


def resident(what: str) -> int:
    """Bytes of the process by its status in /proc: "VmRSS" now, "VmHWM" at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"no {what} in /proc/self/status")


def growth(loader: str, threads: int, paths: Sequence[Path]) -> int:
    """Loads all files in turn; the peak above what was there before."""
    preprocess = Preprocess()
    out = np.ones((len(paths), 3, preprocess.size, preprocess.size), np.float32)
    files, rows = [str(path) for path in paths], list(range(len(paths)))
    load = {name: each for name, each, _ in loaders(preprocess)}.get(loader)
    if load is None and loader != "varalign":
        raise SystemExit(f"no loader {loader!r}")
    if load is not None:
        load(made(32, 32, 1)[0])  # what is imported with the first picture is no thread's
    with ThreadPoolExecutor(threads) as pool:
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here

        def one(row: int) -> None:
            out[row] = load(paths[row].read_bytes())

        for _ in range(ROUNDS):
            if load is None:
                assert not _core.load_images(files, rows, prepare(preprocess), out, 0, threads)
            else:
                list(pool.map(one, range(len(paths))))
        return resident("VmHWM") - before


def of_a_worker(loader: str, threads: int, paths: Sequence[Path]) -> float:
    """MiB a thread, measured in a process of its own."""
    command = [sys.executable, __file__, loader, str(threads), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return int(done.stdout) / threads / (1 << 20)


if __name__ == "__main__":
    print(growth(sys.argv[1], int(sys.argv[2]), [Path(name) for name in sys.argv[3:]]))
