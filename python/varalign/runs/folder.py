"""The run folder: where a run's configuration, metrics, checkpoints and pictures lie. Torch-free.

`config.json`, `metrics.jsonl`, `checkpoints/step-N/` with `best` and `last`, the tokenizer in `assets/`, `pictures/`.
Every file is written to a temporary name, synced and renamed, so that a reader sees the old one or the new one.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from varalign.data.errors import DataError
from varalign.data.files import AppendedFile, write_atomically
from varalign.options.fields import OPTIONS
from varalign.options.layers import replace_removed

RUN_KIND = "varalign-run"


class RunError(DataError):
    """A run folder that is not one, is damaged, or is in use; the message names the path and the mend."""


class RunFailed(RuntimeError):
    """A run that started and cannot go on; the message says why and what to do. The program leaves with code 1."""

    exit_code = 1


def to_stderr(text: str) -> None:
    """Print a remark on standard error."""
    print(text, file=sys.stderr, flush=True)


def json_text(value: Any, **options: Any) -> str:
    """JSON of a value; numbers that are not finite become null, since JSON has none."""

    def plain(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: plain(inner) for key, inner in part.items()}
        if isinstance(part, (list, tuple)):
            return [plain(inner) for inner in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(plain(value), allow_nan=False, **options)


def write_json(path: Path, value: Any) -> None:
    """`write_atomically` of a JSON value, indented."""
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


class RunFolder:
    """One run on disk.

    Args:
        path: the folder; use `create` for a new run and `open` for one that is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def check_new(cls, path: Path) -> None:
        """Whether a new run may be written to `path`, before any time is spent.

        Raises:
            RunError: the path is a file, holds a run already, or holds anything else.
        """
        if path.is_file():
            raise RunError(f"--out {path}: is a file; name a folder")
        if (path / "config.json").exists():
            raise RunError(
                f"--out {path}: holds a run already; go on with it by `--resume {path}` or name another folder"
            )
        if path.is_dir() and not cls._unfinished(path):
            raise RunError(f"--out {path}: is not empty and holds no run; name a new folder")

    @staticmethod
    def _unfinished(path: Path) -> bool:
        """Whether a folder is empty, or holds what a start leaves that was killed before `config.json` was there."""
        names = set(os.listdir(path)) - {".lock"}
        ours = (path / ".lock").exists() and all(name == "assets" or name.endswith(".tmp") for name in names)
        return ours or not names

    @classmethod
    def create(cls, path: Path | None) -> RunFolder:
        """A folder for a new run; `runs/<date>-<time>` if none is named.

        Raises:
            RunError: see `check_new`.
        """
        if path is None:
            stem = time.strftime("%Y%m%d-%H%M%S")
            path = Path("runs") / stem
            counter = 2
            while path.exists():
                path = Path("runs") / f"{stem}-{counter}"
                counter += 1
        cls.check_new(path)
        path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A run that is there.

        Raises:
            RunError: no such folder, or a folder of another program.
        """
        if not path.is_dir():
            raise RunError(f"{path}: no such run folder")
        run = cls(path)
        if run.config().get("kind") != RUN_KIND:
            raise RunError(f"{path}: its config.json is of another program, not a varalign run")
        return run

    @classmethod
    def newest(cls, root: Path = Path("runs")) -> RunFolder:
        """The run under `root` that was started last.

        Raises:
            RunError: there is none.
        """
        found = root.iterdir() if root.is_dir() else ()
        runs = [path for path in found if (path / "config.json").is_file() and (path / "checkpoints").is_dir()]
        if not runs:
            raise RunError(f"no run under {root}/: name a run folder, or train one with `varalign train`")
        return cls.open(max(runs, key=lambda path: ((path / "config.json").stat().st_mtime_ns, path.name)))

    def config(self) -> dict[str, Any]:
        """The content of `config.json`.

        Raises:
            RunError: missing, or not JSON.
        """
        path = self.path / "config.json"
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise RunError(f"{self.path}: not a varalign run, there is no config.json in it") from None
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path}: cannot be read as JSON: {error}") from None
        if not isinstance(value, dict):
            raise RunError(f"{path}: wanted a JSON object, found {type(value).__name__}")
        return value

    def options(self, say: Callable[[str], object] | None = None) -> dict[str, Any]:
        """The run's options: those that this version knows, a removed value replaced by what took its place.

        Raises:
            RunError: there are none.
        """
        options = self.config().get("options")
        if not isinstance(options, dict):
            raise RunError(f"{self.path / 'config.json'}: damaged, it holds no options")
        return replace_removed({name: value for name, value in options.items() if name in OPTIONS}, say)

    def write_config(self, value: dict[str, Any]) -> None:
        """Write `config.json`."""
        write_json(self.path / "config.json", {"kind": RUN_KIND, **value})

    @property
    def assets(self) -> Path:
        """Tokenizer and encoder files."""
        return self.path / "assets"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def pairs(self) -> Path:
        """Table of the training pairs and their weights."""
        return self.path / "pairs.csv"

    @property
    def pictures(self) -> Path:
        """Folder of pictures."""
        return self.path / "pictures"

    @property
    def metrics(self) -> Path:
        """The metrics file."""
        return self.path / "metrics.jsonl"

    @property
    def quarantine(self) -> Path:
        """The images that could not be read."""
        return self.path / "quarantine.jsonl"

    @property
    def dumps(self) -> Path:
        """Steps that were not finite, kept to be run again."""
        return self.path / "dumps"

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; a last line cut short by a crash is left out.

        Raises:
            RunError: a line before the last one is no JSON object.
        """
        return list(read_metric_lines(self.metrics))

    def cut_metrics(self, step: int, *, evaluations: bool = True) -> None:
        """Drop the lines after `step`, before a resumed run writes them again; its own evaluation too unless kept."""
        if not self.metrics.exists():
            return
        before = [line for line in self.read_metrics() if line["step"] <= step]
        kept = [line for line in before if evaluations or line["step"] < step or line.get("kind") != "eval"]
        write_atomically(self.metrics, b"".join(_encode(line) for line in kept))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; a lock whose process died is free by itself.

        Raises:
            RunError: another process holds it, named by its number.
        """
        try:
            import fcntl
        except ImportError:  # no advisory locks on this system
            yield
            return
        path = self.path / ".lock"
        with open(path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise RunError(f"{self.path}: in use by process {holder}; wait for it or name another --out") from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            for left in self.path.glob(".*.tmp"):  # by a process that died while it wrote
                left.unlink(missing_ok=True)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)


def read_metric_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file, one dictionary each; an unfinished last line is left out.

    Raises:
        RunError: naming the line that is no JSON object with a step.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            value = json.loads(line)
            if not isinstance(value, dict) or not isinstance(value.get("step"), int):
                raise ValueError("no object with a step")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                return
            raise RunError(f"{path} line {number}: {error}") from None
        yield value


class MetricsLog:
    """Appends lines to `metrics.jsonl`.

    Values that are not finite become null: the file stays valid JSON.
    """

    def __init__(self, path: Path) -> None:
        self._file = AppendedFile(path)

    def write(self, lines: Iterable[dict[str, Any]]) -> None:
        """Append lines and hand them to the system at once."""
        self._file.write(b"".join(_encode(line) for line in lines))

    def sync(self) -> None:
        """Make what was written durable; called before a checkpoint that relies on it."""
        self._file.sync()

    def reopen(self) -> None:
        """Go on with the file that now has the name, after `cut_metrics`."""
        self._file.close()
        self._file = AppendedFile(self._file.path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _encode(line: dict[str, Any]) -> bytes:
    return (json_text(line) + "\n").encode()
