"""Measures the nesting depth of a pickle without unpickling it."""

from __future__ import annotations

import pickletools
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

LEGACY_PICKLES = 5
"""Number of pickles before the tensors' bytes in a file of torch.save's old format, which is no zip archive."""


def nests_deeper(path: Path, limit: int) -> bool:
    """Whether a pickle in a file of torch.save nests deeper than `limit`.

    The hash of a tuple nested a million deep overflows Python's stack and ends the process; torch's unpickler does not
    prevent that. The check ends at the first operation that it cannot interpret.
    """
    with suppress(Exception):  # torch's unpickler reports damaged pickles
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return any(_deeper(file, limit) for _ in range(LEGACY_PICKLES))
        with zipfile.ZipFile(path) as archive:
            pickles = [entry for entry in archive.infolist() if entry.filename.endswith("data.pkl")]
            return any(_deeper(archive.read(entry), limit) for entry in pickles)
    return False


def _deeper(pickled: bytes | BinaryIO, limit: int) -> bool:
    """Whether one pickle nests deeper, by simulating the depth of every value on the pickle machine's stack."""
    stack: list[int | None] = []  # depths; None for a mark
    memo: dict[int, int] = {}
    argument: Any
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name == "MARK":
            stack.append(None)
        elif "PUT" in operation.name or operation.name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = stack[-1] or 0
        elif "GET" in operation.name:
            stack.append(memo[argument])
        else:
            before, after = operation.stack_before, operation.stack_after
            taken: list[int] = []
            if pickletools.markobject in before:
                while (depth := stack.pop()) is not None:
                    taken.append(depth)
                before = before[: before.index(pickletools.markobject)]
            owner = 0
            for _ in before:
                owner = stack.pop() or 0
                taken.append(owner)
            if before and after and before[0] is after[0]:  # a list or dict that grows
                taken.remove(owner)
                stack.append(max(owner, 1 + max(taken, default=-1)))
            else:
                stack += [1 + max(taken, default=-1)] * len(after)
            if stack and (stack[-1] or 0) > limit:
                return True
    return False
