"""Training on several processes of this machine (gloo) beside one: losses, weights, figures, pairs, embeddings, kills.

    OMP_NUM_THREADS=1 python bench/ranks.py [--worlds 2 4] [--json]

A features file with a planted correlation and the built-in sample's pictures are made in a temporary folder. Each row
is the largest difference between a run of N processes and that of one, over all steps and evaluations; `agrees` says
whether it is within what the subject allows. AdamW's first steps go by the sign of a gradient, and so blow up what
float32 rounds: the encoders are compared at a low rate, and at the usual rate beside one process on two threads, whose
only difference is rounding too.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import Row, main, single
from safetensors.numpy import load_file, save_file

PACKAGES = ["torch", "numpy"]
FEATURES = (
    "--epochs 40 --batch-size 64 --members 4 --voices closed-form,members --settings dev --dropout 0.3 "
    "--precision fp32 --evaluations 3 --seed 3"
)
IMAGES = "--epochs 2 --dataset-size 96 --image-size 64 --batch-size 24 --hub-correction off --seed 3"


def made_features(path: Path, images: int = 1500) -> None:
    """Both sides are noisy views of 16 common factors; 40 % of the training pairs can be made wrong by --noise."""
    random = np.random.default_rng(0)
    factors, owner = random.normal(size=(images, 16)), np.repeat(np.arange(images), 3)
    to_image, to_text = random.normal(size=(16, 96)), random.normal(size=(16, 64))
    split = np.repeat([0, 1, 2], [images - 400, 200, 200]).astype(np.int64)
    save_file(
        {
            "image_features": (factors @ to_image + 3 * random.normal(size=(images, 96))).astype(np.float32),
            "text_features": (factors[owner] @ to_text + 3 * random.normal(size=(len(owner), 64))).astype(np.float32),
            "text_image_ids": owner,
            "split": split,
        },
        path,
    )


def command(processes: int, words: Sequence[str]) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "varalign", "--"]
    return [sys.executable, *(["-m", "varalign"] if processes == 1 else launcher), *words]


def varalign(place: Path, processes: int, words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        command(processes, words.split()),
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    if found.returncode:
        raise RuntimeError(f"{words}: {found.stderr[-2000:]}")
    return found


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def curve(one: Path, other: Path) -> float:
    """Largest difference of a step's losses and weights, and of an evaluation's figures."""
    pairs = list(zip(lines(one), lines(other), strict=True))
    names = [name for name in pairs[1][0] if isinstance(pairs[1][0][name], float)]
    left = {"seconds", "data_wait"}
    return max(abs(a[name] - b[name]) for a, b in pairs for name in names if name in a and name not in left)


def weights(one: Path, other: Path) -> float:
    """Norm of the difference of all weights at the end, relative to that of the weights."""
    a, b = (load_file(run / "checkpoints" / "last" / "tensors.safetensors") for run in (one, other))
    names = [name for name in a if name.startswith("model.") and a[name].dtype.kind == "f"]
    apart = sum(float(np.square(a[name] - b[name], dtype=np.float64).sum()) for name in names)
    return (apart / sum(float(np.square(a[name], dtype=np.float64).sum()) for name in names)) ** 0.5


def row(subject: str, what: str, value: float, allowed: float) -> Row:
    return single(
        subject, f"{what} (allowed {allowed:g})", value, "difference", agrees=value <= allowed, packages=PACKAGES
    )


def trained(place: Path, worlds: Sequence[int]) -> Iterator[Sequence[Row]]:
    for name, words, allowed in (
        ("heads on features, four members, dropout and noise", f"--features f.safetensors {FEATURES}", 1e-5),
        ("ResNet-18 + LSTM at a rate of 1e-6", f"{IMAGES} --lr 1e-6", 1e-4),
    ):
        kind = "f" if "features" in name else "i"
        varalign(place, 1, f"train {words} --out {kind}1 --cache c1")
        for size in worlds:
            varalign(place, size, f"train {words} --out {kind}{size} --cache c{size}")
            one, other = place / f"{kind}1", place / f"{kind}{size}"
            yield [
                row(f"{name}, {size} processes", "losses, schedule weights, evaluations", curve(one, other), allowed),
                row(f"{name}, {size} processes", "final weights, relative", weights(one, other), allowed),
            ]
    varalign(place, 1, f"train {IMAGES} --out usual1 --cache c1")
    varalign(place, 1, f"train {IMAGES} --out threads --cache c1", OMP_NUM_THREADS="2")
    varalign(place, 2, f"train {IMAGES} --out usual2 --cache c2")
    rounding = curve(place / "usual1", place / "threads")
    yield [
        single("ResNet-18 + LSTM at the usual rate", "one process on two threads", rounding, "difference"),
        row(
            "ResNet-18 + LSTM at the usual rate",
            "two processes",
            curve(place / "usual1", place / "usual2"),
            3 * rounding,
        ),
    ]


def used(place: Path) -> Iterator[Sequence[Row]]:
    """What commands give of one model, on one process and on two."""
    found: dict[int, Any] = {}
    for size in (1, 2):
        figures = json.loads(varalign(place, size, "eval i1 --json").stdout)
        varalign(place, size, f"embed i1 --out e{size}.safetensors")
        varalign(place, size, f"diagnose f1 --out d{size}")
        found[size] = (
            figures,
            load_file(place / f"e{size}.safetensors"),
            (place / f"d{size}" / "pairs.csv").read_bytes(),
        )
    (a, x, wrong), (b, y, again) = found[1], found[2]
    figures = max(abs(a[name] - b[name]) for name in a if isinstance(a[name], float))
    embeddings = max(float(np.abs(x[name] - y[name]).max()) for name in x)
    yield [
        row("one model on two processes", "eval", figures, 1e-6),
        row("one model on two processes", "embed", embeddings, 1e-6),
        row("one model on two processes", "diagnose, table of wrong pairs", float(wrong != again), 0.0),
    ]


def killed(place: Path, size: int, goes_on: int) -> Iterator[Sequence[Row]]:
    """SIGKILL of the last rank in the middle; then `--resume` on another number of processes."""
    words = f"train --features f.safetensors {FEATURES} --out k{size} --cache c{size}".split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(size, words), cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    run, victim = place / f"k{size}", None
    while process.poll() is None and victim is None:
        time.sleep(0.2)
        if (run / "metrics.jsonl").is_file() and len((run / "metrics.jsonl").read_text().splitlines()) > 20:
            victim = rank_of(size - 1, process.pid)
    begin = time.perf_counter()
    if victim is not None:
        os.kill(victim, signal.SIGKILL)
    process.communicate(timeout=120)
    seconds = time.perf_counter() - begin
    varalign(place, goes_on, f"train --resume k{size}")
    what = f"SIGKILL of one of {size} processes"
    yield [
        single(what, "all ended after", seconds, "s", agrees=victim is not None and seconds < 60),
        row(what, f"resumed on {goes_on}, beside one process", curve(place / "f1", run), 1e-5),
    ]


def rank_of(rank: int, launcher: int) -> int | None:
    """The process of a rank among the launcher's children."""
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1]) if entry.name.isdigit() else -1
            if parent == launcher and f"RANK={rank}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                return int(entry.name)
        except (OSError, ValueError):
            continue
    return None


