"""Whole commands: imports, first line and total, beside `import torch` and a lean loop; how they grow with the data.

    python bench/commands.py            every command on small made data, in interleaved rounds
    python bench/commands.py --growth   time and peak memory on made data of growing size, once each
    python bench/commands.py --coco     the same at the size of COCO: 118,000 images of 64 pixels, 590,000 captions

A command is a process of its own, on one thread unless OMP_NUM_THREADS says otherwise. Times are processor time, user
and system, but for the first line, which is wall time. "imports" is a process that imports what the command had
imported when it printed its result. The lean loop trains as large heads for as many epochs on the same features with
torch alone. Made features have 32 directions in common under noise, and dev and test at most 5,000 images each. They
are made by other processes, since a process counts as its peak memory what the one that started it held by then;
recall of 100,000 images among 500,000 texts is extrapolated in docs/evidence.md (exact, 6.6 minutes, bounded memory).
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import Row, main, single
from numpy.typing import NDArray
from safetensors.numpy import save_file

WORDS = ("red", "green", "blue", "cat", "dog", "tree", "house", "car", "on", "under", "near", "big", "small", "old")
PACKAGES = ["torch", "numpy"]
EPOCHS = 5
RANDOM = ["--start", "random", "--epochs", str(EPOCHS), "--hub-correction", "off"]
# Runs a command, and writes what it had imported when it printed its result: sys.argv is the file, then its words.
LISTED = """import sys
from varalign.cli import main
class Listing:
    def __init__(self, stream):
        self.stream, self.modules = stream, None
    def write(self, text):
        self.modules = self.modules or dict(sys.modules)
        return self.stream.write(text)
    def __getattr__(self, name):
        return getattr(self.stream, name)
sys.stdout = Listing(sys.stdout)
code = main(sys.argv[2:])
names = [name for name, module in sys.stdout.modules.items() if getattr(module, "__spec__", None)]
open(sys.argv[1], "w").write("\\n".join(name for name in names if name != "__main__"))
sys.exit(code)"""
IMPORTS = """import contextlib, importlib, sys
for name in open(sys.argv[1]).read().split():
    with contextlib.suppress(Exception):
        importlib.import_module(name)"""
LEAN = """import sys, torch
from safetensors.torch import load_file
torch.manual_seed(0)
data, epochs = load_file(sys.argv[1]), int(sys.argv[2])
x, y = data["image_features"].float(), data["text_features"].float()
owner, split = data["text_image_ids"], data["split"]
def head(width):
    return torch.nn.Sequential(torch.nn.Linear(width, 512), torch.nn.GELU(), torch.nn.Linear(512, 256))
heads, scale = torch.nn.ModuleList([head(x.shape[1]), head(y.shape[1])]), torch.nn.Parameter(torch.tensor(2.66))
optimiser = torch.optim.AdamW([*heads.parameters(), scale], lr=1e-3)
def embed(side, rows):
    return torch.nn.functional.normalize(heads[side](rows), dim=1)
def recall(code):
    with torch.no_grad():
        texts = (split[owner] == code).nonzero()[:, 0]
        s = embed(0, x[split == code]) @ embed(1, y[texts]).T
        place = torch.cumsum(split == code, 0)[owner[texts]] - 1
        right = s[place, torch.arange(len(texts))]
        return float(((s >= right).sum(0) <= 1).float().mean())
