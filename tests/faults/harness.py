"""Small data, runs in forked processes, and the comparison of what they leave: what every fault shares.

The process that forks has imported everything and started no thread, so that a run costs its work and not its imports.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLOCKS = {"seconds", "data_wait"}
CALLS = ("open", "write", "fsync", "close", "replace", "rename", "mkdir", "symlink", "unlink", "rmdir")


@dataclass(frozen=True)
class Job:
    """A run to be disturbed: its name, the words of `varalign train` but for `--out`, and how many steps, evaluations
    and saves it has at the least."""

    name: str
    words: tuple[str, ...]
    calls: int = 3

    def train(self, out: Path) -> list[str]:
        """The command that begins it."""
        return ["train", *self.words, "--out", str(out), "--json"]


def frozen_job(folder: Path) -> Job:
    """Heads over a features file of 96 images: 3 steps an epoch, a few milliseconds each."""
    import numpy as np
    from varalign.data.features import FeatureSet, save_features

    random = np.random.default_rng(5)
    common, owner = random.normal(size=(96, 6)), np.repeat(np.arange(96), 2)
    features = FeatureSet(
        (common @ random.normal(size=(6, 12))).astype(np.float32),
        (common[owner] @ random.normal(size=(6, 10)) + 3 * random.normal(size=(192, 10))).astype(np.float32),
        owner,
        np.repeat([0, 1, 2], [64, 16, 16]).astype(np.int8),
        np.arange(96),
    )
    path = folder / "features.safetensors"
    save_features(path, features, dtype="float32")
    words = f"--features {path} --embedding-dim 16 --hidden-dim 16 --batch-size 20 --epochs 4 --device cpu"
    return Job("frozen features", (*words.split(), "--dropout", "0.3", "--checkpoint-every", "2"))


def scratch_job(folder: Path) -> Job:
    """ResNet-18 and LSTM over 36 pictures of 32 pixels: 2 steps an epoch."""
    import numpy as np
    from PIL import Image

    data = folder / "pictures"
    (data / "Images").mkdir(parents=True)
    random = np.random.default_rng(2)
    lines, names = ["image,caption"], []
    for number in range(36):
        colour = random.integers(0, 256, 3)
        pixels = np.clip(colour + random.integers(-30, 30, (40, 48, 3)), 0, 255).astype(np.uint8)
        names.append(f"{number:02}.jpg")
        Image.fromarray(pixels).save(data / "Images" / names[-1])
        words = [("dark", "bright")[int(level > 127)] for level in colour]
        lines += [f"{names[-1]},a {words[0]} red and {words[1]} green one", f"{names[-1]},{words[2]} blue noise"]
    (data / "captions.txt").write_text("\n".join(lines) + "\n")
    for split, part in (("train", names[:24]), ("dev", names[24:30]), ("test", names[30:])):
        (data / f"Flickr_8k.{split}Images.txt").write_text("\n".join(part) + "\n")
    words_ = f"--data {data} --image-size 32 --embedding-dim 16 --batch-size 12 --epochs 1 --threads 2 --device cpu"
    return Job("from scratch", (*words_.split(), "--keep", "1", "--checkpoint-every", "1"), calls=2)


def warm() -> None:
    """Import and load, once and for all, what a run imports and loads on its way; no thread may start here."""
    import tempfile

    import torch
    import varalign.cli
    import varalign.training.run  # noqa: F401
    from varalign.pictures.plots import draw_training

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # which imports torch's compiler
    with tempfile.TemporaryDirectory() as folder:
        draw_training([{"kind": "step", "step": 1, "loss_i2t": 1.0}], Path(folder) / "a.png")


def start(words: list[str], log: Path, before: Callable[[], None] | None = None) -> int:
    """Run `varalign WORDS` in a forked process, its output into `log`; returns its number."""
    from varalign.cli import main

    process = os.fork()
    if process:
        return process
    code = 99
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        if before is not None:
            before()
        code = main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process: int) -> int:
    """The exit code of a process of `start`; minus the signal where one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(words: list[str], log: Path, before: Callable[[], None] | None = None) -> int:
    """`start` and `wait`."""
    return wait(start(words, log, before))


def finish(job: Job, out: Path, log: Path) -> int:
    """Go on with a run that was stopped, as a person would: resume it, or begin where nothing is there to resume."""
    begun = (out / "config.json").exists()
    return run(["train", "--resume", str(out), "--json"] if begun else job.train(out), log)


def result(out: Path) -> dict[str, Any]:
    """All that must be the same: metrics without the clock, and every tensor and value of both checkpoints."""
    from varalign.runs.checkpoint import load_checkpoint
    from varalign.runs.folder import RunFolder

    folder = RunFolder.open(out)
    lines = [{k: v for k, v in line.items() if k not in CLOCKS} for line in folder.read_metrics()]
    found: dict[str, Any] = {"metrics": json.dumps(lines)}
    for name in ("last", "best"):
        checkpoint = load_checkpoint(folder.checkpoints / name)
        found |= {f"{name}/{key}": tensor.numpy().tobytes() for key, tensor in checkpoint.tensors.items()}
        found[f"{name}/progress"] = checkpoint.state["progress"]
    found["page"] = (out / "report.html").is_file()
    return found


def differences(ours: Path, whole: dict[str, Any]) -> list[str]:
    """Names of what is not bit for bit as in the whole run."""
    try:
        found = result(ours)
    except (ValueError, OSError) as error:
        return [str(error)]
    return [name for name in sorted(found.keys() | whole.keys()) if found.get(name) != whole.get(name)]


class FileCalls:
    """Stands between the program and `os`: `hook(number, name, path)` comes before each call below `root`.

    The hook may raise (the call then fails) or end the process. `half` calls write only half of their bytes first.
    """

    def __init__(self, root: Path, hook: Callable[[int, str, str], None]) -> None:
        self.root, self.hook, self.count = str(root), hook, 0
        self.half_at = -1
        self._paths: dict[int, str] = {}
        self._plain = {name: getattr(os, name) for name in CALLS}

    def install(self) -> None:
        """Put the wrappers in; they stay for the life of the (forked) process."""
        for name in CALLS:
            setattr(os, name, self._wrapper(name))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, calls go through unseen."""
        shims = {name: getattr(os, name) for name in CALLS}
        for name, plain in self._plain.items():
            setattr(os, name, plain)
        try:
            yield
        finally:
            for name, shim in shims.items():
                setattr(os, name, shim)

    def _wrapper(self, name: str) -> Callable[..., Any]:
        plain = self._plain[name]

        def call(*arguments: Any, **options: Any) -> Any:
            target = arguments[0]
            path = self._paths.get(target, "") if isinstance(target, int) else os.fsdecode(target)
            inner = options.get("dir_fd")  # shutil.rmtree names files within an open folder
            if inner is not None:
                path = f"{self._paths.get(inner, '')}/{path}"
            if name == "symlink":
                path = os.fsdecode(arguments[1])
            if not path.startswith(self.root):
                return plain(*arguments, **options)
            if name == "write" and self.half_at == self.count:
                plain(target, bytes(arguments[1])[: len(arguments[1]) // 2])
            number, self.count = self.count, self.count + 1
            if name == "close":  # the system closes the file whatever it says
                plain(target)
                self._paths.pop(target, None)
                self.hook(number, name, path)
                return None
            self.hook(number, name, path)
            found = plain(*arguments, **options)
            if name == "open":
                self._paths[found] = path
            return found

        return call


def clock() -> float:
    """Seconds, the same in every process."""
    return time.monotonic()
