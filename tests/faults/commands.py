"""The commands that write, each with small inputs: how to call it, where it writes, and how to tell a whole file."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import frozen_job, run, scratch_job

OPEN_ENDED = {"metrics.jsonl", "quarantine.jsonl", ".lock"}  # lines are added to them; a last one may be cut short


@dataclass(frozen=True)
class Command:
    """A command: its name and its words, in which `{out}` is the folder that it writes into and `{features}` or
    `{images}` a run in that folder, over a features file or over images."""

    name: str
    words: tuple[str, ...]

    def argv(self, out: Path) -> list[str]:
        """The command line."""
        return [word.format(out=out, features=out / "features", images=out / "images") for word in self.words]


def make_commands(folder: Path) -> list[Command]:
    """The commands over small inputs made in `folder`, with the runs that some of them work on."""
    import numpy as np
    import torch
    from varalign.data import sample
    from varalign.data.features import load_features

    sample.write_sample.__kwdefaults__["images"] = 12  # the command has no option for it
    job = frozen_job(folder)
    features = Path(job.words[1])
    names = load_features(features)
    (folder / "image_names.txt").write_text("".join(f"{row}.jpg\n" for row in range(len(names.split))))
    pictures = scratch_job(folder).words[1]
    torch.save({"a.weight": torch.randn(9, 9), "b": torch.from_numpy(np.arange(5))}, folder / "weights.pt")
    study = "study --features {} --axis schedule variance --axis fraction 100 --seeds 1 --option epochs 2"
    few = f"--image-size 32 --embedding-dim 8 --batch-size 12 --epochs 1 --device cpu --data {pictures}"
    lines = {
        "train": " ".join(job.train(Path("{out}/new"))),
        "train from images": f"train {few} --decoded-cache disk --cache {{out}}/cache --out {{out}}/new",
        "visualize": "visualize {features} --perplexities 5 --pairs 12",
        "embed npz": "embed {features} --out {out}/e.npz",
        "embed safetensors": "embed {features} --out {out}/e.safetensors",
        "embed features": "embed {images} --features --out {out}/f.safetensors",
        "diagnose": "diagnose {features} --out {out}/diagnosis",
        "data sample": "data sample {out}/sample",
        "convert": f"convert {folder / 'weights.pt'} {{out}}/weights.safetensors",
        "study": study.format(features) + " --workers 1 --out {out}/study",
    }
    for name, words in (("features", job.train(folder / "features")), ("images", f"train {few} --out {folder}/images")):
        words = words.split() if isinstance(words, str) else words
        assert run(words, folder / "log") == 0, (name, (folder / "log").read_text())
    return [Command(name, tuple(line.split())) for name, line in lines.items()]


def prepare(command: Command, folder: Path) -> Path:
    """The empty folder that the command writes into, with a copy of the run that it works on."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for name in ("features", "images"):
        if any(f"{{{name}}}" in word for word in command.words):
            shutil.copytree(folder / name, out / name, symlinks=True)
    return out


def damaged(root: Path) -> list[str]:
    """The files below a folder that are there under their names and not whole."""
    found = []
    for path in sorted(root.rglob("*")):
        inside_temporary = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.is_file() and not inside_temporary and path.name not in OPEN_ENDED and not _whole(path):
            found.append(str(path.relative_to(root)))
    return found


def _whole(path: Path) -> bool:
    data = path.read_bytes()
    kinds: dict[str, Callable[[], Any]] = {
        ".json": lambda: json.loads(data),
        ".npz": lambda: _arrays(data),
        ".safetensors": lambda: _tensors(data),
        ".csv": lambda: data.endswith(b"\n") and len({len(row) for row in csv.reader(io.StringIO(data.decode()))}) == 1,
        ".html": lambda: data.rstrip().endswith(b"</html>"),
        ".png": lambda: data.endswith(b"IEND\xaeB`\x82"),
        ".jpg": lambda: data.endswith(b"\xff\xd9"),
    }
    try:
        return kinds.get(path.suffix, lambda: len(data) > 0)() is not False
    except Exception:
        return False


def _arrays(data: bytes) -> None:
    import numpy as np

    with np.load(io.BytesIO(data)) as file:
        for name in file:
            file[name]


def _tensors(data: bytes) -> None:
    from safetensors.numpy import load

    load(data)


def limit_sizes(size: int) -> Callable[[], None]:
    """In a forked process: no file may grow beyond `size` bytes."""

    def before() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return before


def piped(words: list[str], before: Callable[[], None]) -> tuple[int, str]:
    """Run `varalign WORDS` in a forked process, its output through a pipe, which no limit of file sizes stops."""
    import sys
    import traceback

    from varalign.cli import main

    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            said = file.read().decode(errors="replace")
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said
    code = 99
    try:
        os.close(reader)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        before()
        code = main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wrong(code: int, said: str, out: Path) -> str:
    """What is wrong with how a command ended whose disk refused something; empty where nothing is."""
    last = said.strip().splitlines()[-1] if said.strip() else ""
    if "Traceback" in said or "fault of varalign" in said:
        return f"code {code}, a traceback: {said[-300:]!r}"
    if code not in (0, 1, 2):
        return f"code {code}: {last!r}"
    if code and str(out) not in last:
        return f"code {code}, the path is not named: {last!r}"
    broken = damaged(out)
    return f"code {code}, half-written: {broken[:3]}" if broken else ""


def small_files(folder: Path) -> dict[str, Any]:
    """Run every command under limits of file sizes from nothing to one byte less than its largest file."""
    folder.mkdir()
    commands = make_commands(folder)
    cases, stopped, without, failures = 0, 0, 0, []
    for command in commands:
        out = prepare(command, folder)
        given = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        code, said = piped(command.argv(out), lambda: None)
        assert code == 0, (command.name, said)
        new = [path for path in out.rglob("*") if path.is_file() and path.stat().st_mtime_ns != given.get(path)]
        sizes = sorted({path.stat().st_size for path in new} - {0})
        for limit in sorted({0, 1, sizes[0] - 1, sizes[len(sizes) // 2] - 1, sizes[-1] // 2, sizes[-1] - 1}):
            prepare(command, folder)
            code, said = piped(command.argv(out), limit_sizes(limit))
            cases += 1
            fault = wrong(code, said, out)
            stopped += code != 0
            without += code == 0
            if fault:
                failures.append(f"{command.name}, {limit} bytes: {fault}")
    return {
        "commands": len(commands),
        "cases": cases,
        "stopped with a named error, nothing half-written": stopped,
        "done without a file that was not needed": without,
        "failures": failures,
    }