def subjects(options: argparse.Namespace) -> Iterator[Sequence[Row]]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        made_features(place / "f.safetensors")
        subprocess.run([sys.executable, "-m", "varalign", "data", "sample", "data/sample"], cwd=place, check=True)
        yield from trained(place, options.worlds)
        yield from used(place)
        yield from killed(place, 2, 1)
        yield from killed(place, 4, 2)
        yield from constants(place)


MEASURE = """
import os, sys, time, torch, torch.distributed as dist
from varalign.losses.contrastive import ContrastiveLoss
torch.set_num_threads(1)
dist.init_process_group("gloo")
texts = torch.nn.functional.normalize(torch.randn(4096, 512), dim=1)
parts = [torch.empty_like(texts) for _ in range(dist.get_world_size())]
def least(call):
    call()
    times = []
    for _ in range(5):
        dist.barrier(); begin = time.perf_counter(); call(); times.append(time.perf_counter() - begin)
    return min(times)
gather = least(lambda: dist.all_gather(parts, texts))
def step():
    images, words = texts.clone().requires_grad_(), texts.clone().requires_grad_()
    ContrastiveLoss()(images, words, 20.0).loss.backward()
loss = least(step)
if dist.get_rank() == 0:
    sent = 4 * texts.numel() * (len(parts) - 1)
    print(sent / gather / 1e9, 4 * 2 * 4096**2 * 512 / loss / 1e9)
"""


def constants(place: Path) -> Iterator[Sequence[Row]]:
    """What decides where communication passes arithmetic: the rate of the gather, and of the loss's products."""
    script = place / "measure.py"
    script.write_text(MEASURE)
    launched = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    said = subprocess.run(
        launched, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    gather, loss = map(float, said.stdout.split()[-2:])
    yield [
        single("constants of two processes", "gather of 4,096 x 512 texts", gather, "GB/s", packages=PACKAGES),
        single("constants of two processes", "loss of 4,096 pairs, forward and backward", loss, "GFLOP/s"),
        single("constants of two processes", "images a process at which both take as long", loss / gather, "images"),
    ]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 4], help="numbers of processes (default 2 4)")


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