train = (split[owner] == 0).nonzero()[:, 0]
for epoch in range(epochs):
    for batch in train[torch.randperm(len(train))].split(128):
        z = scale.exp() * embed(0, x[owner[batch]]) @ embed(1, y[batch]).T
        target = torch.arange(len(batch))
        loss = (torch.nn.functional.cross_entropy(z, target) + torch.nn.functional.cross_entropy(z.T, target)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    recall(1)
print(recall(2))"""


class Measured(NamedTuple):
    """One process: seconds of processor time, wall time until its first line and to its end; peak memory in MiB; and
    what it said."""

    processor: float
    first_line: float
    wall: float
    peak: float
    said: str


def measure(words: Sequence[str], folder: Path) -> Measured:
    """Run a process to its end in a folder.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    began = time.perf_counter()
    process = subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    first = time.perf_counter() - began
    said += process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit code {process.returncode}: {said[-2000:].decode()}")
    peak = used.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    wall = time.perf_counter() - began
    return Measured(used.ru_utime + used.ru_stime, first, wall, peak, said.decode(errors="replace"))


def varalign(words: Sequence[str]) -> list[str]:
    """A command line of ours."""
    return [sys.executable, "-m", "varalign", *words]


def splits(images: int) -> NDArray[np.int8]:
    """(I,) a tenth dev and a tenth test, at most 5,000 each; the rest train."""
    split = np.zeros(images, np.int8)
    held_out = min(images // 10, 5000)
    split[:held_out], split[held_out : 2 * held_out] = 2, 1
    return split


def elsewhere(make: Callable[..., None], *given: Any) -> None:
    """Call a function in a process of its own, whose memory this one does not keep."""
    process = multiprocessing.get_context("spawn").Process(target=make, args=given)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{make.__name__}: exit code {process.exitcode}")


def made_features(file: Path, pairs: int, noise: float = 2.0, image_width: int = 256, text_width: int = 192) -> None:
    """A features file of pairs with 32 directions in common; each image has five texts.

    Of `noise` 2 the closed form finds nearly every pair; of 16 some.
    """
    rng = np.random.default_rng(0)
    images = pairs // 5
    common, owner = rng.standard_normal((images, 32), np.float32), np.repeat(np.arange(images), 5)
    sides = []
    for hidden, width in ((common, image_width), (common[owner], text_width)):
        other = rng.standard_normal((len(hidden), width), np.float32)
        shared = hidden @ rng.standard_normal((32, width), np.float32)
        sides.append((shared + np.float32(noise) * other).astype(np.float16))
    arrays = {"image_features": sides[0], "text_features": sides[1], "text_image_ids": owner, "split": splits(images)}
    save_file(arrays, file)
    texts = (f"{' '.join(WORDS[k] for k in rng.integers(0, len(WORDS), 6))} {number}" for number in range(len(owner)))
    file.with_name(f"{file.stem}.texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))


def made_images(folder: Path, pairs: int, side: int = 32) -> None:
    """A data folder of small square JPEG files, five captions each."""
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "Images").mkdir(parents=True)
    lines = ["image,caption"]
    for number in range(pairs // 5):
        content, name = io.BytesIO(), f"{number:06}.jpg"
        Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8)).resize((side, side)).save(content, "jpeg")
        (folder / "Images" / name).write_bytes(content.getvalue())
        texts = (" ".join(WORDS[k] for k in rng.integers(0, len(WORDS), 6)) for _ in range(5))
        lines += [f"{name},{text} {number} {place}" for place, text in enumerate(texts)]
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")


def small(folder: Path) -> dict[str, list[str]]:
    """Commands by name on small made data; the runs that some of them need are made here."""
    elsewhere(made_features, folder / "f.safetensors", 3000)
    elsewhere(made_images, folder / "data", 600)
    training = ["train", "--data", "data", "--image-size", "32", "--epochs", "1", "--start", "random", "--threads", "1"]
    measure(varalign(["train", "--features", "f.safetensors", *RANDOM, "--out", "features_run"]), folder)
    measure(varalign([*training, "--out", "run"]), folder)
    measure(varalign(["search", "run", "a red cat"]), folder)
    return {
        "train --features, random heads": ["train", "--features", "f.safetensors", *RANDOM, "--out", "OUT"],
        "train --features, the recipe": ["train", "--features", "f.safetensors", "--out", "OUT"],
        "train --data, ResNet-18 and LSTM": [*training, "--out", "OUT"],
        "search, a text": ["search", "run", "a red cat"],
        "search, an image": ["search", "run", "--image", "data/Images/000001.jpg"],
        "eval": ["eval", "features_run"],
        "diagnose": ["diagnose", "--features", "f.safetensors", "--out", "OUT"],
        "data check": ["data", "check", "data"],
    }


def starts(options: argparse.Namespace) -> Iterator[list[Row]]:
    """Every command of `small` beside `import torch`."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        commands = small(folder)
        torch = [sys.executable, "-c", "import torch"]
        lean = [sys.executable, "-c", LEAN, "f.safetensors", str(EPOCHS)]
        for name, words in commands.items():
            if options.only and name not in options.only:
                continue
            listed = folder / "modules.txt"
            measure([sys.executable, "-c", LISTED, str(listed), *_fresh(words, "listed")], folder)
            contenders = {"import torch": torch, "imports": [sys.executable, "-c", IMPORTS, str(listed)], "whole": []}
            if name == "train --features, random heads":
                contenders["a lean loop"] = lean
            found: dict[str, list[Measured]] = {contender: [] for contender in contenders}
            for number in range(options.rounds):
                for contender, line in contenders.items():
                    found[contender].append(measure(line or varalign(_fresh(words, f"{number}")), folder))
            yield _rows(name, found)


def _fresh(words: Sequence[str], number: str) -> list[str]:
    """The words with a new name for OUT."""
    return [f"out-{time.time_ns()}-{number}" if word == "OUT" else word for word in words]


def _rows(name: str, found: dict[str, list[Measured]]) -> list[Row]:
    def median(contender: str, figure: str) -> float:
        return statistics.median(getattr(each, figure) for each in found[contender])

    def ratio(ours: str, theirs: str) -> float:
        pairs = zip(found[ours], found[theirs], strict=True)
        return statistics.median(a.processor / b.processor for a, b in pairs)

    rows = [single(name, "import torch", median("import torch", "processor"), "s", packages=PACKAGES)]
    for contender in [contender for contender in found if contender != "import torch"]:
        wall = f"{median(contender, 'wall'):.1f} s by the wall, {median(contender, 'peak'):,.0f} MiB"
        over = ratio(contender, "import torch")
        note = f"{wall}; ours/theirs: over import torch"
        if contender == "whole" and "a lean loop" in found:
            note += f"; over the lean loop {ratio('whole', 'a lean loop'):.2f}"
        value = median(contender, "processor")
        rows.append(single(name, contender, value, "s", ratio=over, note=note, packages=PACKAGES))
    first = median("whole", "first_line")
    return [*rows, single(name, "first line", first, "s", note="by the wall", packages=PACKAGES)]


def growth(options: argparse.Namespace) -> Iterator[list[Row]]:
    """Time and peak memory of commands on made pairs, five a image, for each of the sizes."""
    for pairs in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.place) as place:
            folder = Path(place)
            elsewhere(made_features, folder / "f.safetensors", pairs)
            commands: dict[str, list[str]] = {
                "train --features": ["train", "--features", "f.safetensors", "--out", "run"],
                "eval": ["eval", "run"],
                "visualize": ["visualize", "run", "--perplexities", "30"],
                "diagnose": ["diagnose", "--features", "f.safetensors", "--out", "out"],
            }
            if options.images:
                elsewhere(made_images, folder / "data", pairs)
                elsewhere(made_images, folder / "few", 600)
                few = ["--image-size", "32", "--epochs", "1", "--start", "random", "--hub-correction", "off"]
                measure(varalign(["train", "--data", "few", *few, "--threads", "1", "--out", "searched"]), folder)
                commands |= {
                    "data check": ["data", "check", "data"],
                    "search, the first": ["search", "searched", "a red cat", "--data", "data", "--threads", "1"],
                    "search, the next": ["search", "searched", "a big dog", "--data", "data", "--threads", "1"],
                }
            yield from once(f"{pairs:,} pairs", commands, folder, options.only)


def once(subject: str, commands: Mapping[str, Sequence[str]], folder: Path, only: Sequence[str]) -> Iterator[list[Row]]:
    """Each of the commands, or of those that are named alone, once; with the recalls that it says in JSON."""
    for name, words in commands.items():
        if only and name not in only:
            continue
        found = measure(varalign(words), folder)
        note = f"{found.wall:.1f} s by the wall, {found.peak:,.0f} MiB"
        for direction in ("i2t", "t2i"):
            if said := re.search(rf'"{direction}_recall@1": ([\d.]+)', found.said):
                note += f", {direction} R@1 {100 * float(said[1]):.1f} %"
        yield [single(subject, name, found.processor, "s", note=note, packages=PACKAGES)]


def coco(options: argparse.Namespace) -> Iterator[list[Row]]:
    """Commands on made data of COCO's size, 5,000 images and 25,000 captions of which are the test split."""
    pairs = 590_000
    train = ["train", "--features", "f.safetensors", "--json"]
    commands = {
        "data check": ["data", "check", "data"],
        "train, the closed form": [*train, "--voices", "closed-form", "--out", "closed"],
        "eval, 5,000 images and 25,000 captions": ["eval", "closed", "--json"],
        "train, 3 epochs of random heads": [*train, "--start", "random", "--epochs", "3", "--out", "heads"],
        "train, the recipe": [*train, "--out", "run"],
    }
    with tempfile.TemporaryDirectory(dir=options.place) as place:
        folder = Path(place)
        elsewhere(made_features, folder / "f.safetensors", pairs, 16.0)
        elsewhere(made_images, folder / "data", pairs, 64)
        yield from once(f"COCO's size, {pairs // 5:,} images, {pairs:,} captions", commands, folder, options.only)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The script's own options."""
    parser.add_argument("--growth", action="store_true", help="the growth table instead")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[6000, 60_000, 600_000], help="pairs of the growth table"
    )
    parser.add_argument("--coco", action="store_true", help="the table at COCO's size instead")
    parser.add_argument("--only", nargs="+", help="these commands alone, such as diagnose 'data check'")
    parser.add_argument("--no-images", dest="images", action="store_false", help="leave out data check and search")
    parser.add_argument("--place", type=Path, help="where made data lie (default: the folder for temporary files)")


def subjects(options: argparse.Namespace) -> Iterator[Sequence[Row]]:
    """The rows that the options ask for."""
    yield from coco(options) if options.coco else growth(options) if options.growth else starts(options)


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
