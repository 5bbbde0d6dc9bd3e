"""A disk that refuses, at every single call of a run, and checkpoints that were damaged."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commands import make_commands, prepare, wrong
from harness import FileCalls, Job, differences, result, run

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)
Kept = dict[str, "bytes | str | None"]  # what lies in a folder: files, links, folders


def refuse(job: Job, folder: Path) -> dict[str, Any]:
    """Let one call fail, for every file call of a run and every error; the run forks there, so each costs little."""
    folder.mkdir()
    out, report = folder / "run", folder / "report"
    whole_at = folder / "whole"
    assert run(job.train(whole_at), folder / "log") == 0, (folder / "log").read_text()
    whole = result(whole_at)
    before = _forking(out, report, folder / "child.log", lambda *ended: _verdict(*ended, out, whole))
    code = run(job.train(out), folder / "log", before)
    assert code == 0, (folder / "log").read_text()
    rows = [line.split("\t") for line in report.read_text().splitlines()]
    found = Counter(row[0] for row in rows)
    in_saves = sum(row[1] == "save" for row in rows)
    return {
        "path": job.name,
        "calls": len(rows) // len(ERRORS),
        "errors a call": len(ERRORS),
        "within a save": in_saves // len(ERRORS),
        "by call": dict(Counter(row[2] for row in rows[:: len(ERRORS)])),
        "stopped, naming the path, checkpoint whole": found["stopped"],
        "went on to the right end": found["went on"],
        "failures": [" ".join(row) for row in rows if row[0] == "wrong"][:8],
    }


def refuse_commands(folder: Path) -> dict[str, Any]:
    """The same for every command that writes: a named error and nothing half-written, or done without that file."""
    folder.mkdir()
    found, failures, calls = Counter[str](), [], 0
    listed = make_commands(folder)
    for command in listed:
        out, report = prepare(command, folder), folder / "report"
        report.write_text("")

        def verdict(code: int, said: str, kept: Kept, out: Path = out) -> tuple[str, str]:
            fault = wrong(code, said, out)
            return ("wrong", fault) if fault else ("stopped" if code else "went on", "")

        before = _forking(out, report, folder / "child.log", verdict)
        code = run(command.argv(out), folder / "log", before)
        assert code == 0, (command.name, (folder / "log").read_text())
        rows = [line.split("\t") for line in report.read_text().splitlines()]
        calls += len(rows) // len(ERRORS)
        found.update(row[0] for row in rows)
        failures += [f"{command.name}: {' '.join(row)}" for row in rows if row[0] == "wrong"][:3]
    return {
        "commands": len(listed),
        "calls": calls,
        "errors a call": len(ERRORS),
        "stopped, naming the path, nothing half-written": found["stopped"],
        "went on without that file": found["went on"],
        "failures": failures,
    }


def _forking(
    out: Path, report: Path, log: Path, verdict: Callable[[int, str, Kept], tuple[str, str]]
) -> Callable[[], None]:
    """In a forked process: before each file call, a child for each error, in which this one call fails."""

    def before() -> None:
        from varalign.training.state import Saver

        saving: list[int] = []
        refused: list[int] = []
        plain_save = Saver.save

        def save(self: Saver, *arguments: Any) -> None:
            saving.append(1)
            try:
                plain_save(self, *arguments)
            finally:
                saving.pop()

        def hook(_: int, name: str, path: str) -> None:
            if refused:  # a child, which has had its error
                return
            for number in ERRORS:
                with calls.paused():
                    kept = _contents(out)
                    if out.exists():
                        log.with_name("begun").touch()
                    _link(out, kept, log.parent / "kept")
                    child = os.fork()
                    if child:
                        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                        kind, detail = verdict(code, log.read_text(), kept)
                        row = [kind, "save" if saving else "run", name, path.removeprefix(str(out)), str(number)]
                        with open(report, "a") as file:
                            file.write("\t".join([*row, detail]) + "\n")
                        _restore(out, kept, log.parent / "kept")
                        continue
                    _redirect(log)
                refused.append(number)
                # The system names the path, but not where the call has only the number of an open file.
                named = [] if name in {"write", "fsync", "close"} else [path]
                raise OSError(number, os.strerror(number), *named)

        calls = FileCalls(out, hook)
        calls.install()
        Saver.save = save  # type: ignore[method-assign]

    return before


def _redirect(log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


def _verdict(code: int, said: str, kept: Kept, out: Path, whole: dict[str, Any]) -> tuple[str, str]:
    from varalign.runs.checkpoint import CheckpointError, load_checkpoint, newest_checkpoint

    if code == 0:  # what failed was not needed; then the end must be the right one
        wrong = differences(out, whole)
        return ("wrong", f"silent: {wrong[:3]}") if wrong else ("went on", "")
    if code not in {1, 2} or str(out) not in said or "Traceback" in said:
        return "wrong", f"code {code}: {said[-200:]!r}"
    had = any(name.endswith("/state.json") and "/.step" not in name for name in kept)
    damaged: list[str] = []
    try:
        found = newest_checkpoint(out / "checkpoints", damaged.append)
        if had and (found is None or damaged):
            return "wrong", f"checkpoint lost: {damaged}"
        if (out / "checkpoints" / "last").is_symlink():
            load_checkpoint(out / "checkpoints" / "last")
    except CheckpointError as error:
        return "wrong", f"checkpoint damaged: {error}"
    return "stopped", ""


def _contents(root: Path) -> Kept:
    """Files with their bytes, links with their targets, folders; nothing where there is no such folder."""
    found: Kept = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


def _link(root: Path, kept: Kept, keep: Path) -> None:
    """Give every file a second name, so that it is there itself again, and not a copy, where the run has it open."""
    shutil.rmtree(keep, ignore_errors=True)
    keep.mkdir()
    for number, (name, value) in enumerate(kept.items()):
        if isinstance(value, bytes):
            os.link(root / name, keep / str(number))


def _restore(root: Path, kept: Kept, keep: Path) -> None:
    """Bring a folder back; what is still there stays the same file or folder, as the run may have it open."""
    for name in sorted(_contents(root).keys() - kept.keys(), reverse=True):
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if keep.with_name("begun").exists():
        root.mkdir(exist_ok=True)
    elif root.exists():
        root.rmdir()
    for number, (name, value) in enumerate(kept.items()):
        path, twin = root / name, keep / str(number)
        if value is None:
            path.mkdir(exist_ok=True)
        elif isinstance(value, str):
            path.unlink(missing_ok=True)
            path.symlink_to(value)
        else:
            if not (path.exists() and path.samefile(twin)):
                path.unlink(missing_ok=True)
                os.link(twin, path)
            if path.read_bytes() != value:
                with open(path, "r+b") as file:
                    file.write(value)
                    file.truncate()


def damage(job: Job, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Cut the newest checkpoint short or flip a bit of it, at many places: refused each time, the one before taken."""
    from varalign.runs.checkpoint import newest_checkpoint, step_folders

    folder.mkdir()
    out = folder / "run"
    assert run(job.train(out), folder / "log") == 0, (folder / "log").read_text()
    steps = step_folders(out / "checkpoints")
    (before, _), (_, newest) = steps[-2:]
    draw = random.Random(seed)
    clean, failures = 0, []
    for number in range(count):
        file = newest / ("tensors.safetensors", "state.json")[number % 4 == 0]
        whole = file.read_bytes()
        at = draw.randrange(len(whole))
        cut = number % 3 == 0
        flipped = bytes([whole[at] ^ 1 << draw.randrange(8)])
        file.write_bytes(whole[:at] if cut else whole[:at] + flipped + whole[at + 1 :])
        said: list[str] = []
        try:
            found = newest_checkpoint(out / "checkpoints", said.append)
            right = found is not None and found.state["step"] == before and len(said) == 1 and str(newest) in said[0]
        except Exception as error:
            right, said = False, [repr(error)]
        clean += right
        if not right:
            failures.append(f"{file.name} {'cut' if cut else 'flipped'} at {at}: {said}")
        file.write_bytes(whole)
    return {"damaged": count, "refused, the one before taken": clean, "failures": failures[:5]}
