"""`metrics.jsonl`: one JSON object for each step, evaluation and rollback of a run. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from varalign.data.errors import DataError
from varalign.data.files import AppendedFile, open_user_file, write_atomically
from varalign.data.ranks import world
from varalign.runs.json_text import json_text
from varalign.runs.run_errors import RunError
from varalign.runs.schema import number, or_null, record, text, whole

FIGURES = ("loss", "loss_i2t", "loss_t2i", "w_i2t", "w_t2i", "logit_scale")
"""The numbers of a step's line that come from the device; null where they are not finite."""

CROSS_VALIDATION, NESTED = "cross-validation", "nested cross-validation"
"""The `split` of an evaluation on the folds that the voices were chosen by, and on folds that nothing was chosen by."""

_LINE = record({"kind": text, "step": whole(), "epoch": whole()}, {name: or_null(number) for name in (*FIGURES, "lr")})


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file; a last line that a crash cut short is left out.

    Raises:
        RunError: naming the line that is none.
    """
    try:
        with open_user_file(path) as file:
            lines = file.read().split(b"\n")
    except (OSError, DataError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None
    for at, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            value = json.loads(line)
            _LINE(value)
            if value["kind"] == "eval":
                record({"split": text, **{name: number for name in value if "_recall@" in name}})(value)
        except (ValueError, RecursionError) as error:
            if at == len(lines):
                return
            raise RunError(f"{path} line {at}: {error}; delete the line, or go on from a copy of the file") from None
        yield value


class MetricsLog:
    """Appends lines to a metrics file, which is created by the first one.

    Values that are not finite become null, so that the file stays valid JSON.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: AppendedFile | None = None
        self._writes = world().is_writer

    def write(self, lines: Iterable[dict[str, Any]]) -> None:
        """Append lines and hand them to the system at once; of several processes only the writer does."""
        if not self._writes:
            return
        if self._file is None:
            self._file = AppendedFile(self.path)
        self._file.write(b"".join(_encode(line) for line in lines))

    def cut(self, step: int, *, evaluations: bool = True) -> None:
        """Drop the lines that a run writes again after it has gone back to a checkpoint.

        Args:
            step: of the checkpoint; lines of later steps go.
            evaluations: whether an evaluation at this step stays.
        """
        self.close()
        if not self._writes or not self.path.exists():
            return
        before = [line for line in read_metrics(self.path) if line["step"] <= step]
        kept = [line for line in before if evaluations or line["step"] < step or line.get("kind") != "eval"]
        write_atomically(self.path, b"".join(_encode(line) for line in kept))

    def sync(self) -> None:
        """Make what was written durable; called before a checkpoint that relies on it."""
        if self._file is not None:
            self._file.sync()

    def close(self) -> None:
        """Close the file; a later `write` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _encode(line: dict[str, Any]) -> bytes:
    return (json_text(line) + "\n").encode()
