"""`quarantine.jsonl`: the images of a run that could not be read, each with its reason, one JSON object a line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from varalign.data.files import AppendedFile
from varalign.data.ranks import world
from varalign.runs.json_text import json_text


class Quarantine:
    """The list of a run's unreadable images on disk; a name is listed once, also where a run was resumed.

    A line has `image` (the name in the captions) and `reason`. Training replaces an unreadable image by another one,
    chosen by (seed, epoch, row); evaluation leaves it out.

    Args:
        path: the file; created when the first unreadable image is found.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found, self._cut = _read(path)

    def add(self, bad: Mapping[str, str]) -> None:
        """Append the names that are new.

        Raises:
            OSError: naming the file.
        """
        new = {name: reason for name, reason in bad.items() if name not in self.found}
        if not new or not world().is_writer:
            return
        file = AppendedFile(self.path)
        try:
            if self._cut:
                file.write(b"\n")  # after the part of a line that a kill left
                self._cut = False
            for name, reason in new.items():
                file.write((json_text({"image": name, "reason": reason}) + "\n").encode())
        finally:
            file.close()
        self.found |= new


def summary(bad: Mapping[str, str], *, kinds: int = 3) -> str:
    """Reasons with their counts, common ones first: `12 × JPEG image: the file is cut short (a.jpg, …); 1 × …`."""
    reasons = {name: plain_reason(name, reason) for name, reason in bad.items()}
    common = Counter(reasons.values()).most_common()
    parts = []
    for reason, count in common[:kinds]:
        names = [name for name, found in reasons.items() if found == reason]
        parts.append(f"{count} × {reason} ({', '.join(names[:2])}{', …' if count > 2 else ''})")
    if len(common) > kinds:
        parts.append(f"{sum(count for _, count in common[kinds:])} for other reasons")
    return "; ".join(parts)


def plain_reason(name: str, reason: str) -> str:
    """A reason without the path of its image, so that equal faults read alike."""
    _, mark, rest = reason.partition(f"{name}: ")
    return rest if mark else reason


def _read(path: Path) -> tuple[dict[str, str], bool]:
    """The names listed with their reasons, and whether the last line is cut short."""
    found: dict[str, str] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return found, False
    for line in lines:
        try:
            value = json.loads(line)
            found[str(value["image"])] = str(value["reason"])
        except (ValueError, KeyError, TypeError, RecursionError):  # cut short by a kill: the image is found again
            continue
    return found, bool(lines[-1])
