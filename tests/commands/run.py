"""Runs command lines of the program, each in a forked process, in a folder with small data, weights and a trained run.

    python run.py FOLDER < commands.json > results.json

`commands.json` is a list of lists of words, of ["exec", CODE] for Python code, or of ["signals", OUTPUT, WORDS…]: that
command is sent SIGINT or SIGTERM at some of its file calls. `results.json` has [exit code, standard output, standard
error] of each, and for signals a list of [signal, exit code, standard error, unfinished files]. The process that forks
has imported everything and started no thread, so that a command costs its work and not its imports.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
RUN = "runs/20260101-120000"


def build(place: Path) -> None:
    """What the commands of the pages name: `data/flickr8k`, tables, features, weights, a run, an interrupted run."""
    import numpy as np
    from PIL import Image
    from torch import save, zeros
    from varalign.data.features import FeatureSet, save_features

    sys.path.insert(0, str(TESTS))
    from checkpoints import write_bert, write_clip

    folder = place / "data" / "flickr8k"
    (folder / "Images").mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [f"{number}.jpg" for number in range(52)]
    lines = ["image,caption"]
    for name in names:
        colour = random.integers(0, 256, 3)
        pixels = np.clip(colour + random.integers(-30, 30, (40, 48, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "Images" / name)
        words = [("dark", "bright")[int(level > 127)] for level in colour]
        lines += [f"{name},a {words[0]} red and {words[1]} green one", f"{name},two dogs in {words[2]} snow"]
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")
    for split, part in (("train", names[:20]), ("dev", names[20:26]), ("test", names[26:])):
        (folder / f"Flickr_8k.{split}Images.txt").write_text("\n".join(part) + "\n")
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(pixels).save(place / name)
    (place / "PICTURES").mkdir()
    for number in range(3):
        noise = random.integers(0, 256, (40, 48, 3)).astype(np.uint8)
        Image.fromarray(noise).save(place / "PICTURES" / f"{number}.png")
    (place / "TEXTS.txt").write_text("a bright red dog\ntwo green ones\nsnow\n")
    (place / "MARKED.csv").write_text("image,caption,exclude\n" + "".join(f"{line},x\n" for line in lines[1:4]))
    write_clip(place / "clip")
    write_bert(place / "bert")
    save({"weight": zeros(2, 3)}, place / "weights.pt")
    (place / "bench").symlink_to(TESTS.parent / "bench")
    owner, common = np.repeat(np.arange(96), 2), random.normal(size=(96, 6))
    features = FeatureSet(
        (common @ random.normal(size=(6, 12))).astype(np.float32),
        (common[owner] @ random.normal(size=(6, 10)) + random.normal(size=(192, 10))).astype(np.float32),
        owner,
        np.repeat([0, 1, 2], [64, 16, 16]).astype(np.int8),
        np.arange(96),
    )
    save_features(place / "features.safetensors", features, dtype="float32")
    line = (
        f"train --data {folder} --image-size 32 --embedding-dim 16 --epochs 1 --batch-size 10 --threads 1 --out {RUN}"
    )
    code, said, error = run(line.split(), place)
    assert code == 0, (said, error)
    shutil.copytree(place / RUN, place / "interrupted", ignore=shutil.ignore_patterns("step-*", "last", "best"))


def warm() -> None:
    """Import what the commands import, so that a forked process need not; no thread may start here."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import varalign
    from torch import nn, optim, set_num_threads

    for module in pkgutil.walk_packages(varalign.__path__, "varalign."):
        if not module.name.startswith(("varalign.kernels", "varalign.__main__")):
            importlib.import_module(module.name)
    set_num_threads(1)
    optim.AdamW([nn.Parameter()])  # which imports torch's compiler


def run(words: list[str], place: Path, before: Callable[[], object] | None = None) -> tuple[int, str, str]:
    """Run `varalign WORDS` in a forked process, in `place`; returns its exit code, output and error output."""
    said, error = place / ".stdout", place / ".stderr"
    process = os.fork()
    if not process:
        code = 99
        try:
            os.chdir(place)
            for number, path in ((1, said), (2, error)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            from varalign.cli import main

            if before is not None:
                before()
            code = exec(words[1], {}) or 0 if words[0] == "exec" else main(words)  # type: ignore[func-returns-value]
        except SystemExit as leave:
            code = int(leave.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code, said.read_text(), error.read_text()


def signalled(words: list[str], output: Path, place: Path) -> list[tuple[int, int, str, list[str]]]:
    """Send a command a signal at its first, last and some other file call; what it then leaves under `output`."""
    sys.path.insert(0, str(TESTS / "faults"))
    from harness import FileCalls

    log = place / ".calls"

    def count(*_: object) -> None:
        with open(log, "ab") as file:  # from any thread
            file.write(b".")

    def counted() -> None:
        FileCalls("", count).install()

    def at(call: int, signal_number: int) -> Callable[[], None]:
        def hook(now: int, *_: str) -> None:
            if now == call:
                log.write_text("sent")
                os.kill(os.getpid(), signal_number)

        return FileCalls("", hook).install

    def clear() -> None:
        for path in place.glob(f"{output.stem}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    for _ in range(2):  # the first run fills caches that the others read
        clear()
        log.write_bytes(b"")
        code, _, error = run(words, place, counted)
        assert code == 0, (words, error)
    last = log.stat().st_size - 1
    found = []
    for number, call in enumerate(sorted({0, last // 3, 2 * last // 3, max(0, last - 1), last})):
        clear()
        signal_number = (signal.SIGINT, signal.SIGTERM)[number % 2]
        log.write_text("")
        code, _, error = run(words, place, at(call, signal_number))
        if not log.read_text():  # this time the command made fewer calls
            continue
        left = [str(path.relative_to(place)) for path in place.rglob("*") if path.name.startswith(f".{output.name}")]
        left += [str(path.relative_to(place)) for path in place.rglob("*.tmp")]
        found.append((int(signal_number), code, error, left))
    clear()
    return found


def main() -> int:
    """Build the folder, run the commands, print the results."""
    place = Path(sys.argv[1])
    commands: list[list[str]] = json.load(sys.stdin)
    (place / "home").mkdir()
    for name in ("HOME", "MPLCONFIGDIR", "HF_HOME", "XDG_CACHE_HOME", "TORCH_HOME"):
        os.environ[name] = str(place / "home")
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    warm()
    build(place)
    results: list[Any] = []
    for words in commands:
        started = time.perf_counter()
        if words[0] == "signals":
            results.append(signalled(words[2:], place / words[1], place))
        else:
            results.append(run(words, place))
        print(f"{time.perf_counter() - started:6.2f} s  {words[:4]}", file=sys.stderr)
    json.dump(results, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
