"""SIGKILL at the file calls of commands that write several files.

The command run again gives the same files, and what a kill leaves is never old files beside new ones.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commands import Command, damaged, make_commands, prepare
from harness import FileCalls, run

NEW = {
    "embed": "embed {features} --out {out}/new/e.npz",
    "embed features": "embed {images} --features --out {out}/new/e.safetensors",
    "visualize": "visualize {features} --perplexities 5 --pairs 12 --out {out}/new",
    "diagnose": "diagnose {features} --out {out}/new",
}
"""Commands; all that they write is in `{out}/new`."""
OLD = {
    "embed": "embed {features} --split test --out {out}/new/e.npz",
    "embed features": "embed {images} --out {out}/new/e.safetensors",
    "visualize": "visualize {features} --perplexities 5 --pairs 12 --seed 1 --out {out}/new",
    "diagnose": "diagnose {features} --seed 3 --split all --worst 1 --out {out}/new",
}
"""What made the files that the commands replace with `--overwrite`."""


def kill_and_rerun(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill each command at `count` of its file calls (all, where it has fewer), into a new place and over old files."""
    folder.mkdir()
    make_commands(folder)
    draw = random.Random(seed)
    kills, failures = 0, []
    for name, line in NEW.items():
        new, old = (Command(name, tuple(words.split())) for words in (line, OLD[name]))
        wanted = _made(new, folder)
        before = _made(old, folder)
        for replaces in (False, True):
            more = ["--overwrite"] if replaces else []
            out = _place(new, old if replaces else None, folder)
            number = folder / "calls"
            assert run([*new.argv(out), *more], folder / "log", _counting(out / "new", number)) == 0
            calls = range(int(number.read_text()))
            for at in sorted(draw.sample(calls, min(count, len(calls)))):
                out = _place(new, old if replaces else None, folder)
                code = run([*new.argv(out), *more], folder / "log", _killing(out / "new", at))
                left = _files(out / "new")
                fault = "" if code == -signal.SIGKILL else f"exit code {code}"
                fault = fault or _mixed(left, wanted, before if replaces else {})
                fault = fault or ", ".join(damaged(out / "new"))
                again = [] if not left or any("unfinished" in file for file in left) else ["--overwrite"]  # whole
                code = run([*new.argv(out), *again], folder / "log")
                if code or _files(out / "new") != wanted:
                    fault = fault or f"run again: exit code {code}, {(folder / 'log').read_text()[-200:]}"
                kills += 1
                if fault:
                    failures.append(f"{name}{', over old files' if replaces else ''}, call {at}: {fault}")
    return {"commands": len(NEW), "kills": kills, "failures": failures[:8]}


def _place(command: Command, old: Command | None, folder: Path) -> Path:
    """An empty folder for the command, with the files of an old one in it."""
    out = prepare(command, folder)
    if old is not None:
        shutil.copytree(folder / f"old {old.name}", out / "new")
    return out


def _made(command: Command, folder: Path) -> dict[str, bytes]:
    """The files that a command makes undisturbed; they are kept for `_place`."""
    out = prepare(command, folder)
    assert run(command.argv(out), folder / "log") == 0, (command.name, (folder / "log").read_text())
    kept = folder / f"old {command.name}"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(out / "new", kept)
    return _files(out / "new")


def _files(folder: Path) -> dict[str, bytes]:
    """Names and bytes, without hidden files: what a killed process was writing has such a name."""
    return {
        path.name: path.read_bytes() for path in folder.glob("*") if path.is_file() and not path.name.startswith(".")
    }


def _mixed(left: dict[str, bytes], new: dict[str, bytes], old: dict[str, bytes]) -> str:
    """What is wrong with what a kill left: a file of neither, or of both at once; and a part without a marker."""
    files = {name: data for name, data in left.items() if "unfinished" not in name}
    if any(data not in (new.get(name), old.get(name)) for name, data in files.items()):
        return "a file that is neither the old nor the new one"
    of_new, of_old = ({name for name, data in files.items() if kind.get(name) == data} for kind in (new, old))
    if of_new - of_old and of_old - of_new:
        return f"old and new files together: {sorted(files)}"
    if len(files) == len(left) and files not in (new, old, {}):
        return f"a part without a marker: {sorted(files)}"
    return ""


def _counting(root: Path, number: Path) -> Callable[[], None]:
    def before() -> None:
        seen = [0]

        def hook(*_: object) -> None:
            seen[0] += 1
            with calls.paused():
                number.write_text(str(seen[0]))

        calls = FileCalls(root, hook)
        calls.install()

    return before


def _killing(root: Path, at: int) -> Callable[[], None]:
    def before() -> None:
        def hook(number: int, *_: object) -> None:
            if number == at:
                os.kill(os.getpid(), signal.SIGKILL)

        calls = FileCalls(root, hook)
        calls.half_at = at
        calls.install()

    return before
